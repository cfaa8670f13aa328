"""How what a command makes is shown: words around its sheets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typer import Option

from ddimctl.cli.groups import group
from ddimctl.cli.pages import Page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from ddimctl.cli.console import Console
    from ddimctl.roundtrip import RoundTrip


@group
class Dark:
    """What pictures are drawn on."""

    PANEL: ClassVar[str] = "Files"

    dark: Annotated[bool, Option("--dark", help="Draw with light lines on dark paper.")] = False


@group
class Looks(Page):
    """How pictures look."""

    PANEL: ClassVar[str] = "Files"

    no_labels: Annotated[bool, Option("--no-labels", help="Pictures alone, without words around them.")] = False
    show: Annotated[bool, Option("--show", help="Also show the pictures in the terminal, if stdout is one.")] = False

    def shows(self, console: Console) -> bool:
        """Whether pictures are shown: if that is asked for and stdout is a terminal, on which there is no JSON."""
        from ddimctl.cli import terminal

        return self.show and not console.json and not console.piped and terminal.is_there()

    def print_sheet(self, pixels: np.ndarray, columns: int, **words: Any) -> None:
        """Shows images (N, H, W, C) in the terminal, as a sheet; `words` are of `labels.Labels`."""
        from ddimctl.cli import terminal
        from ddimctl.images import sheets

        factor = sheets.factor_to_see(pixels.shape[1:3])
        terminal.show(
            sheets.sheet(pixels, columns, gap=1),
            lambda: self.sheet(sheets.enlarge(pixels, factor), columns, 2, **words),
        )

    def print_whole(self, small: np.ndarray, whole: np.ndarray) -> None:
        """Shows a picture in the terminal: `whole`, or, where a pixel is half a block, `small`."""
        from ddimctl.cli import terminal

        terminal.show(small, lambda: whole)

    def check_sheet(
        self, path: Path, n: int, size: tuple[int, int], *, columns: int, gap: int, factor: int = 1
    ) -> None:
        """Raises `UsageError` if `path` cannot hold a sheet of `n` images of that size, each enlarged `factor` times."""
        from ddimctl.images import formats, labels, sheets

        tile = (factor * size[0], factor * size[1])
        height, width = sheets.sheet_size(n, tile, columns, gap=gap)
        more = (0, 0) if self.no_labels else labels.room(tile)
        formats.check_side(path, height + more[0], width + more[1])

    def sheet(self, pixels: np.ndarray, columns: int, gap: int, **words: Any) -> np.ndarray:
        """Enlarged images (N, H, W, C) as a sheet; `words` are of `labels.Labels`."""
        from ddimctl.images import labels, sheets

        made = sheets.sheet(pixels, columns, gap)
        return made if self.no_labels else labels.around(made, pixels.shape[1:3], gap, labels=labels.Labels(**words))


def heads(trips: Sequence[RoundTrip], gains: Sequence[float], original: str = "original") -> list[str]:
    """What stands above the columns of a sheet of round trips: the way, its error, its cost; and how far it is amplified."""
    from ddimctl.cli.console import figure
    from ddimctl.images.sheets import stated

    out = [original]
    for trip, gain in zip(trips, gains, strict=True):
        errors = [f"{name} {figure(trip.total(name))}" for name in ("mse", *trip.values) if name in trip.values][:1]
        cost = f"{trip.evaluations:.4g} evaluations"
        whose = f"{trip.of}: " if trip.of else ""
        way = [f"{whose}{trip.way.solver}, {trip.way.spacing}", f"S = {trip.way.steps}"]
        out.append("\n".join([*way, *errors, cost]))
        out.append(f"difference\n× {stated(gain)}")
    return out


def rows_of(n: int, columns: int) -> list[str]:
    """What stands beside the rows of a sheet of numbered images: the number of the first."""
    return [str(i) for i in range(0, n, columns)]


def way_of(made: Mapping[str, Any]) -> str:
    """The model and the way, in a line, of what `origin.of` gives; with noise on the way, how much."""
    steps = made.get("all_steps", [made["steps"]])
    said = [f"{made['model']['name']}: {made['solver']}", str(made["spacing"])]
    said += [f"S = {steps[0]}"] if len(steps) == 1 else []
    if made.get("sigma_hat") or made.get("eta"):
        said.append("DDPM with σ̂" if made["sigma_hat"] else f"η = {made['eta']:g}")
    if "worse" in made:
        said.append(f"away from {made['worse']['name']}, weight {made['weight']:g}")
    said += [
        f"{name} {made[name]!r}"
        for name in ("class", "prompt", "prompts", "blend", "negative", "guidance")
        if name in made
    ]
    return ", ".join(said)
