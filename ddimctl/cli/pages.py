"""What the page of each command holds: the option --html, and the sections that it asks `ddimctl.report` for."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typer import Option

from ddimctl.cli.console import figure, plain
from ddimctl.cli.groups import group

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

    from ddimctl.charts import Chart
    from ddimctl.cli.console import Console
    from ddimctl.latent import Latent
    from ddimctl.report.html import Section
    from ddimctl.roundtrip import RoundTrip

SHOWN = 64  # images of a run that its page shows
OF_A_CELL = 8  # images of a cell of `evaluate`
LATENTS = 256  # of all files together


@group
class Page:
    """A page beside what is said."""

    PANEL: ClassVar[str] = "Files"

    html: Annotated[
        Path | None, Option("--html", metavar="FILE", help="Also write a page with all of it, which needs no network.")
    ] = None

    def check_page(self, others: Iterable[str | Path | None], *, force: bool) -> None:
        """Raises `UsageError` if the page cannot be written, or would be written over one of `others`."""
        from ddimctl.files import refuse_existing
        from ddimctl.images.formats import check_apart
        from ddimctl.report import page

        if self.html is not None:
            page.check_target(self.html)
            refuse_existing(self.html, force)
            check_apart(self.html, [o for o in others if o is not None])

    def write_page(
        self,
        title: str,
        summary: str,
        sections: Sequence[Section],
        *,
        made: Mapping[str, Any],
        record: Mapping[str, Any] | Sequence[Any],
        side: int,
        console: Console,
    ) -> None:
        """Writes the page, with the command that this process was called with."""
        from ddimctl.report import page

        assert self.html is not None
        command = shlex.join(["ddimctl", *sys.argv[1:]])
        page.write(self.html, page.Page(title, summary, sections, made, command, record, side))
        console.notice(f"{self.html}: a page with all of it")


def of_round_trips(
    trips: Sequence[RoundTrip],
    pictures: Sequence[tuple[str, np.ndarray, Sequence[str]]],
    names: Sequence[str],
    *,
    lines: tuple[Any, Any],
) -> list[Section]:
    """The table, error against cost, the pictures, and each image's error.

    `pictures` are, for each shape of images, what that is called where there are several, the pixels of a comparison and
    what stands above its columns.
    """
    from ddimctl.report import html, runs, svg

    sections: list[Section] = [html.Table("Figures", *lines)]
    curves: dict[str, list[tuple[float, float]]] = {}
    for t in trips:
        if "mse" in t.values:
            curves.setdefault(t.said, []).append((t.evaluations, t.total("mse")))
    if any(len(points) > 1 and max(y for _, y in points) > 0 for points in curves.values()):
        sections.append(html.Charts("Error against cost", [svg.chart(runs.error_against_evaluations(curves))]))
    for i, (shape, pixels, heads) in enumerate(pictures):
        title = "Original and reconstruction" + (f": {shape}" if shape else "")
        table = "compared" + (f"-{i}" if i else "")
        sections.append(html.Comparison(title, pixels, heads, names, name=table))
    report = next((r for r in ("mse", *trips[0].values) if r in trips[0].values), None)
    if report is not None:
        header = ["image", *(f"{t.said}, S = {t.way.steps}" for t in trips)]
        each = [[name, *(figure(t.values[report][i]) for t in trips)] for i, name in enumerate(names)]
        sections.append(html.Table(f"Each image: {report}", header, each))
    return sections


def of_samples(
    pixels: np.ndarray, rows: Sequence[str], names: Sequence[str], *, kind: str, lines: tuple[Any, Any] | None
) -> list[Section]:
    """A row for each of a kind, such as numbers of steps, or all images; and the table where there is one."""
    from ddimctl.report import html

    if rows:
        tables = [html.Table("Consistency", *lines)] if lines is not None else []
        return [*tables, html.Pictures("Samples", pixels, names, rows, kind)]
    return [html.Gallery("Samples", pixels, names)]


def of_frames(
    pixels: np.ndarray, shown: Sequence[int], apart: Sequence[float], *, fps: float, columns: int
) -> list[Section]:
    """A film with its frames, or the grid where there are several columns; and how far apart frames are."""
    from ddimctl.report import html

    if columns > 1:
        return [
            html.Pictures("Grid", pixels, [str(i) for i in range(columns)],
                          [str(i) for i in range(len(pixels) // columns)], "row")
        ]  # fmt: skip
    film = html.Film("Frames", pixels[list(shown)], [str(i) for i in shown], fps)
    return [film, html.Table("How far apart frames are", *distances(apart))]


def distances(apart: Sequence[float]) -> tuple[list[str], list[list[str]]]:
    """How far each frame is from the next, as the header and the lines of a table."""
    return ["frames", "rms distance"], [[f"{i} to {i + 1}", figure(d)] for i, d in enumerate(apart)]


def of_cells(
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    curves: Mapping[str, Mapping[int, float]],
    samples: Sequence[tuple[str, np.ndarray]],
    *,
    floor: float | None,
    what: str,
) -> list[Section]:
    """The table, distance against S beside the paper's, the first images of each cell, by its row and S; other tables."""
    import numpy as np

    from ddimctl.report import html, svg

    charts = [svg.chart(c) for c in distances_of(curves, floor=floor, what=what)]
    names, pixels = zip(*samples, strict=True)
    numbers = [str(i) for i in range(len(pixels[0]))]
    first, *others = (html.Table(title, *lines) for title, lines in tables.items())
    return [
        first,
        html.Charts("Distance against steps", charts),
        html.Pictures(
            f"Samples of each cell{', of the first seed' * bool(others)}",
            np.concatenate(pixels),
            numbers,
            names,
            "sample",
        ),
        *others,
    ]


