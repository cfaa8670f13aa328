"""Many images: the files of a folder, or those of archives, as one array, in memory or mapped."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ddimctl import archives, cache, remote
from ddimctl.archives.binaries import read_idx
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import Held, find, refuse_special
from ddimctl.images import captions as beside
from ddimctl.images import mapped, plugins
from ddimctl.images.fitting import FITS
from ddimctl.images.formats import LIKE, check_channels
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.images.reading import read
from ddimctl.version import __version__

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DataSet:
    """Images that fit a model: uint8 (N, C, H, W), and where each came from."""

    images: Tensor  # in memory, or mapped from a file
    sources: tuple[str, ...]  # a name each; empty for an IDX file, and where memory is bounded
    failures: tuple[DDIMError, ...] = ()  # of the files that could not be used, a reason each
    captions: tuple[str | None, ...] = ()  # where they were asked for
    left_out: Mapping[str, int] = field(default_factory=dict)  # by suffix: images of formats that are not read here
    mapped: bool = False


def find_images(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted: by suffix, nothing hidden. Raises `UsageError` if there are none."""
    suffixes = plugins.readable()
    found = find(folder, suffixes)
    if not found:
        others = Counter(p.suffix.lower() for p in find(folder, LIKE))
        said = f"; {plugins.left_out(others)}" if others else ""
        raise UsageError(
            f"{folder} holds no images{said}", hint=plugins.extras({*others}) or f"looked for {' '.join(suffixes)}"
        )
    return found


def load(
    path: Path,
    channels: int,
    size: tuple[int, int],
    *,
    how: Preprocessing | None = None,
    captions: bool = False,
    memory: int | None = None,
    progress: Callable[[Iterable[Path | Held]], Iterable[Path | Held]] = iter,
) -> DataSet:
    """All images of a folder, an archive, a folder of archives, or a URL of one, made to fit as `how` says.

    Files that cannot be used are left out, each with its reason. An animation gives its first frame, unless `how` names
    another. Images of more than `memory` bytes are mapped from a file in the cache folder (see `mapped`), which is made
    where it is not there yet; `progress` wraps the images as they are read. Raises `FileError` if no image is left,
    `UsageError` if there was none.
    """
    check_channels(str(path), channels)
    how = how or Preprocessing()
    if how.frame is None:
        how = replace(how, frame=0)
    name = remote.url_of(path) or str(path)
    kind = archives.kind_of(name)
    if kind is archives.ARCHIVES["IDX"] or (kind is None and not remote.is_url(name) and not path.is_dir()):
        return DataSet(_fit_idx(read_idx(path), channels, size, how=how), ())
    found = _found(name, captions)
    key = ""
    if memory is not None:
        key = cache.name(__version__, _stamp(name, captions), channels, size, how, captions)
        if (whole := mapped.load(key)) is not None:
            return _remembered(*whole)
    sources: list[str] = []
    failures: list[DDIMError] = []
    texts: list[str | None] = []
    folder = isinstance(found, list)  # of images, not of archives

    def usable() -> Iterator[np.ndarray]:
        for file in progress(found):
            try:
                if isinstance(file, Path):
                    refuse_special(file)
                pixels = read(file, channels, size, how=how)[0]
            except (FileError, UsageError) as e:
                failures.append(e)
                continue
            if memory is None or (captions and folder):
                sources.append(file.name if isinstance(file, Held) else str(file))
            if captions and not folder:
                texts.append(getattr(file, "caption", None))
            yield np.moveaxis(pixels, -1, 0).copy()

    @functools.cache
    def about() -> dict[str, Any]:
        words = beside.read(path, [Path(s) for s in sources]) if captions and folder else texts
        left = _left_out(path) if folder else {}
        reasons = [[e.exit_code, str(e), e.hint] for e in failures]
        return {"failures": reasons, "captions": list(words), "left_out": left}

    images = mapped.collect(usable(), key, memory=float("inf") if memory is None else memory, about=about)
    if not len(images) and not failures:
        raise UsageError(f"{name} holds no images", hint=f"looked for {' '.join(plugins.readable())}")
    if not len(images):
        raise FileError(
            f"none of the {len(failures)} images in {name} can be used: {failures[0]}", hint=failures[0].hint
        )
    said = about()
    kept = tuple(sources) if memory is None else ()
    more = memory is not None and images.nbytes > memory
    return DataSet(images, kept, tuple(failures), tuple(said["captions"]), said["left_out"], mapped=more)


