"""Models on the Hugging Face hub: downloads just the files of diffusers' layout, of one network or of a pipeline of
several parts, into the hub's own cache.

Needs the extra ``hub``. ``HF_HOME`` and ``HF_HUB_OFFLINE`` mean what they mean everywhere. The small files come first
and are checked, so that a model which ddimctl does not implement is refused before its weights are downloaded. No code
from a repository is ever run.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ddimctl.checkpoints import configs, diffusers, folders, listed, scheduler
from ddimctl.errors import DDIMError, FileError, UsageError

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATTERN = re.compile(r"[*?\[\]]")
SETTINGS = (folders.INDEX, folders.CONFIG, folders.SCHEDULER, "README.md")
FOLDERS = ("", *(f"{name}/" for name in folders.SUBFOLDERS), "scheduler/")
INSTALL = "install it with: pip install 'ddimctl[hub]'"


def is_id(reference: str) -> bool:
    """Whether `reference` has the form OWNER/NAME."""
    return ID.fullmatch(reference) is not None and ".." not in reference


def fetch(repo: str, revision: str | None = None) -> Path:
    """The folder of the model `repo`, downloaded unless it is there already.

    Raises `UsageError` if the hub has no such model, `FileError` if ddimctl does not implement it, `DDIMError` if the
    hub cannot be reached and the model is not in the cache.
    """
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError as e:
        raise DDIMError(
            f"{repo} looks like a model on the Hugging Face hub, which needs huggingface-hub", INSTALL
        ) from e
    if not sys.stderr.isatty():
        importlib.import_module("huggingface_hub.utils").disable_progress_bars()
    try:
        info = hub.HfApi().model_info(repo, revision=revision)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as e:
        if isinstance(e, errors.GatedRepoError):
            raise UsageError(
                f"the model {repo} is gated", hint="accept its terms on the hub, then log in: hf auth login"
            ) from e
        raise UsageError(
            f"the hub has no model {repo}", hint="check the name; a private one needs: hf auth login"
        ) from e
    except Exception as e:  # no network raises the errors of whichever library carries it
        return _cached(hub, repo, revision, error=e)
    names = {s.rfilename for s in info.siblings or []}
    if folders.INDEX in names:

        def get(files: list[str]) -> Path:
            return _download(hub, repo, info.sha, files=files)

        kind = listed.kind_of(get([folders.INDEX]) / folders.INDEX)
        if kind is not None:
            try:
                files = listed.files_of(kind, names, get)
            except FileError as e:
                raise (e if repo in str(e) else FileError(f"{repo}: {e}", hint=e.hint)) from None
            return _download(hub, repo, revision, files=files)
    small = [f + n for f in FOLDERS for n in SETTINGS if f + n in names]
    folder = _download(hub, repo, info.sha, files=small)
    if not folders.recognises(folder):
        raise folders.explain_names(repo, names)
    place = folders.find(folder)
    diffusers.read_settings(place.unet)
    if place.scheduler is not None:
        scheduler.read(configs.read_json(place.scheduler))
    # By branch and not by commit: only so does the cache remember the branch, and find it without a network.
    return _download(hub, repo, revision, files=[*small, *_weights(hub, repo, info.sha, names=names)])


def _weights(hub: Any, repo: str, sha: str, *, names: Collection[str]) -> list[str]:
    """The files of `repo` that hold its weights: those that its clone's folder would be read from."""
    places = (f"{name}/" for name in folders.SUBFOLDERS)
    prefix = next((p for p in places if p + folders.CONFIG in names), "")
    here = {n.removeprefix(prefix) for n in names if n.startswith(prefix) and "/" not in n.removeprefix(prefix)}
    files, index = folders.choose_weights(here, f"{repo}/{prefix}".rstrip("/"))
    if index:
        folder = _download(hub, repo, sha, files=[prefix + index]) / prefix
        files = [index, *folders.shards(configs.read_json(folder / index, limit=20_000_000), repo)]
    if not files:
        raise folders.no_weights(repo, here)
    return [prefix + f for f in files]


def _download(hub: Any, repo: str, revision: str | None, *, files: list[str]) -> Path:
    if odd := [f for f in files if PATTERN.search(f)]:  # the client takes names for patterns
        raise FileError(f"{repo} has a file whose name is a pattern: {odd[0]!r}", hint="do not trust this repository")
    try:
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=files))
    except Exception as e:  # network, disk, permissions: each with the exception of another library
        raise DDIMError(f"cannot download {repo} ({', '.join(files[-3:])}): {_reason(e)}", hint="try again") from e


def _cached(hub: Any, repo: str, revision: str | None, *, error: Exception) -> Path:
    """The model as an earlier download left it."""
    # Not snapshot_download(local_files_only=True): it wants all files of the repository, also those we left out.
    index = hub.try_to_load_from_cache(repo, folders.INDEX, revision=revision)
    if isinstance(index, str) and listed.kind_of(Path(index)) is not None and listed.is_whole(Path(index).parent):
        return Path(index).parent
    for name in (*(f"{sub}/{folders.CONFIG}" for sub in folders.SUBFOLDERS), folders.CONFIG):
        found = hub.try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            folder = Path(found.removesuffix(name))
            if (folder / folders.INDEX).is_file() and listed.kind_of(folder / folders.INDEX) is not None:
                break  # a part of a pipeline is no model
            if any(folders.choose_weights({p.name for p in Path(found).parent.iterdir()}, folder)):
                return folder
    files = f"config.json, scheduler_config.json, {folders.WEIGHTS}"
    raise DDIMError(
        f"cannot reach the hub to download {repo} ({files}), and it is not in the cache: {_reason(error)}",
        hint="check the network and HF_HUB_OFFLINE, or give a folder or file that is here",
    ) from error


def _reason(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
