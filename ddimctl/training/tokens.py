"""CLIP's tokenizer with a vocabulary learnt from captions: byte pairs are merged until every word of theirs is one token.

Other words are read piece by piece. What is written, transformers' ``CLIPTokenizer`` reads in the same way.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

from ddimctl.checkpoints.parts import write_json
from ddimctl.files import make_folder, write_bytes

Pair = tuple[str, str]

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LAST = "</w>"  # the mark of a word's last piece
# CLIP's words: contractions, letters, single digits, runs of anything else.
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")


@dataclass(frozen=True)
class Vocabulary:
    """The merges, in the order they are tried in."""

    merges: tuple[Pair, ...]

    @cached_property
    def entries(self) -> tuple[str, ...]:
        """Every token; its number is its place."""
        letters = list(_LETTERS.values())
        joined = (a + b for a, b in self.merges)
        # Two ways to one token are one entry.
        return tuple(dict.fromkeys((*letters, *(c + LAST for c in letters), *joined, BEGIN, END)))

    @cached_property
    def number(self) -> dict[str, int]:
        return {entry: i for i, entry in enumerate(self.entries)}

    @cached_property
    def rank(self) -> dict[Pair, int]:
        return {pair: i for i, pair in enumerate(self.merges)}


def learn(captions: Iterable[str]) -> Vocabulary:
    """The most frequent pair is merged, again and again, until no word has two pieces. Ties go by the alphabet."""
    counts = Counter(word for caption in captions for word in words(caption))
    pieces = {word: split(word) for word in counts}
    pairs, within = Counter[Pair](), defaultdict[Pair, set[str]](set)
    for word, parts in pieces.items():
        for pair in pairwise(parts):
            pairs[pair] += counts[word]
            within[pair].add(word)
    queue = [(-n, pair) for pair, n in pairs.items()]
    heapify(queue)
    merges: list[Pair] = []
    while queue:
        n, best = heappop(queue)
        if pairs[best] != -n:  # as it was once: what it became stands elsewhere
            continue
        merges.append(best)
        changed = set[Pair]()
        for word in within.pop(best):
            before, pieces[word] = pieces[word], merge(pieces[word], best)
            for pair in pairwise(before):
                pairs[pair] -= counts[word]
            for pair in pairwise(pieces[word]):
                pairs[pair] += counts[word]
                within[pair].add(word)
            changed.update(pairwise(before), pairwise(pieces[word]))
        for pair in changed:
            if pairs[pair]:
                heappush(queue, (-pairs[pair], pair))
    return Vocabulary(tuple(merges))


def words(caption: str) -> list[str]:
    return WORD.findall(caption.lower())


def split(word: str) -> list[str]:
    """A word as CLIP's letters, which stand for bytes; the last bears the mark."""
    letters = [_LETTERS[b] for b in word.encode()]
    return [*letters[:-1], letters[-1] + LAST]


def merge(parts: Sequence[str], pair: Pair) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def encode(vocabulary: Vocabulary, captions: Sequence[str], length: int) -> list[list[int]]:
    """Each caption as `length` numbers: begin, its pieces, cut where they are too many, and ends to the end."""
    number, out = vocabulary.number, []
    for caption in captions:
        pieces = [number[p] for word in words(caption) for p in _pieces(vocabulary, word)][: length - 2]
        row = [number[BEGIN], *pieces]
        out.append(row + [number[END]] * (length - len(row)))
    return out


def _pieces(vocabulary: Vocabulary, word: str) -> list[str]:
    parts = split(word)
    while len(parts) > 1:
        known = [pair for pair in pairwise(parts) if pair in vocabulary.rank]
        if not known:
            break
        parts = merge(parts, min(known, key=vocabulary.rank.__getitem__))
    return parts


def write(folder: Path, vocabulary: Vocabulary, length: int) -> None:
    """The tokenizer's folder, as transformers reads it."""
    make_folder(folder)
    write_json(folder / "vocab.json", vocabulary.number)
    merges = "".join(f"{a} {b}\n" for a, b in vocabulary.merges)
    write_bytes(folder / "merges.txt", f"#version: 0.2\n{merges}".encode())
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
    )


def _byte_letters() -> dict[int, str]:
    """A visible letter for each byte, in CLIP's (GPT-2's) order: printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(hidden)}


_LETTERS = _byte_letters()
