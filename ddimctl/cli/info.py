"""``ddimctl info``: what a latent or a model is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl import places
from ddimctl.cli import inputs, looks, models, names, options, pages
from ddimctl.cli.console import Console, figure, plain, table
from ddimctl.cli.groups import flat, group, like
from ddimctl.errors import DDIMError, FileError, SomeFailed, UsageError

if TYPE_CHECKING:
    import numpy as np

    from ddimctl.latent import Latent

FILMS = (".mp4", ".m4v", ".mov")
MANY = 8  # latents in one file whose figures are all printed


@group
class Drawing(options.Output, looks.Dark, looks.Looks):
    """Where the picture goes."""

    output: Annotated[Path | None, like(options.Output, "output", metavar="PNG", help="Also draw x_T.")] = None


@flat
def info(
    file: Annotated[
        list[str],
        typer.Argument(
            help="Latent files, models, pictures or films that ddimctl made, folders of these, or - for stdin.",
            autocompletion=names.models,
        ),
    ],
    *,
    what: options.Config,
    files: Drawing,
    said: options.Said,
) -> None:
    """Tell what a file is: where a latent comes from and how much it resembles noise, what a model is, or how a picture
    was made.

    Of several files, or of what is in a folder, a table: a line a file.

    Each figure of a latent stands beside what noise of its shape gives: the mean, and the range of 98 % of draws; * marks
    those outside. Few latents of real images are like noise in all of them, and they decode none the worse: see "How much
    a latent resembles noise" in docs/inversion.md.

    Example: ddimctl info latent.pt
    """
    from ddimctl.files import refuse_existing
    from ddimctl.images import formats

    files = replace(files, output=places.of_kind(files.output, ".png"))
    console = said.console(files.output)
    if len(file) > 1 or is_many(file[0]):
        if files.output is not None:
            raise UsageError(
                f"-o draws one latent file, which {' '.join(map(plain, file[:3]))} is not", hint="name one"
            )
        table_of(file, what, files, console=console)
        return
    found = examine(file[0], what, console)
    x = found.latent
    if files.html is not None and x is None:
        raise UsageError(f"the page of --html is about a latent file, {file[0]} is none")
    if files.output is not None and x is None:
        raise UsageError(f"-o draws a latent file, which {plain(file[0])} is not", hint="leave it away")
    if files.output is not None and x is not None:
        formats.check_suffix(files.output)
        refuse_existing(files.output, files.force)
        formats.check_apart(files.output, file)
    if x is not None:
        files.check_page([files.output, file[0]], force=files.force)
    console.data(found.text, found.record)
    if x is None:
        return
    if files.html is not None:
        save_page(file[0], found, x, files=files, console=console)
    if files.shows(console):
        files.print_whole(*portraits_of(x, files.dark))
    if files.output is not None:
        drawn = draw(files.output, x) if files.no_labels else draw_portraits(files.output, x, files.dark)
        console.notice(f"{files.output}: {drawn}, black at -3 and white at 3")


def save_page(file: str, found: Found, x: Latent, *, files: Drawing, console: Console) -> None:
    """Writes the page about one file: of several latents a table, and the first ones at length."""
    about = {k: v for k, v in x.provenance.items() if isinstance(v, str | int | float) or k == "model"}
    sections = pages.of_latent(x, MANY)
    if len(x.xT) > 1:
        seen = pages.seen(x, found.record, plain(Path(file).name), most=pages.LATENTS)
        sections = [*pages.of_latents(seen, len(x.xT)), *sections]
    files.write_page(
        f"Latent {Path(file).name}", found.text.split("\n")[0], sections,
        made=about, record=found.record, side=x.xT.shape[-1], console=console,
    )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a file is, for people and for machines."""

    text: str
    record: dict[str, Any]
    latent: Latent | None = None


