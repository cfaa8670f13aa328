"""Many images: the files of a folder, or those of an archive, as one array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ddimctl import archives
from ddimctl.archives.binaries import read_idx
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import Held, find, refuse_special
from ddimctl.images import plugins
from ddimctl.images.fitting import FITS
from ddimctl.images.formats import LIKE, check_channels
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.images.reading import read

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DataSet:
    """Images that fit a model, held in memory: uint8 (N, C, H, W), and where each came from."""

    images: Tensor
    sources: tuple[str, ...]  # a file each; empty for an IDX file
    failures: tuple[DDIMError, ...] = ()  # of the files that could not be used, a reason each
    captions: tuple[str | None, ...] = ()  # of an archive, where they were asked for
    left_out: Mapping[str, int] = field(default_factory=dict)  # by suffix: images of formats that are not read here


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
    path: Path, channels: int, size: tuple[int, int], *, how: Preprocessing | None = None, captions: bool = False
) -> DataSet:
    """All images of a folder or an IDX file (perhaps gzipped), made to fit as `how` says.

    Files that cannot be used are left out, each with its reason. An animation gives its first frame, unless `how` names
    another. Raises `FileError` if no image is left, `UsageError` if there was none.
    """
    import torch

    check_channels(str(path), channels)
    how = how or Preprocessing()
    if how.frame is None:
        how = replace(how, frame=0)
    kind = archives.kind_of(str(path))
    if kind is archives.ARCHIVES["IDX"] or (kind is None and not path.is_dir()):
        return DataSet(_fit_idx(read_idx(path), channels, size, how=how), ())
    arrays: list[Tensor] = []
    sources, failures = [], []
    texts: list[str | None] = []
    files: Iterable[Path | Held]
    files = find_images(path) if kind is None else kind.members(str(path), tuple(plugins.readable()), captions=captions)
    for file in files:
        try:
            if isinstance(file, Path):
                refuse_special(file)
            pixels = read(file, channels, size, how=how)[0]
        except (FileError, UsageError) as e:
            failures.append(e)
            continue
        arrays.append(torch.from_numpy(np.moveaxis(pixels, -1, 0).copy()))
        sources.append(file.name if isinstance(file, Held) else str(file))
        texts.append(getattr(file, "caption", None))
    if not arrays and not failures:
        raise UsageError(f"{path} holds no images", hint=f"looked for {' '.join(plugins.readable())}")
    if not arrays:
        raise FileError(
            f"none of the {len(failures)} images in {path} can be used: {failures[0]}", hint=failures[0].hint
        )
    if kind is not None:
        return DataSet(torch.stack(arrays), tuple(sources), tuple(failures), tuple(texts) if captions else ())
    readable = plugins.readable()
    left = Counter(p.suffix.lower() for p in find(path, {s for s in LIKE if s not in readable}))
    return DataSet(torch.stack(arrays), tuple(sources), tuple(failures), left_out=left)


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
