"""What `reconstruct` makes of round trips: the table, the record, the sheet, the plot and the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl.cli import looks, options, pages
from ddimctl.cli.compared import alike, shape_of
from ddimctl.cli.console import Console, figure, table
from ddimctl.cli.groups import group, like

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ddimctl.cli.compared import Subject
    from ddimctl.roundtrip import RoundTrip

GAP = 4  # pixels between the images of a sheet


@group
class Sheet(options.Output, options.Listed, options.Plotted, looks.Looks):
    """What is reconstructed, and where the pictures go."""

    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", min=1, help="Only the first N images.")] = (
        None
    )
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="How many images the sheet of -o shows.")] = 8
    plot: Annotated[
        Path | None, like(options.Plotted, "plot", help="Draw error against evaluations (.png, .svg, .pdf).")
    ] = None

    @property
    def kept(self) -> int:
        """How many images are kept, to be shown."""
        sheet = self.output is not None or self.show
        return max(self.rows if sheet else 0, pages.SHOWN if self.html is not None else 0)


def report(subjects: Sequence[Subject], reports: Sequence[str], *, files: Sheet, console: Console) -> None:
    """Says and writes all of it."""
    from ddimctl import plots
    from ddimctl.images import sheets
    from ddimctl.report import runs

    trips, n = trips_of(subjects), subjects[0].count
    for trip in trips:
        if trip.unconverged:
            folds = sum(f.fold for f in trip.failures)
            console.notice(
                f"warning: {trip.of and trip.of + ': '}{trip.way.solver} with {trip.way.steps} steps did not converge"
                f" on {trip.unconverged} of {n} images (residual at most {max(trip.residuals):.1e})"
                + (f"; on {folds} of them DDIM's step folds: it is not injective" if folds else "")
            )
    console.data(table(*as_lines(trips, reports)), as_record(subjects, reports))
    if files.output is not None or files.shows(console):
        gains = save_sheet(files, subjects, console)
    if files.output is not None:
        several = len({t.way.spacing for t in trips}) > 1
        gained = [
            f"{t.of and t.of + ' '}{t.way.solver} {t.way.spacing + ' ' if several else ''}{t.way.steps}"
            f" × {sheets.stated(gain)}"
            for t, gain in zip(trips, gains, strict=True)
        ]
        console.notice(
            f"{files.output}: original, then for each line its reconstruction and the difference: {', '.join(gained)}"
            + (f"; {files.rows} of {n} shown" if files.rows < n else "")
        )
    if files.html is not None:
        save_page(subjects, reports, files=files, console=console)
    if files.plot is not None:
        lines: dict[str, list[tuple[float, float]]] = {}
        for t in trips:
            lines.setdefault(t.said, []).append((t.evaluations, t.total("mse")))
        title = f"{names_of(subjects)}, {n} image{'s' * (n != 1)}"
        plots.draw(files.plot, [runs.error_against_evaluations(lines)], title=title, dark=files.dark)
        console.notice(f"{files.plot}: error against evaluations")


def trips_of(subjects: Sequence[Subject]) -> list[RoundTrip]:
    return [trip for s in subjects for trip in s.trips]


def names_of(subjects: Sequence[Subject]) -> str:
    """The models in words."""
    return " and ".join(s.label or s.model.name for s in subjects)


def as_lines(trips: Sequence[RoundTrip], reports: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The table's header, and its lines."""
    from ddimctl.paper import TABLE_2

    paper = "mse" in reports and any(t.way.steps in TABLE_2 for t in trips)
    several = any(t.of for t in trips)
    header = ["model"] * several + ["solver", "spacing", "steps", "evaluations", *reports] + ["paper's mse"] * paper
    rows = []
    for t in trips:
        both = (sum(e) / len(e) for e in (t.encode_evaluations, t.decode_evaluations))
        row = [t.of] * several + [t.way.solver, t.way.spacing, str(t.way.steps), "+".join(f"{e:.4g}" for e in both)]
        row += [figure(int(t.total(r)) if r == "wrong_pixels" else t.total(r)) for r in reports]
        rows.append(row + ([figure(TABLE_2.get(t.way.steps))] if paper else []))
    return header, rows


def as_record(subjects: Sequence[Subject], reports: Sequence[str]) -> dict[str, Any]:
    """The same for machines, with each image's values; images that share a prompt stand together, as `captions` says."""
    from ddimctl import origin

    first = subjects[0]
    record: dict[str, Any] = {"model": origin.named(first.model)}
    if len(subjects) > 1:
        shapes = {s.label: list(s.model.image_shape) for s in subjects}
        record = {"models": [{"name": s.label, "digest": s.model.digest, "shape": shapes[s.label]} for s in subjects]}
    record["images"] = first.count
    if len(set(first.under)) > 1:
        pairs = zip(first.names, first.under, strict=True)
        record["captions"] = [{"image": name, "prompt": condition.prompt} for name, condition in pairs]
    return record | {"results": [result_of(t, reports) for t in trips_of(subjects)]}


def result_of(t: RoundTrip, reports: Sequence[str]) -> dict[str, Any]:
    from ddimctl.paper import TABLE_2

    n = len(t.encode_evaluations)
    return {
        **({"model": t.of} if t.of else {}),
        "solver": t.way.solver,
        "spacing": t.way.spacing,
        "steps": t.way.steps,
        "encode_evaluations": sum(t.encode_evaluations) / n,
        "decode_evaluations": sum(t.decode_evaluations) / n,
        **{r: t.total(r) for r in reports},
        "paper": TABLE_2.get(t.way.steps),
        "unconverged": t.unconverged,
        "residuals": t.residuals,
        "seconds": t.seconds,
        "each": {r: t.values[r] for r in reports},
    }