def examine(file: str, what: options.Config, console: Console) -> Found:
    """A latent file, a model, or a picture or film that says how it was made; - is standard input. Raises `DDIMError`."""
    from ddimctl import containers, latent
    from ddimctl.files import read_stdin

    if file == "-":
        data = read_stdin(latent.MAX_BYTES)
        if containers.could_be(data):
            found = latent.from_bytes(data, file, tensors=False)
            return Found(*about_latent(found), found)
        if (made := origin_in(data)) is not None:
            return Found(*about_picture(file, made))
        raise FileError("standard input is no latent, and no picture that ddimctl made")
    if (made := origin_of(file)) is not None:
        return Found(*about_picture(file, made))
    if what.config or what.schedule or what.guess or not inputs.is_latent(file):
        return Found(*models.describe(file, what, console))
    try:
        found = latent.load(Path(file), tensors=False)
    except FileError as e:  # checkpoints have the same suffixes
        try:
            return Found(*models.describe(file, what, console))
        except DDIMError as f:
            raise (f if "--config" in f.hint else e) from None  # what lacks only that is a model
    return Found(*about_latent(found), found)


def is_many(file: str) -> bool:
    """Whether it is a folder of files, and no model's."""
    from ddimctl.catalogue import bundled
    from ddimctl.checkpoints import folders

    path = Path(file)
    is_model = folders.recognises(path) or (path / "model_index.json").is_file()
    return file not in (*bundled(), "-") and path.is_dir() and not is_model


def table_of(given: list[str], what: options.Config, files: Drawing, *, console: Console) -> None:
    """A line a file, and with --html a page of all their latents. Raises `SomeFailed` if some cannot be told of."""
    from ddimctl.files import find
    from ddimctl.images.formats import READ_ONLY, SUFFIXES

    pictures = (*SUFFIXES, *READ_ONLY, *FILMS)
    known = (*inputs.LATENT_SUFFIXES, *pictures)
    listed = [x for f in given for x in (map(str, find(Path(f), known)) if is_many(f) else [f])]
    if not listed:
        raise UsageError(f"{given[0]} holds nothing to tell of", hint=f"looked for {' '.join(known)}")
    files.check_page(listed, force=files.force)
    rows, records, failed = [], [], 0
    seen: list[pages.Seen] = []
    for file in listed:
        try:
            found = examine(file, what, console)
        except (FileError, UsageError) as e:
            if Path(file).suffix.lower() not in pictures or not Path(file).is_file():
                failed += 1
                console.notice(f"failed: {e}")
                continue
            found = Found("", {"kind": "picture", "made": None})
        records.append({"file": file, **found.record})
        if files.html is not None and found.latent is not None:
            seen += pages.seen(found.latent, found.record, plain(file), most=pages.LATENTS - len(seen))
        rows.append([plain(cell) for cell in (file, *line_of(found.record))])
    header = ["file", "kind", "images", "size", "model", "made by", "resembles noise"]
    console.data(table(header, rows), records)
    if files.html is not None:
        if not seen:
            raise UsageError("the page of --html is about latent files, and here is none")
        total = sum(r["shape"][0] for r in records if r["kind"] == "latent")
        files.write_page(
            f"Latents: {', '.join(plain(Path(f).name) for f in given[:3])}{', …' if len(given) > 3 else ''}",
            f"{total:,} latents in {len(rows):,} files. x_T is drawn from -3, black, to 3, white.",
            pages.of_latents(seen, total, (header, rows)),
            made=pages.in_common(records), record=records, side=max(s.pixels.shape[1] for s in seen), console=console,
        )  # fmt: skip
    if failed:
        raise SomeFailed(f"{failed} of {len(listed)} files could not be told of")


