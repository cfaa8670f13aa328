"""What a training run remembers besides its settings: --resume alone finds the same images, and the card tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ddimctl.cli import options
from ddimctl.cli.groups import given
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from ddimctl.training.card import About

# By the parameter that says it.
REMEMBERED = {
    "images": "images", "held_out": "held_out", "data_name": "data_name", "license": "license_", "latent": "latent",
    "start": "start", "fit": "fit", "background": "background", "frame": "frame", "range": "value_range",
    "max_pixels": "max_pixels",
}  # fmt: skip
FIT = ("fit", "background", "frame", "range", "max_pixels")  # those of them that make images fit


def said(ctx: typer.Context, before: Mapping[str, str]) -> dict[str, str]:
    """What the run remembers: what it did `before`, and what is said now.

    Raises `UsageError` where there are no images, or where the run began with other weights.
    """
    here = given(ctx)
    about = {k: _text(k, ctx.params[p]) if p in here or k not in before else before[k] for k, p in REMEMBERED.items()}
    if not about["images"]:
        raise UsageError("there are no images to train on", hint="name a folder, or an IDX file")
    if before and about["start"] != before.get("start", ""):
        raise UsageError(f"the run began with {before.get('start') or 'no other weights'}", hint="leave --start away")
    return about


def _fit(about: Mapping[str, str]) -> tuple[str, ...]:
    """The words that make images fit as this run does, where the defaults do not."""
    plain = options.Fit()
    other = [k for k in FIT if about[k] != _text(k, getattr(plain, REMEMBERED[k]))]
    return tuple(word for k in other for word in (f"--{k.replace('_', '-')}", about[k]))


def _text(name: str, value: object) -> str:
    """As a checkpoint holds it; what is a path here will be one in another folder too."""
    text = "" if value is None else str(value)
    path = name in ("images", "held_out", "latent", "start") and text and Path(text).exists()
    return str(Path(text).resolve()) if path else text


def story(about: Mapping[str, str]) -> About:
    """The same for the card, without the paths of this machine."""
    from ddimctl.training import card

    return card.About(
        images=Path(about["images"]).name,
        held_out=Path(about["held_out"]).name,
        data_name=about["data_name"] or Path(about["images"]).name,
        license=about["license"] or "not stated",
        latent=Path(about["latent"]).name,
        start=Path(about["start"]).name,
        fit=_fit(about),
    )
