"""Configurations from files: JSON, and the YAML that research code keeps its flags in. Only data is read, no code."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ddimctl.errors import FileError, UsageError
from ddimctl.files import is_special

LIMIT = 1_000_000  # bytes
DEPTH = 32
YAML = (".yml", ".yaml")
# The sections that the authors' files, and those of repositories after them, keep their fields in.
SECTIONS = ("data", "model", "diffusion")


def read_json(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. Raises `FileError` if it is none; no pipe is waited for."""
    return _mapping(path, _parse_json(path, _bytes(path, limit)), "a JSON object")


def read(path: Path) -> dict[str, Any]:
    """A JSON object or a YAML mapping, by the file's suffix. Raises `FileError` as `read_json`, and for what is neither.

    YAML needs PyYAML; a file of another suffix is JSON.
    """
    if path.suffix.lower() not in YAML:
        return read_json(path)
    return _mapping(path, _parse_yaml(path, _bytes(path, LIMIT)), "a YAML mapping")


def _bytes(path: Path, limit: int) -> bytes:
    if is_special(path):
        raise FileError(f"{path} is a pipe or a device, not a file", hint="name a file")
    try:
        with path.open("rb") as f:
            data = f.read(limit + 1)
    except FileNotFoundError as e:
        raise FileError(f"{path.parent} has no {path.name}") from e
    except OSError as e:
        raise FileError(f"cannot read {path}: {e.strerror or e}") from e
    if len(data) > limit:
        raise FileError(f"{path} has more than {limit:,} bytes, which makes no sense")
    if data.startswith(b"version https://git-lfs"):
        raise FileError(f"{path} is a git-lfs pointer, not the file itself", hint="run: git lfs pull")
    return data


def _parse_json(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        raise FileError(f"cannot read {path} as JSON: {e}", hint="YAML is read from files called .yml or .yaml") from e


def _parse_yaml(path: Path, data: bytes) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as e:
        raise UsageError(
            f"{path} is YAML, which needs PyYAML",
            hint="install it with: pip install 'ddimctl[yaml]', or write the file as JSON",
        ) from e
    try:
        # Aliases make a few bytes into a tree of any size; no configuration needs them.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data, Loader=yaml.SafeLoader)):
            raise FileError(f"{path} has YAML aliases, which are not read", hint="write the values out")
        return _numbers(yaml.safe_load(data))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as e:
        reason = " ".join(str(e).split())[:160]
        raise FileError(f"cannot read {path} as YAML: {reason}") from e


def _numbers(value: Any, depth: int = 0) -> Any:
    """YAML 1.1 takes 1e-4 for text, for want of a point; whoever writes it means a number."""
    if depth > DEPTH:
        raise ValueError(f"more than {DEPTH} levels")
    if isinstance(value, dict):
        return {str(k): _numbers(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v, depth + 1) for v in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _mapping(path: Path, value: Any, kind: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FileError(f"{path} is not {kind}")
    return value


def flat(config: Mapping[str, Any], known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """(the known fields of a configuration, the names of others), at its top and in its sections `SECTIONS`.

    What lies deeper, and in other sections, is about training, sampling and files. Raises `FileError` where a known field
    has two values.
    """
    result: dict[str, Any] = {}
    others: list[str] = []
    for part in (config, *(inside for s in SECTIONS if isinstance(inside := config.get(s), Mapping))):
        for key, value in part.items():
            if key in known:
                if result.setdefault(key, value) != value:
                    raise FileError(f"the configuration has two values of {key}: {result[key]!r} and {value!r}")
            elif not isinstance(value, Mapping):
                others.append(str(key))
    return result, others


def told(others: Collection[str]) -> list[str]:
    """What to say of fields without a meaning here: a sentence, or none."""
    if not others:
        return []
    shown = ", ".join(list(others)[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
    return [f"the configuration has fields that change nothing here: {shown}"]
