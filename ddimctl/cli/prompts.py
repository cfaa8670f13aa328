"""Prompts on the command line: from files and beside images, and what is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.cli.console import Console
from ddimctl.errors import FileError, UsageError

if TYPE_CHECKING:
    from ddimctl.model import Condition, Model
    from ddimctl.runs.local import Targets
    from ddimctl.runs.plan import Item, Outcome
    from ddimctl.runs.work import Encoding

Encode = Callable[..., "Iterator[Outcome]"]  # as `runs.local.encode`
LONGEST = 1 << 16  # bytes of a file that holds a prompt
MOST = 1 << 22  # of one that holds many
TOLD = 3  # captions whose ends are told


def parse_prompt(text: str) -> str:
    """A prompt: the text, or with @ before it, what the file of that name holds; @@ begins a text with @."""
    return _written(text, LONGEST) if _is_file(text) else text.removeprefix("@") if text.startswith("@@") else text


def parse_prompts(texts: Iterable[str]) -> list[str]:
    """Where there may be several: as `parse_prompt`, but a file has one a line; empty lines are none.

    Raises `FileError` for a file without any.
    """
    found: list[str] = []
    for text in texts:
        lines = [line.strip() for line in _written(text, MOST).splitlines()] if _is_file(text) else [parse_prompt(text)]
        if _is_file(text) and not any(lines):
            raise FileError(f"{text[1:]} has no prompt", hint="one a line")
        found += filter(None, lines) if _is_file(text) else lines
    return found


def _is_file(text: str) -> bool:
    return text.startswith("@") and not text.startswith("@@")


def _written(text: str, limit: int) -> str:
    """What stands in the file that is named after an @."""
    from ddimctl.files import read_bytes, refuse_special

    path = Path(text[1:])
    refuse_special(path)
    try:
        return read_bytes(path, limit).decode("utf-8-sig").strip()
    except UnicodeDecodeError as e:
        raise FileError(f"{path} is not text in UTF-8") from e


def tell_unread(model: Model, condition: Condition, console: Console) -> None:
    """What of its prompts is beyond what the model reads."""
    for prompt in (*(share.prompt for share in condition.shares), condition.negative):
        if prompt and (rest := model.unread(prompt)):
            console.notice(f"warning: the prompt is too long; its end is not read: {rest}")


def tell_of_negative(condition: Condition, console: Console) -> None:
    if condition.negative is not None and condition.guidance == 1:
        console.notice("the negative prompt does nothing without guidance; 7.5 is usual: --guidance 7.5")


def tell_of_another(name: str, made: Condition, condition: Condition, *, kept: bool, console: Console) -> None:
    """That a latent is decoded under another condition than it was encoded under, what that loses and what keeps it."""
    if condition == made:
        return
    if replace(condition, guidance=made.guidance) != made:
        console.notice(f"{name} was encoded {said_of(made)}; decoded {said_of(condition)} it is another image")
        return
    console.notice(
        f"{name} was encoded at guidance {made.guidance:g}; decoded at guidance {condition.guidance:g} it is another image:"
        f" what the prompt does not say is lost in part"
    )
    if not kept:
        told = f"--guidance {made.guidance:g} keeps it; so does encode --guidance {condition.guidance:g}"
        console.notice(f"hint: {told}, surely with --keep-path")


def said_of(condition: Condition) -> str:
    """A condition in words."""
    parts = [] if condition.class_label is None else [f"as class {condition.class_label}"]
    if condition.blend:
        said = " and ".join(f"{share.prompt or ''!r} ({share.weight:.3g})" for share in condition.blend)
        parts.append(f"with a blend of {said}")
    else:
        parts.append("without a prompt" if not condition.prompt else f"with the prompt {condition.prompt!r}")
    parts += [] if condition.negative is None else [f"against {condition.negative!r}"]
    parts += [] if condition.distilled is None else [f"told {condition.distilled:g}"]
    return ", ".join([*parts, f"at guidance {condition.guidance:g}"])


def captioned(
    items: Sequence[Item],
    arguments: Sequence[str],
    model: Model,
    *,
    condition: Condition,
    encode_each: Encode,
    one_file: bool,
    console: Console,
) -> tuple[Condition, Encode]:
    """The condition of the first image, and `encode_each` for all, each under its caption, or `condition` without one.

    Raises `UsageError` where no image has a caption, the model reads none, or a file of them all would have several.
    """
    under = beside(items, arguments, condition, console=console)
    different = Counter(under.values())
    if len(different) > 1 and one_file:
        raise UsageError("one latent file has one prompt", hint="name a folder with -o: a file for each image")
    first = next(iter(under.values()), condition)
    check_heard(model, different, console)
    return first, encode_each if len(different) < 2 else each_under(under, encode_each)


def check_heard(model: Model, conditions: Iterable[Condition], console: Console) -> None:
    """Says which of several prompts are longer than the model reads. Raises `UsageError` if it cannot be asked for them."""
    conditions = list(conditions)
    for condition in conditions[:1]:
        model.embed(condition)  # a model without text says so before anything is done
    cut = [c for c in conditions if c.prompt and model.unread(c.prompt)]
    for c in cut[:TOLD]:
        tell_unread(model, c, console)
    if len(cut) > TOLD:
        console.notice(f"warning: so are {len(cut) - TOLD} other prompts")


def beside(
    items: Sequence[Item], arguments: Sequence[str], condition: Condition, *, console: Console
) -> dict[str, Condition]:
    """What each image is encoded under, by its source."""
    folders = [Path(a) for a in arguments if a and Path(a).is_dir()]
    instead = "no prompt" if condition.prompt is None else f"{condition.prompt!r}"
    found = captions_of([item.source for item in items], folders, instead=instead, console=console)
    return {s: condition if text is None else replace(condition, prompt=text) for s, text in found.items()}


def captions_of(
    images: Iterable[str], folders: Sequence[Path], *, instead: str, console: Console
) -> dict[str, str | None]:
    """What is written about each image, by its file's name; `instead` says what stands for it where nothing is.

    Raises `UsageError` where that is so of all.
    """
    from ddimctl.images import captions

    files = [name for name in images if name != "-"]
    found = dict(zip(files, captions.of_files([Path(f) for f in files], folders), strict=True))
    if missing := sum(text is None for text in found.values()):
        if missing == len(found):
            hint = f"NAME.txt beside NAME.png, or a {captions.TABLE} in the folder"
            raise UsageError("there are no captions", hint=hint)
        console.notice(f"{missing} of {len(found)} images have no caption; {instead} stands for it")
    console.notice(f"{len(set(found.values()))} prompts for {len(found)} images; none shares a batch with another")
    return found


def each_under(under: Mapping[str, Condition], encode_each: Encode) -> Encode:
    """`encode_each`, once for each condition and those of the items that are encoded under it: one an integration."""

    def encode(items: Sequence[Item], targets: Targets, encoding: Encoding, **how: Any) -> Iterator[Outcome]:
        groups: dict[Condition, list[Item]] = {}
        for item in items:
            groups.setdefault(under.get(item.source, encoding.condition), []).append(item)
        for condition, part in groups.items():
            yield from encode_each(part, targets, replace(encoding, condition=condition), **how)

    return encode
