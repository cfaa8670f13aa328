"""The model a command works with, where its images may be of several sizes and its noise may have no end."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from ddimctl.cli.groups import group
from ddimctl.cli.options import OtherWhat, What
from ddimctl.cli.values import parse_tile


@group
class Sized(What):
    """The model, where its images may be of several sizes, and where its noise may have no end."""

    size: Annotated[
        str | None, Option("--size", metavar="HxW", help="Height and width of the images, where the model allows it.")
    ] = None
    tile: Annotated[
        int | None,
        Option("--tile", metavar="N", min=1, help="The autoencoder goes by tiles of N pixels a side: less memory."),
    ] = None
    sigma_max: Annotated[
        float | None,
        Option(
            "--sigma-max", metavar="X", help="Where the noise of a flow, or of zero final SNR, counts as all there is."
        ),
    ] = None


@group
class OtherTiles(OtherWhat):
    """The model, where a latent file says it and its tiles, and the command line may say otherwise."""

    tile: Annotated[
        int | None,
        Option(
            "--tile",
            metavar="N|none",
            parser=parse_tile,
            help="Other tiles of the autoencoder than the file's, or none.",
        ),
    ] = None


@group
class Captioned(Sized):
    """The model, where each image may have a prompt of its own."""

    captions: Annotated[
        bool, Option("--captions", help="Each image's own prompt: NAME.txt beside it, or its folder's metadata.jsonl.")
    ] = False