def made_of(subjects: Sequence[Subject], more: dict[str, Any]) -> dict[str, Any]:
    """What the sheet and the page say of how they were made."""
    from ddimctl import origin
    from ddimctl.model import NOTHING

    first = subjects[0]
    parents = [origin.parent(item.source) for item in first.items[: origin.MAX_PARENTS]]
    if len(subjects) > 1:
        more = {**more, "models": [f"{s.label} ({s.model.digest})" for s in subjects]}
    condition = first.under[0] if len(set(first.under)) == 1 else NOTHING
    return origin.of("reconstruct", first.model, first.trips[0].way, condition, parents=parents, more=more)


def tile_of(same: Sequence[Subject]) -> tuple[int, int]:
    """How large images of that shape are drawn on a sheet."""
    from ddimctl.images.sheets import factor_to_see

    height, width = same[0].model.size
    factor = factor_to_see((height, width))
    return factor * height, factor * width


def check_sheet(files: Sheet, subjects: Sequence[Subject], n: int) -> None:
    """Raises `UsageError` if -o cannot hold the sheet of `n` images."""
    if files.output is not None:
        groups = alike(subjects)
        columns = sum(1 + 2 * sum(len(s.ways) for s in same) for same in groups)
        tiles = [tile_of(same) for same in groups]
        size = (max(h for h, _ in tiles), max(w for _, w in tiles))
        files.check_sheet(files.output, min(n, files.rows), size, columns=columns, gap=GAP)


def comparisons(subjects: Sequence[Subject], rows: int) -> list[tuple[list[RoundTrip], np.ndarray, list[float]]]:
    """For each shape of images: the round trips, original | reconstruction | amplified difference (| …), and the gains."""
    import torch

    from ddimctl.images.sheets import comparison

    out = []
    for same in alike(subjects):
        x0, trips = same[0].shown[:rows], trips_of(same)
        out.append((trips, *comparison(torch.stack(x0), [torch.stack(t.shown[: len(x0)]) for t in trips])))
    return out


def save_sheet(files: Sheet, subjects: Sequence[Subject], console: Console) -> list[float]:
    """Writes and shows original | reconstruction | amplified difference (| the next line's …), a row an image. Models whose
    images are of another shape begin with their own original.

    Gives each line's gain.
    """
    import numpy as np

    from ddimctl.images.sheets import alike as tiles
    from ddimctl.images.sheets import enlarge, stated
    from ddimctl.images.writing import save_image

    first, groups = subjects[0], alike(subjects)
    compared = comparisons(subjects, files.rows)
    rows = len(first.shown[: files.rows])
    heads: list[str] = []
    for same, (trips, _, gains) in zip(groups, compared, strict=True):
        original = "original" if len(groups) == 1 else f"original\n{shape_of(same[0].model)}"
        heads += looks.heads(trips, gains, original)

    def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
        """Rows of all groups beside each other."""
        cut = [p.reshape(rows, -1, *p.shape[1:]) for p in tiles(parts)]
        whole = np.concatenate(cut, axis=1)
        return whole.reshape(-1, *whole.shape[2:])

    columns, n = len(heads), first.count
    caption = f"{names_of(subjects)}: " + (f"{rows} of " if rows < n else "") + f"{n} images"
    caption += "; the figures are of all" if rows < n else ""
    words: dict[str, Any] = {"above": heads, "left": first.names[:rows], "caption": caption}
    gains_of = {id(t): g for trips, _, gains in compared for t, g in zip(trips, gains, strict=True)}
    gains = [gains_of[id(t)] for t in trips_of(subjects)]
    if files.output is not None:
        lines = [
            f"{t.said}, {t.way.steps} steps, × {stated(g)}" for t, g in zip(trips_of(subjects), gains, strict=True)
        ]
        factors = [tile_of(same)[0] // same[0].model.size[0] for same in groups]
        large = joined([enlarge(p, f) for (_, p, _), f in zip(compared, factors, strict=True)])
        sheet = files.sheet(large, columns, GAP, **words)
        save_image(files.output, sheet, made=made_of(subjects, {"lines": lines}))
    if files.shows(console):
        files.print_sheet(joined([p for _, p, _ in compared]), columns, **words)
    return gains


def save_page(subjects: Sequence[Subject], reports: Sequence[str], *, files: Sheet, console: Console) -> None:
    """Writes the page of --html."""
    first, trips, several = subjects[0], trips_of(subjects), len(alike(subjects)) > 1
    shown = first.names[: len(first.shown)]
    pictures = [
        (shape_of(same[0].model) if several else "", p, looks.heads(t, gains))
        for same, (t, p, gains) in zip(alike(subjects), comparisons(subjects, len(shown)), strict=True)
    ]
    sections = pages.of_round_trips(trips, pictures, shown, lines=as_lines(trips, reports))
    some = f", {len(shown)} of them shown" if len(shown) < first.count else ""
    ways = {
        name: ", ".join(dict.fromkeys(str(getattr(t.way, name)) for t in trips))
        for name in ("solver", "spacing", "steps")
    }
    files.write_page(
        f"Round trips of {names_of(subjects)}", f"{first.count} images{some}, encoded and decoded again.", sections,
        made=made_of(subjects, ways), record=as_record(subjects, reports), side=max(s.model.size[1] for s in subjects),
        console=console,
    )  # fmt: skip
