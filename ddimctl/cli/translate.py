"""``ddimctl translate``: encoded as one thing, decoded as another."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ddimctl import places
from ddimctl.cli import batches, inputs, looks, names, options
from ddimctl.cli.groups import flat, group, like
from ddimctl.cli.prompts import parse_prompt, parse_prompts
from ddimctl.cli.sized import Sized
from ddimctl.errors import SomeFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ddimctl.cli.console import Console
    from ddimctl.model import Condition, Model
    from ddimctl.recipe import Way
    from ddimctl.runs.plan import Item
    from ddimctl.translation import Side

GAP = 4  # pixels between images of a sheet


@group
class To:
    """What the images become."""

    PANEL: ClassVar[str] = "What"

    to_class: Annotated[
        str | None, typer.Option("--to-class", metavar="N,…", help="The class that they become; several for a sheet.")
    ] = None
    to_prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--to-prompt", metavar="TEXT", help="The prompt that they become; again for more, or @FILE, one a line."
        ),
    ] = None
    to_negative: Annotated[
        str | None, typer.Option("--to-negative", metavar="TEXT", parser=parse_prompt, help="Another negative prompt.")
    ] = None
    to_guidance: Annotated[float | None, typer.Option("--to-guidance", metavar="G", help="Another guidance.")] = None
    to_model: Annotated[
        str | None,
        typer.Option(
            "--to-model", metavar="MODEL", help="Another model, of the same shapes.", autocompletion=names.models
        ),
    ] = None

    def conditions(self, source: Condition) -> list[Condition]:
        """Each that is asked for: the source's, but for what is said here. Raises `UsageError` where nothing is."""
        classes = [] if self.to_class is None else options.parse_integers(self.to_class, "--to-class")
        prompts = parse_prompts(self.to_prompt or [])
        if classes and prompts:
            raise UsageError("--to-class and --to-prompt are two things to become", hint="choose one")
        changed: dict[str, Any] = {"negative": self.to_negative, "guidance": self.to_guidance}
        changed = {k: v for k, v in changed.items() if v is not None}
        if not (classes or prompts or changed or self.to_model):
            hint = "add --to-class, --to-prompt or --to-model"
            raise UsageError("it is not said what the images become", hint=hint)
        base = replace(source, **changed)
        if self.to_model is not None and not classes:
            base = replace(base, class_label=None)  # another model's classes are others
        return [replace(base, class_label=n) for n in classes] or [replace(base, prompt=p) for p in prompts] or [base]


@group
class From(Sized, To):
    """What the images are, and become."""


@group
class Kept(options.How):
    """The way."""

    keep_path: Annotated[
        bool, typer.Option("--keep-path", help="Direct inversion: with what DDIM's steps miss of the way up.")
    ] = False

    def way(self, condition: Condition) -> Way:
        from ddimctl.keeping import Keep
        from ddimctl.recipe import Way, spacing_under

        spacing = spacing_under(condition, self.solver, self.spacing)
        way = Way(self.solver, spacing, self.steps, self.tolerance, keep=Keep() if self.keep_path else None)
        way.check()
        return way


@group
class Sheet(options.Output, options.Listed):
    """Where the pictures go."""

    no_labels: Annotated[bool, like(looks.Looks, "no_labels")] = False