def line_of(record: dict[str, Any]) -> list[str]:
    """The cells of a file's line in the table: kind, images, size, model, how it was made, whether it is like noise."""
    if record["kind"] == "latent":
        about, shape = record["provenance"], record["shape"]
        drawn = all("noise" in image for image in about["images"])
        way = "noise of a seed" if drawn else f"encode, {about['solver']}, {about['spacing']}, {about['steps']} steps"
        alike = sum(h["verdict"].startswith("like") for h in record["health"])
        resembles = f"{alike} of {shape[0]}" if shape[0] > 1 else "yes" if alike else "no"
        return ["latent", str(shape[0]), " x ".join(map(str, shape[1:])), about["model"]["name"], way, resembles]
    if record["kind"] == "model":
        size = record["image_size"]
        sides = " x ".join(map(str, [record["channels"], *size])) if size else "any"
        return ["model", "-", sides, str(record["name"]), "-", "-"]
    made = record["made"]
    if made is None:
        return ["picture", "1", "-", "-", "it does not say", "-"]
    model = made.get("model")
    way = ", ".join(str(made[k]) for k in ("command", "solver", "spacing") if k in made)
    way += f", {made['steps']} steps" if "steps" in made else ""
    name = str(model.get("name", "-")) if isinstance(model, dict) else "-"
    return ["picture", str(made.get("frames", 1)), "-", name, way, "-"]


def origin_of(file: str) -> dict[str, Any] | None:
    """How a picture or a film says that it was made; None if it is none, or says nothing."""
    from ddimctl.files import read_bytes
    from ddimctl.images.formats import READ_ONLY, SUFFIXES

    if Path(file).suffix.lower() not in (*SUFFIXES, *READ_ONLY, *FILMS):
        return None
    from ddimctl.images.reading import MAX_BYTES

    try:
        return origin_in(read_bytes(Path(file), MAX_BYTES))
    except DDIMError:  # which will be said of it as of any other file
        return None


def origin_in(data: bytes) -> dict[str, Any] | None:
    """As `origin_of`, in a file's content."""
    from ddimctl.images import metadata

    try:
        return metadata.find_in(data, "a picture")
    except DDIMError:
        return None


