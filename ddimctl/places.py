"""Places that a name can mean besides a file: standard output, a pipe or a device; or a folder, by the slash at its end.

One rule for all outputs: a name with a suffix is a file of that kind; one without, or that ends with a slash, or a folder
that is there, is a folder. What is written in one go, standard output above all, is a file, too: of the kind that its own
suffix says, or else of the one that whoever writes chooses.
"""

from __future__ import annotations

import copy
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Base = Path
else:
    Base = type(Path())  # of this system: `Path` itself cannot be inherited from everywhere

STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


class Place(Base):
    """A path whose suffix may be said beside its name; what is derived from it, such as a file in it, is as any other."""

    said: str | None = None
    streams: bool = False

    @property
    def suffix(self) -> str:
        return super().suffix if self.said is None else self.said

    def is_dir(self) -> bool:
        return not self.streams and super().is_dir()  # a folder called - is ./-

    def of_kind(self, suffix: str) -> Place:
        """The same with that suffix, if it is a stream whose name has none."""
        if not self.streams or self.suffix:
            return self
        out = copy.copy(self)
        out.said, out.streams = suffix, True
        return out


def parse(text: str) -> Path:
    """The place that a name means."""
    place = Place(text)
    if text in STDOUT or is_special(place):
        place.streams = True
        return place
    if text.endswith(("/", os.sep)):
        place.said = ""
        return place
    return Path(text)


def of_kind(output: Path | None, suffix: str) -> Path | None:
    """`output` with that suffix, if it is a stream whose name has none."""
    return output.of_kind(suffix) if isinstance(output, Place) else output


def is_stream(path: Path) -> bool:
    """Whether `path` was given as something that is written to in one go."""
    return isinstance(path, Place) and path.streams


def is_stdout(path: Path | None) -> bool:
    """Whether `path` is this process's standard output, by any of its names."""
    return path is not None and is_stream(path) and str(path) in STDOUT


def is_special(path: Path) -> bool:
    """Whether `path` is a pipe, a terminal or a device: something that is written to, never replaced."""
    if is_stream(path):
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