@flat
def translate(
    images: Annotated[list[str] | None, typer.Argument(help="Images, folders of them, or patterns.")] = None,
    *,
    what: From,
    how: Kept,
    fit: options.Fit,
    files: Sheet,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Encode images as one class, prompt or model, and decode them as another.

    One image that becomes one thing makes IMAGE.translated.png, or the file that -o names. Several make a sheet if -o names
    a file: each image in a line, with what it becomes; or one file each, in the folder that -o names.

    Class to class: --class 3 --to-class 5. Prompt to prompt: --prompt "a cat" --to-prompt "a dog" --to-guidance 5. Model to
    model: --to-model OTHER, which shares its shapes. --keep-path keeps more of the image: direct inversion.

    Example: ddimctl translate photo.png --class 2 --to-class 0,1 -o sheet.png
    """
    from ddimctl.arrays import on
    from ddimctl.images import formats, levels, plugins
    from ddimctl.implicit import rms
    from ddimctl.translation import Side, check
    from ddimctl.translation import translate as translated

    files = replace(files, output=places.of_kind(files.output, ".png"))
    console = said.console(files.output)
    way, preprocessing = how.way(what.condition()), fit.preprocessing()
    conditions = what.conditions(what.condition())
    batches.tell_left_out(images or [], console)
    items = batches.items_of(images or [], files, plugins.readable(), console=console)
    target = plan_target(items, files, targets=len(conditions))
    formats.check_apart(target, (item.source for item in items))
    net = inputs.open_model(what, machine, console)
    way.path(net.schedule)
    inputs.tell_of_way(way, net, console)
    other = net if what.to_model is None else open_other(what, conditions[0], machine, console=console)
    source, targets = Side(net, what.condition()), [Side(other, c) for c in conditions]
    for side in targets:
        check(source, side)
    work = inputs.evaluations(len(items), way.steps, way.solver)
    net = inputs.start_engine(net, machine, console, work=work * (1 + len(targets)))
    if what.to_model is not None:
        other = inputs.start_engine(other, machine, console, work=work * len(targets))
    source, targets = Side(net, source.condition), [Side(other if what.to_model else net, c) for c in conditions]
    single = batches.is_single(images or [], items, files)
    good, x0 = read(items, net, preprocessing, single=single, console=console)
    columns: list[Any] = []
    with console.bar(way.steps * (1 + len(targets)) * -(-len(x0) // machine.batch_size), "translating") as bar:
        solution = translated(
            source, x0, targets, way=way, batch_size=machine.batch_size, progress=bar,
            each=lambda _, x: columns.append(on("cpu", x)),
        )  # fmt: skip
    if solution.unconverged:
        console.notice(f"warning: {len(solution.unconverged)} of {len(x0)} images did not converge")
    for x, side in zip(columns, targets, strict=True):
        levels.check_finite(x, side.model.name)
    alone = len(items) == len(targets) == 1
    written = save(target, good, [x0, *columns], source=source, targets=targets, way=way, files=files, alone=alone)
    apart = [rms((x - x0) / 2) for x in columns]
    results = [{"to": said_of(s, source), "rms": d} for s, d in zip(targets, apart, strict=True)]
    record = {"files": [*map(str, written)], "images": len(x0), "failed": len(items) - len(x0), "results": results}
    console.data("\n".join(map(str, written)), record)
    if len(good) < len(items):
        raise SomeFailed(
            f"{len(items) - len(good)} of {len(items)} images could not be read", hint="the others are made"
        )


def plan_target(items: Sequence[Item], files: Sheet, *, targets: int) -> Path:
    """The file or folder that is written. Raises `UsageError` where it cannot be."""
    from ddimctl.files import refuse_existing
    from ddimctl.images import formats

    output = files.output
    if output is None:
        if len(items) > 1 or targets > 1:
            raise UsageError("several pictures are made", hint="name a sheet (.png) or a folder for them with -o")
        output = Path(f"{'image' if items[0].source == '-' else items[0].name}.translated.png")
    if output.suffix and not output.is_dir():
        formats.check_suffix(output)
        refuse_existing(output, files.force)
        return output
    for picture in pictures_in(output, items, targets):
        refuse_existing(picture, files.force, makes_folder=True)
    return output


def pictures_in(folder: Path, items: Sequence[Item], targets: int) -> list[Path]:
    """A picture for each that an image becomes, image by image."""
    ends = [""] if targets == 1 else [f".{j + 1}" for j in range(targets)]
    return [folder / f"{item.name}{end}.png" for item in items for end in ends]


def open_other(what: From, condition: Condition, machine: options.Machine, *, console: Console) -> Model:
    """The model that decodes."""
    asked = replace(
        what, model=what.to_model or what.model, class_label=condition.class_label, prompt=condition.prompt,
        negative=condition.negative, guidance=condition.guidance, config=None, schedule=None,
    )  # fmt: skip
    return inputs.open_model(asked, machine, console)


def read(
    items: Sequence[Item], model: Model, preprocessing: Any, *, single: bool, console: Console
) -> tuple[list[Item], Any]:
    """(the items that can be read, their images (N, C, H, W) in [−1, 1]); the others are told of.

    Raises what is wrong with the image where a `single` one is named, `SomeFailed` where none can be read.
    """
    from ddimctl.images import levels, reading
    from ddimctl.runs.reading import READERS, read_ahead

    def load(item: Item) -> Any:
        return reading.read(item.opens, model.channels, model.size, how=preprocessing)

    loaded = [one for part in read_ahead(items, load, READERS) for one in part]
    x0 = batches.stacked(loaded, single, console, tell=len(items) <= batches.SHOWN, convert=levels.to_tensor)
    if not len(x0):
        raise SomeFailed(f"none of {len(items)} images could be read")
    return [one.item for one in loaded if one.failure is None], x0


def said_of(side: Side, source: Side) -> str:
    """What an image becomes, in a few words: that in which it differs."""
    a, b = source.condition, side.condition
    parts = [side.model.name] if side.model.name != source.model.name else []
    parts += [f"class {b.class_label}"] if b.class_label is not None else []
    parts += [b.prompt] if b.prompt is not None else []
    parts += [f"not {b.negative}"] if b.negative is not None and b.negative != a.negative else []
    parts += [f"guidance {b.guidance:g}"] if b.guidance != a.guidance else []
    return ", ".join(parts) or side.model.name


def save(
    target: Path,
    items: Sequence[Item],
    columns: Sequence[Any],
    *,
    source: Side,
    targets: Sequence[Side],
    way: Way,
    files: Sheet,
    alone: bool,
) -> list[Path]:
    """Writes one picture where one is made `alone`, the sheet, or one picture each; what was written."""
    from ddimctl import origin
    from ddimctl.files import make_folder
    from ddimctl.images.levels import to_pixels
    from ddimctl.images.writing import save_image
    from ddimctl.translation import way_back

    def made(sides: Sequence[Side], sources: Sequence[Item]) -> dict[str, Any]:
        back = way_back(way, source, sides[0])
        parents = [origin.parent(item.source) for item in sources[: origin.MAX_PARENTS]]
        more: dict[str, Any] = {"from": said_of(source, sides[0]), "to": [said_of(s, source) for s in sides]}
        more |= {"keep_path": True} if back.keep is not None else {}
        back = back.on(sides[0].model.schedule)
        return origin.of("translate", sides[0].model, back, sides[0].condition, parents=parents, more=more)

    pixels = [to_pixels(x) for x in columns]
    if not target.suffix or target.is_dir():
        paths = pictures_in(target, items, len(targets))
        for path, (i, j) in zip(paths, product(range(len(items)), range(len(targets))), strict=True):
            make_folder(path.parent)
            save_image(path, pixels[1 + j][i], made=made([targets[j]], [items[i]]))
        return paths
    if alone:
        save_image(target, pixels[1][0], made=made(targets, items))
        return [target]
    save_image(target, sheet(pixels, items, source, targets=targets, files=files), made=made(targets, items))
    return [target]


def sheet(
    pixels: Sequence[np.ndarray], items: Sequence[Item], source: Side, *, targets: Sequence[Side], files: Sheet
) -> np.ndarray:
    """The images and what they become, a line each, with words around them."""
    import numpy as np

    from ddimctl.images import labels, sheets

    together = np.stack(pixels, axis=1)
    flat = together.reshape(-1, *together.shape[2:])
    flat = sheets.enlarge(flat, sheets.factor_to_see(flat.shape[1:3]))
    made = sheets.sheet(flat, len(pixels), GAP)
    if files.no_labels:
        return made
    words = labels.Labels(
        above=[said_of(source, targets[0]), *(said_of(s, source) for s in targets)],
        left=[item.name for item in items],
        caption=f"{source.model.name}: translated",
    )
    return labels.around(made, flat.shape[1:3], GAP, labels=words)