def about_picture(file: str, made: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    from ddimctl import origin

    rows = [(plain(key), plain(value)) for key, value in origin.lines(made)]
    width = max(len(key) for key, _ in rows)
    lines = [f"{file} says of itself:", *(f"  {key:{width}}  {value}" for key, value in rows)]
    return "\n".join(lines), {"kind": "picture", "made": made}


def about_latent(found: Latent) -> tuple[str, dict[str, Any]]:
    from ddimctl import health
    from ddimctl.keeping import PRECISIONS

    about = found.provenance
    examined = health.examine(found.xT)
    drawn = all("noise" in image for image in found.images)  # by `ddimctl sample --save-noise`
    origin = (
        f"{about['solver']}, {about['spacing']}, {about['steps']} steps,"
        f" {sum(about['evaluations']) / len(about['evaluations']):.4g} evaluations"
    )
    if drawn:
        origin = f"noise of a seed, not an image's; to be decoded in {about['steps']} steps, {about['spacing']}"
    if "made" in about:
        parents = [f"{figure(p['weight'])} {plain(p['name'])}" for p in about["made"]["parents"]]
        shown = ", ".join(parents[:MANY]) + (f" and {len(parents) - MANY} more" if len(parents) > MANY else "")
        origin = (
            f"{plain(about['made']['operation'])} of {shown}; decoded in {about['steps']} steps, {about['spacing']}"
        )
    if "to_level" in about:
        origin += f", part of the way: to σ = {figure(about['to_level'])}"
    lines = [
        f"{len(found.xT)} latent{'s' * (len(found.xT) > 1)} of {' × '.join(map(str, found.xT.shape[1:]))}",
        f"  model       {about['model']['name']} ({about['model']['digest'][:16]}…)",
        f"  {'made   ' if 'made' in about else 'drawn  ' if drawn else 'encoded'}     {origin}",
        f"  decode      {about['decoder']} along the same levels",
        f"  made by     ddimctl {about['ddimctl']} on {about['device']}, {about['dtype']}",
    ]
    if about.get("residuals"):
        said = f"all converged to {figure(about['tolerance'])}"
        if about["unconverged"]:
            said = f"{len(about['unconverged'])} did not converge to {figure(about['tolerance'])}"
        lines.append(f"  residual    at most {figure(max(about['residuals']))}; {said}")
    if added := [d for d in found.dithers if d is not None]:
        lines.append(f"  dither      noise of σ = {figure(added[0].sigma)}, seed {added[0].seed}; decode takes it away")
    if found.corrections is not None:
        kept = about["keep_path"]
        size = math.prod(found.corrections.shape) * PRECISIONS[kept["precision"]] / 1e6
        lines.append(f"  path kept   the last {kept['steps']} steps, {kept['precision']}, {size:.2g} MB")
    if about.get("returned"):
        lines.append(f"  comes back  within {figure(max(about['returned']))} of the state, relative")
    worst = [check.get("worst") for check in about.get("lossless") or []]
    if worst and all(isinstance(w, float) for w in worst):
        if about["lossless"][0].get("unit") is None:
            said = f"{'yes' if max(worst) < 0.5 else 'no'}, worst {max(worst):.2f} levels"
        else:
            said = f"z comes back, within {max(worst):.1e} of its size; 8-bit values do not"
        lines.append(f"  lossless    {said}")
    for i, (image, figures) in enumerate(zip(found.images, examined, strict=False)):
        if i == MANY:
            lines.append(f"… and {len(examined) - MANY} more")
            break
        rows = [
            [
                f.name,
                figure(finite(f.value)),
                figure(f.expected),
                f"{figure(f.low)} … {figure(f.high)}",
                "" if f.typical else "*",
            ]
            for f in figures
        ]
        lines += ["", f"{plain(image['name'])}: {health.verdict(figures)}"]
        lines.append(table(["figure", "x_T", "noise", "98 % of noise", ""], rows))
    record = {
        "kind": "latent",
        "shape": list(found.xT.shape),
        "provenance": about,
        "health": [
            {
                "verdict": health.verdict(fs),
                "figures": {f.name: {"value": f.value, "noise": f.expected, "range": [f.low, f.high]} for f in fs},
            }
            for fs in examined
        ],
    }
    return "\n".join(lines), record


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def draw(path: Path, found: Latent) -> str:
    """x_T as an image, −3 … 3 from black to white, a contact sheet if there are several. Says what was drawn.

    An image has one channel or three: of other numbers only the first ones are drawn.
    """
    from ddimctl.images import levels, sheets, writing

    channels = found.xT.shape[1]
    shown = 1 if channels < 3 else 3
    pixels = levels.to_pixels(found.xT[:, :shown] / 3)
    pixels = sheets.enlarge(pixels, sheets.factor_to_see(pixels.shape[1:3]))
    writing.save_image(path, sheets.sheet(pixels, columns=min(8, len(pixels))))
    return "x_T" if shown == channels else f"the first {shown} of {channels} channels of x_T"


def draw_portraits(path: Path, found: Latent, dark: bool) -> str:
    """Each latent with its channels, its histogram and spectrum beside noise's, and the verdict. Says what was drawn."""
    from ddimctl.images import writing

    writing.save_image(path, portraits_of(found, dark)[1])
    return "x_T" if len(found.xT) <= MANY else f"the first {MANY} of {len(found.xT)} x_T"


def portraits_of(found: Latent, dark: bool) -> tuple[np.ndarray, np.ndarray]:
    """(the first channels, pixel by pixel; the whole picture of what they come to) of the first latents of a file."""
    from ddimctl import health
    from ddimctl.images import labels, levels, portrait, sheets
    from ddimctl.report import latents

    shown = found.xT[:MANY]
    names = [plain(str(image["name"])) for image in found.images]
    drawn = latents.portraits(shown, names, health.examine(shown))
    whole = portrait.draw(list(drawn), labels.DARK if dark else labels.LIGHT)
    return sheets.sheet(levels.to_pixels(shown[:, :1] / 3), len(shown), gap=1), whole
