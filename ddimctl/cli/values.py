"""What is written after options: paths, lists, numbers, seeds, sizes."""

from __future__ import annotations

from pathlib import Path

from ddimctl import places
from ddimctl.errors import UsageError

MAX_SEEDS = 1_000_000  # in one list


def parse_path(text: str) -> Path:
    """A path. Raises `UsageError` on the empty one, which would mean the folder one is in."""
    if not text:
        raise UsageError(
            "an empty name was given", hint="is a variable of the shell not set? . is the folder you are in"
        )
    return Path(text)


def parse_model(text: str) -> str:
    """A model's name. Raises `UsageError` on the empty one, which would mean the default."""
    if not text:
        raise UsageError("an empty name of a model was given", hint="is a variable of the shell not set?")
    return text


def parse_output(text: str) -> Path:
    """As `parse_path`, for what is written: - is standard output."""
    parse_path(text)
    return places.parse(text)


def parse_folder(text: str) -> Path:
    """As `parse_path`, for a folder that is made."""
    if places.is_stream(places.parse(text)):
        raise UsageError(f"{text} is no place for a folder", hint="./- would name one that is called so")
    return parse_path(text)


def parse_list(text: str) -> list[str]:
    """ "a,b" → ["a", "b"]. Raises `UsageError` if there is nothing in it."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"{text!r} names nothing", hint="give one name, or several with commas between")
    return parts


def parse_tile(text: str) -> int:
    """ "256" → 256, "none" → 0."""
    if text != "none" and not (text.isdecimal() and int(text)):
        raise UsageError(f"--tile takes pixels a side, or none, not {text!r}")
    return 0 if text == "none" else int(text)


def parse_integers(text: str, option: str) -> tuple[int, ...]:
    """ "1,2,3" → (1, 2, 3)."""
    try:
        return tuple(int(p) for p in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes whole numbers with commas between, not {text!r}") from None


def parse_seeds(text: str) -> list[int]:
    """ "1,4,10-20" → [1, 4, 10, …, 20], each once. Raises `UsageError` for what is no list of seeds."""
    found: list[int] = []
    for part in parse_list(text):
        low, dash, high = part.partition("-")
        ends = [end for end in (low, high if dash else low) if end.isdecimal() and len(end) < 19]
        if len(ends) < 2 or not int(low) <= int(ends[1]) < int(low) + MAX_SEEDS - len(found):
            raise UsageError(f"--seed {text!r} makes no sense", hint="such as 7, or 1,4,10-20")
        found += range(int(low), int(ends[1]) + 1)
    return list(dict.fromkeys(found))


def parse_size(text: str, option: str) -> tuple[int, int]:
    """ "32" → (32, 32), "48x64" → (48, 64): height × width."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and 0 < int(p) <= 4096 for p in parts):
        raise UsageError(f"{option} {text!r} is not a size", hint="such as 32, or 48x64 for height x width")
    return int(parts[0]), int(parts[-1])