def distances_of(curves: Mapping[str, Mapping[int, float]], *, floor: float | None, what: str) -> list[Chart]:
    """Distance against S, and the paper's of the same rows."""
    from ddimctl.report import runs

    points = {name: [(float(s), v) for s, v in row.items()] for name, row in curves.items()}
    drawn = [runs.distance_against_steps(points, floor, what), runs.paper_distances(list(points))]
    return [c for c in drawn if c is not None]


@dataclass(frozen=True)
class Seen:
    """A latent as a line of a table: what it is called, its channels as one picture (H, W, 1), its figures, its verdict."""

    name: str
    pixels: np.ndarray
    figures: Mapping[str, float]
    verdict: str


def seen(found: Latent, record: Mapping[str, Any], file: str, *, most: int) -> list[Seen]:
    """The first latents of a file; `record` is `info`'s, `file` what it is called where it holds one alone."""
    import math

    import numpy as np

    from ddimctl.arrays import to_numpy
    from ddimctl.images.levels import to_pixels
    from ddimctl.images.sheets import sheet

    out = []
    for xT, image, told in zip(to_numpy(found.xT[:most]), found.images, record["health"], strict=False):
        channels = np.moveaxis(to_pixels(xT / 3), -1, 0)[..., None]
        across = math.ceil(math.sqrt(len(channels)))
        free = np.full((-len(channels) % across, *channels.shape[1:]), 128, np.uint8)
        name = file if len(found.xT) == 1 else f"{file}: {Path(plain(str(image['name']))).name}"
        figures = {kind: f["value"] for kind, f in told["figures"].items()}
        out.append(Seen(name, sheet(np.concatenate([channels, free]), across, gap=0), figures, told["verdict"]))
    return out


def in_common(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all latents of those records say of how they were made."""
    every = [r["provenance"] for r in records if r["kind"] == "latent"]
    said = {k: v for k, v in every[0].items() if isinstance(v, str | int | float) or k == "model"}
    return {k: v for k, v in said.items() if all(e.get(k) == v for e in every)}


def of_latents(found: Sequence[Seen], total: int, lines: tuple[Any, Any] | None = None) -> list[Section]:
    """All latents in a table that sorts, with a drawing of each; and the table of files, where there are several."""
    from ddimctl.report import html

    kinds = list(dict.fromkeys(kind for s in found for kind in s.figures))
    rows = [[s.name, *(figure(s.figures.get(kind)) for kind in kinds), s.verdict] for s in found]
    drawn = [html.picture(s.pixels, f"x_T of {s.name}") for s in found]
    title = "Latents" if total == len(found) else f"The first {len(found)} of {total:,} latents"
    table = html.Table(title, ["latent", *kinds, "verdict"], rows, drawn, "x_T")
    return [table, *([html.Table("Files", *lines)] if lines else [])]


def of_latent(found: Latent, most: int) -> list[Section]:
    """Each latent's channels, charts, verdict, and its figures beside noise's."""
    from ddimctl import health
    from ddimctl.report import html, latents, svg

    sections: list[Section] = []
    shown = found.xT[:most]
    examined = health.examine(shown)
    names = [Path(plain(str(image["name"]))).name for image in found.images]
    for p, figures in zip(latents.portraits(shown, names, examined), examined, strict=True):
        channels = [html.picture(c[..., None], f"channel {i} of x_T") for i, c in enumerate(p.channels)]
        drawn = [*channels, *(svg.chart(c, 420, 260) for c in p.charts)]
        sections.append(html.Charts(p.name, drawn, p.words))
        rows = [
            [f.name, figure(f.value), figure(f.expected), f"{figure(f.low)} … {figure(f.high)}",
             "typical" if f.typical else "not typical"]
            for f in figures
        ]  # fmt: skip
        sections.append(
            html.Table(f"Figures of {p.name}", ["figure", "x_T", "noise", "98 % of noise", "verdict"], rows)
        )
    return sections
