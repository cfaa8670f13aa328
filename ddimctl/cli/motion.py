"""The options of what lies between latents: how many frames, in what time, by which way; or a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ddimctl.cli.groups import group
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

OF_MOTION = ("frames", "fps", "durations", "hold", "even", "pingpong", "loop", "ease")  # a grid has none


@group
class Motion:
    """What lies between the latents."""

    PANEL: ClassVar[str] = "How"

    frames: Annotated[int, typer.Option("--frames", metavar="N", help="Frames in all, both ends among them.")] = 10
    fps: Annotated[float, typer.Option(metavar="X", min=0.1, max=100, help="Frames a second.")] = 10.0
    durations: Annotated[
        str | None,
        typer.Option("--durations", metavar="S,…", help="Seconds from each latent to the next, instead of --frames."),
    ] = None
    hold: Annotated[float, typer.Option(metavar="S", min=0, help="Seconds that every latent is shown for longer.")] = (
        0.0
    )
    even: Annotated[
        bool, typer.Option("--even", help="Frames at even distances of what is seen, not of the latents.")
    ] = False
    pingpong: Annotated[bool, typer.Option("--pingpong", help="There, and back to the first again.")] = False
    loop: Annotated[bool, typer.Option("--loop", help="Go on from the last latent to the first.")] = False
    ease: Annotated[bool, typer.Option("--ease", help="Slow down at every latent.")] = False
    lerp: Annotated[bool, typer.Option("--lerp", help="Straight lines instead of slerp, to see why not.")] = False
    dither: Annotated[
        str,
        typer.Option("--dither", metavar="SEED|none", help="Noise of σ(1) that is added to images first: see encode."),
    ] = "auto"
    renorm: Annotated[bool, typer.Option("--renorm", help="Between weak latents as strong as noise: see info.")] = False
    grid: Annotated[bool, typer.Option("--grid", help="A 2-D grid over four corners instead of an animation.")] = False
    size: Annotated[str, typer.Option(metavar="RxC", help="Rows and columns of the grid.")] = "8x8"
    zoom: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Enlarge N times (default: to about 224 pixels).")
    ] = None
    distances: Annotated[bool, typer.Option("--distances", help="Also print how far each frame is from the last.")] = (
        False
    )

    def check(self, given: Collection[str]) -> None:
        """Raises `UsageError` where options that were given contradict each other, or are of no use beside others."""
        if self.pingpong and self.loop:
            raise UsageError("--pingpong ends where it began", hint="leave --loop away")
        if self.lerp and self.renorm:
            raise UsageError("--lerp and --renorm are two ways between latents", hint="choose one")
        if self.even and self.ease:
            raise UsageError("--even and --ease are two ways to place frames", hint="choose one")
        if self.grid and (moving := [name for name in OF_MOTION if name in given]):
            raise UsageError(f"--{moving[0]} is about motion, and a grid has none", hint="leave one of the two away")
        if not self.grid and "size" in given:
            raise UsageError("--size is that of a grid", hint="add --grid; --zoom enlarges what is shown")
        if "frames" in given and "durations" in given:
            raise UsageError("--durations says how many frames there are", hint="leave --frames away")

    @property
    def held(self) -> int:
        """Frames more that each latent is shown for."""
        return round(self.hold * self.fps)

    @property
    def interpolant(self) -> str:
        """A name of `INTERPOLANTS`."""
        return "lerp" if self.lerp else "renorm" if self.renorm else "slerp"