def _remembered(images: Tensor, about: Mapping[str, Any]) -> DataSet:
    """A data set whose images were mapped before."""
    failures = []
    for code, message, hint in about["failures"]:
        failures.append(DDIMError(message, hint))
        failures[-1].exit_code = code
    return DataSet(images, (), tuple(failures), tuple(about["captions"]), about["left_out"], mapped=True)


def _found(name: str, captions: bool) -> Iterable[Path | Held]:
    """The images that a name stands for: a list of files, or those of archives as they come."""
    suffixes = tuple(plugins.readable())
    if (kind := archives.kind_of(name)) is not None:
        return kind.members(name, suffixes, captions=captions)
    if remote.is_url(name):
        files = {below: at for at, below in remote.gather(name, (*suffixes, *archives.SUFFIXES))}
        words = beside.by_url(files, remote.top(name)) if captions else {}
        return _each(files.values(), suffixes, captions, words=words)
    if not find(Path(name), suffixes) and (packed := find(Path(name), archives.SUFFIXES)):
        return _each([str(p) for p in packed], suffixes, captions)
    return find_images(Path(name))


def _each(
    names: Iterable[str], suffixes: tuple[str, ...], captions: bool, *, words: Mapping[str, str | None] | None = None
) -> Iterator[Held]:
    """Files by URL, with their `words`, and what is in archives."""
    for name in names:
        if archives.kind_of(name) is None:
            yield remote.Remote(name, (words or {}).get(name))
        else:
            yield from archives.members(name, suffixes, captions=captions)


def _stamp(name: str, captions: bool) -> str:
    """What changes when something of what a name stands for does: sizes and times of the files, or what a store says."""
    if remote.is_url(name):
        return remote.stamp(remote.top(name) if captions else name)
    path = Path(name)
    suffixes = {*plugins.readable(), *archives.SUFFIXES, ".arrow", ".json", *((".txt", ".jsonl") if captions else ())}
    files = find(path, suffixes) if path.is_dir() else [path]
    marks = ((str(p), about.st_size, about.st_mtime_ns) for p in files if p.exists() for about in (p.stat(),))
    return cache.name(str(path.resolve()), *itertools.chain.from_iterable(marks))


def _left_out(folder: Path) -> dict[str, int]:
    readable = plugins.readable()
    return dict(Counter(p.suffix.lower() for p in find(folder, {s for s in LIKE if s not in readable})))


def load_dataset(path: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """The images of `load`, where every one must be usable: raises what is wrong with the first that is not."""
    found = load(path, channels, size)
    if found.failures:
        raise found.failures[0]
    return found.images


def _fit_idx(data: np.ndarray, channels: int, size: tuple[int, int], *, how: Preprocessing) -> Tensor:
    """Grey images uint8 (N, H, W) → (N, C, H, W) of that size."""
    import torch

    if channels == 1 and data.shape[1:] == size:
        return torch.from_numpy(data)[:, None]
    mode = "L" if channels == 1 else "RGB"
    pictures = (FITS[how.fit](Image.fromarray(a).convert(mode), (size[1], size[0]), how.colour)[0] for a in data)
    arrays = (np.asarray(p).reshape(*size, channels) for p in pictures)
    return torch.stack([torch.from_numpy(np.moveaxis(a, -1, 0).copy()) for a in arrays])
