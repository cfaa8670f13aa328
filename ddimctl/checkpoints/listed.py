"""Which of a repository's files a pipeline is made of: those that its index names, and of them what is read here.

Everything small comes first, and is checked as a folder's is. Weights are safetensors alone, since what torch saves might
be anything; no code is ever among them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from ddimctl.checkpoints import configs, folders, pipelines, scheduler
from ddimctl.errors import FileError

# What is read of a part that holds words.
OF_TOKENIZERS = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.json",
    "spiece.model",
)  # fmt: skip
Fetch = Callable[[list[str]], Path]  # files of the repository → the folder that they lie in


def kind_of(index: Path) -> str | None:
    """The pipeline that an index names, if it is one of `PIPELINES`. Raises `FileError` on an index that cannot be read."""
    name = configs.read_json(index).get("_class_name")
    return name if isinstance(name, str) and name in pipelines.PIPELINES else None


def files_of(kind: str, names: Collection[str], fetch: Fetch) -> list[str]:
    """The files of such a pipeline, among `names`; the small ones, which are checked, have been fetched then.

    Raises `FileError` where it is not one that a family can load, before any weights are fetched.
    """
    small = [n for n in (folders.INDEX, "README.md") if n in names]
    small += [n for part in pipelines.PIPELINES[kind] for n in settings_of(part, names)]
    folder = fetch(small)
    index = pipelines.check_index(folder, kind)
    check_parts(folder, index, kind)
    return [*small, *(n for part in weighty(index, kind) for n in weights_of(part, names, fetch))]


def settings_of(part: str, names: Collection[str]) -> list[str]:
    """A part's small files."""
    wanted = OF_TOKENIZERS if part.startswith("tokenizer") else (folders.CONFIG, folders.SCHEDULER)
    return [f"{part}/{n}" for n in wanted if f"{part}/{n}" in names]


def weighty(index: dict[str, Any], kind: str) -> Iterator[str]:
    """The parts that have weights."""
    for part in pipelines.PIPELINES[kind]:
        if pipelines.has(index, part) and not part.startswith(("tokenizer", "scheduler")):
            yield part


def check_parts(folder: Path, index: dict[str, Any], kind: str) -> None:
    """Raises `FileError` where a part's configuration asks for code, is of another class, or absurd."""
    for part in weighty(index, kind):
        pipelines.read_config(folder / part, str(index[part][1]))
    fields = configs.read_json(folder / "scheduler" / folders.SCHEDULER)
    if pipelines.PIPELINES[kind]["scheduler"] == pipelines.VP:
        scheduler.read(fields)


def weights_of(part: str, names: Collection[str], fetch: Fetch) -> list[str]:
    """The files of a part's weights, an index of shards before them. Raises `FileError` where there are none to be read."""
    stem = "model" if part.startswith("text_encoder") else folders.STEM
    here = {n.removeprefix(f"{part}/") for n in names if n.startswith(f"{part}/")}
    here = {n for n in here if "/" not in n and ".bin" not in n}
    files, index = folders.choose_weights(here, part, stem=stem)
    if index:
        table = configs.read_json(fetch([f"{part}/{index}"]) / part / index, limit=folders.MAX_JSON)
        files = [index, *folders.shards(table, part)]
    if not files or not all(f.endswith(".safetensors") for f in files if f != index):
        raise FileError(f"its {part} has no weights as safetensors", hint="only these are read of a pipeline")
    if missing := [f for f in files if f not in here]:
        raise FileError(f"its {part} lacks a part of its weights: {missing[0]}")
    return [f"{part}/{f}" for f in files]


def is_whole(folder: Path) -> bool:
    """Whether a folder holds all of the pipeline that its index names."""
    kind = kind_of(folder / folders.INDEX)
    if kind is None:
        return False
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    try:
        files_of(kind, names, lambda _: folder)
    except FileError:
        return False
    return True
