"""The options of the command line, each written once, in groups that belong together. Flag beats environment beats default.

See `ddimctl.cli.groups` for how a command takes them. An option that only one command has stands in that command's file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Option

from ddimctl import places
from ddimctl.cli import defaults, looks, names
from ddimctl.cli.console import Console
from ddimctl.cli.groups import group, like
from ddimctl.cli.prompts import parse_prompt
from ddimctl.cli.values import parse_folder as parse_folder
from ddimctl.cli.values import parse_integers as parse_integers
from ddimctl.cli.values import parse_list as parse_list
from ddimctl.cli.values import parse_model as parse_model
from ddimctl.cli.values import parse_output as parse_output
from ddimctl.cli.values import parse_path as parse_path
from ddimctl.cli.values import parse_seeds as parse_seeds
from ddimctl.cli.values import parse_size as parse_size
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from ddimctl.images.preprocessing import Preprocessing
    from ddimctl.model import Condition, Model

DEFAULT_MODEL = "fashion-mnist"
COLOUR_MODEL = "emoji"  # the bundled one that keeps colour
DEFAULT_STEPS = 20
LOSSLESS_STEPS = 12  # fewest evaluations without loss, of both bundled models (docs/inversion.md)
LOSSLESS_STEPS_HELP = f"Steps along the path, each way: {DEFAULT_STEPS}, or {LOSSLESS_STEPS} with --lossless."
DEFAULT_SOLVER = "ab2"
DEFAULT_SPACING = "karras"
DEFAULT_BATCH = 64
DEFAULT_MAX_PIXELS = 100_000_000

MODEL_HELP = "A bundled model's name, a model folder, a checkpoint file, or a hub id (OWNER/NAME)."
SPACING_HELP = f"Where the noise levels lie: {', '.join(names.SPACINGS)}."
SOLVER_HELP = f"How the ODE is integrated: {', '.join(names.SOLVERS)}."


# What


@group
class Config:
    """What is said about a model that does not say it itself."""

    PANEL: ClassVar[str] = "What"

    config: Annotated[
        str | None, Option("--config", metavar="NAME|FILE", help="What a checkpoint does not say of its network.")
    ] = None
    schedule: Annotated[
        str | None,
        Option("--schedule", metavar="NAME|FILE", help="Its noise levels and prediction: FILE, or linear,v."),
    ] = None
    guess: Annotated[
        bool, Option("--guess", help="Where nobody says a checkpoint's noise levels or prediction, take DDPM's.")
    ] = False


@group
class Asked(Config):
    """What a model is asked for."""

    class_label: Annotated[
        int | None,
        Option("--class", metavar="N", min=0, help="The class that a class-conditional model is asked for."),
    ] = None
    prompt: Annotated[
        str | None,
        Option(
            "--prompt", metavar="TEXT", parser=parse_prompt, help="What a model that hears text is asked for, or @FILE."
        ),
    ] = None
    negative: Annotated[
        str | None,
        Option(
            "--negative",
            metavar="TEXT",
            parser=parse_prompt,
            help="What guidance leads away from; else no text.",
        ),
    ] = None
    guidance: Annotated[
        float, Option("--guidance", metavar="G", help="How far the prompt leads: ε_u + G (ε_c − ε_u).")
    ] = 1.0
    distilled: Annotated[
        float | None,
        Option("--distilled", metavar="G", help="What a distilled model is told of guidance; by default 3.5."),
    ] = None

    def condition(self) -> Condition:
        from ddimctl.model import Condition

        g: float | None = self.guidance
        return Condition(self.class_label, self.prompt, self.negative, 1.0 if g is None else g, self.distilled)


@group
class What(Asked):
    """The model."""

    model: Annotated[
        str,
        Option("-m", "--model", envvar="DDIMCTL_MODEL", metavar="MODEL", parser=parse_model, help=MODEL_HELP,
               autocompletion=names.models),
    ] = DEFAULT_MODEL  # fmt: skip


@group
class OtherWhat(Asked):
    """The model, where a latent file says it and the command line may say otherwise."""

    model: Annotated[str | None, like(What, "model", envvar=None, help="Another model than the file's.")] = None
    prompt: Annotated[str | None, like(Asked, "prompt", help="Another prompt than the file's.")] = None
    negative: Annotated[str | None, like(Asked, "negative", help="Another negative prompt than the file's.")] = None
    guidance: Annotated[float | None, like(Asked, "guidance", help="Another guidance than the file's.")] = None  # type: ignore[assignment]


# How


@group
class Iterating:
    """How well the solvers that iterate solve."""

    PANEL: ClassVar[str] = "How"

    tolerance: Annotated[
        float | None,
        Option("--tolerance", metavar="X", help="For solvers that iterate: the largest relative residual."),
    ] = None


@group
class Along(Iterating):
    """The way between image and latent, but for its number of steps."""

    solver: Annotated[
        str,
        Option(
            "--solver",
            metavar="NAME",
            help=SOLVER_HELP,
            autocompletion=names.one_of(*names.SOLVERS),
        ),
    ] = DEFAULT_SOLVER
    spacing: Annotated[
        str | None,
        Option(
            "--spacing",
            metavar="NAME",
            help=f"{SPACING_HELP} By default tuned where it wins, else {DEFAULT_SPACING}; with exact log, under guidance"
            " guided.",
            autocompletion=names.one_of(*names.SPACINGS),
        ),
    ] = None


@group
class How(Along):
    """The way between image and latent."""

    steps: Annotated[int, Option("--steps", metavar="S", help="Steps along the path, each way.")] = DEFAULT_STEPS


def steps_or_default(steps: int | None, *, lossless: bool) -> int:
    """The number of steps asked for, or what there is to be without one."""
    return steps if steps is not None else LOSSLESS_STEPS if lossless else DEFAULT_STEPS


@group
class OtherHow(Iterating):
    """The way, where a latent file says it and the command line may say otherwise."""

    steps: Annotated[int | None, like(How, "steps", help="Another number of steps than the file's.")] = None
    solver: Annotated[str | None, like(How, "solver", help="Another solver than the file's.")] = None
    spacing: Annotated[str | None, like(How, "spacing", help="Other levels than the file's.")] = None


@group
class Theirs(OtherHow):
    """The way; of tensors that diffusers sampled from, by its scheduler."""

    from_diffusers: Annotated[
        Path | None,
        Option(
            "--from-diffusers", metavar="PATH", parser=parse_path,
            help="Bare tensors are x_T of this scheduler_config.json, or of a model folder's.",
        ),
    ] = None  # fmt: skip


@group
class Fit:
    """How an image is made to fit the model."""

    PANEL: ClassVar[str] = "How"

    fit: Annotated[
        str,
        Option(
            "--fit",
            metavar="HOW",
            help="crop (the middle), pad (with the background) or stretch.",
            autocompletion=names.one_of(*names.FITS),
        ),
    ] = "crop"
    background: Annotated[
        str, Option("--background", metavar="COLOUR", help="Seen through transparency: white, #808080, …")
    ] = "white"
    frame: Annotated[
        int | None, Option("--frame", metavar="N", min=0, help="Which frame of an animation or page, from 0.")
    ] = None
    value_range: Annotated[
        str | None, Option("--range", metavar="A,B", help="Black and white of floats, or of more than 8 bits.")
    ] = None
    max_pixels: Annotated[
        int, Option("--max-pixels", metavar="N", min=1, help="Images with more pixels are refused unread.")
    ] = DEFAULT_MAX_PIXELS

    def preprocessing(self) -> Preprocessing:
        """What the options ask for. Raises `UsageError` if they make no sense."""
        from ddimctl.images.preprocessing import Preprocessing

        ends = None
        if self.value_range is not None:
            try:
                low, high = map(float, self.value_range.split(","))
            except ValueError:
                raise UsageError(f"--range takes two numbers with a comma between, not {self.value_range!r}") from None
            ends = (low, high)
        return Preprocessing(self.fit, self.background, self.frame, ends, self.max_pixels)


@group
class Seeded:
    """What randomness follows from."""

    PANEL: ClassVar[str] = "How"

    seed: Annotated[int, Option("--seed", metavar="N", min=0, help="The number that all randomness follows from.")] = 0


# Files


@group
class Forced:
    """Whether what is there may be written over."""

    PANEL: ClassVar[str] = "Files"

    force: Annotated[bool, Option("--force", help="Overwrite files that exist.")] = False


@group
class Output(Forced):
    """Where the result goes."""

    output: Annotated[
        Path | None,
        Option("-o", "--output", metavar="PATH", parser=parse_output, help="Where the result goes; - is stdout."),
    ] = None


@group
class Listed:
    """What is worked on, where that may be many files."""

    PANEL: ClassVar[str] = "Files"

    from_file: Annotated[
        str | None,
        Option("--from-file", metavar="LIST", help="Work on the files in a list, one a line; - reads it."),
    ] = None
    null: Annotated[
        bool, Option("-0", "--null", metavar="", help="The list ends its names as find -print0 does, with NUL.")
    ] = False


@group
class Planned:
    """What part of it is done, and whether it is."""

    PANEL: ClassVar[str] = "Files"

    shard: Annotated[
        str | None, Option("--shard", metavar="I/N", help="Only the I-th of N parts, for several machines.")
    ] = None
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be done, and do nothing.")] = False


@group
class Batch(Output, Listed, Planned):
    """A run over many files."""


@group
class Plotted(Forced, looks.Dark):
    """A plot beside the table."""

    plot: Annotated[Path | None, Option(metavar="FILE", help="Draw it (.png, .svg, .pdf).")] = None


# Machine


@group
class Device:
    """What the work is done on."""

    PANEL: ClassVar[str] = "Machine"

    device: Annotated[
        str,
        Option(
            "--device",
            envvar="DDIMCTL_DEVICE",
            metavar="DEVICE",
            help="auto, cpu, cuda, cuda:1, mps.",
            autocompletion=names.one_of(*names.DEVICES),
        ),
    ] = "auto"


@group
class Machine(Device):
    """What the work is done on, and by what."""

    engine: Annotated[
        str,
        Option(
            "--engine",
            envvar="DDIMCTL_ENGINE",
            metavar="NAME",
            help="auto, torch, compile or openvino: see bench.",
            autocompletion=names.one_of("auto", *names.ENGINES),
        ),
    ] = "auto"
    precision: Annotated[
        str,
        Option(
            "--precision",
            metavar="NAME",
            help="float32; bf16: faster, about 8 bits exact; fp16: 11, on GPUs.",
            autocompletion=names.one_of(*names.PRECISIONS),
        ),
    ] = "float32"
    batch_size: Annotated[
        int, Option("--batch-size", metavar="N", min=1, help="Images that go through the network at once.")
    ] = DEFAULT_BATCH
    low_memory: Annotated[
        str | None,
        Option(
            "--low-memory",
            metavar="NAME,…",
            help="slice: attention in parts. offload: weights wait off the GPU.",
            autocompletion=names.some_of(*names.SAVINGS),
        ),
    ] = None

    def placed(self, model: Model) -> Model:
        """The model as it is where the work is done."""
        return model


# Output


@group
class Said:
    """What a command says."""

    PANEL: ClassVar[str] = "Output"

    json: Annotated[bool, Option("--json", help="One JSON object on stdout instead of text.")] = False
    quiet: Annotated[bool, Option("-q", "--quiet", help="No notices and no progress bar.")] = False
    verbose: Annotated[bool, Option("-v", "--verbose", help="Say more on stderr.")] = False

    def console(self, output: Path | None = None) -> Console:
        """Where `output` is standard output, the file alone goes there, and all else to stderr."""
        piped = places.is_stdout(output)
        if piped and self.json:
            raise UsageError("the file and the JSON would both go to standard output", hint="leave one of them away")
        return Console(self.quiet, self.verbose, self.json, piped)


def default_model() -> str:
    """The model where neither a flag nor a file names one."""
    return os.environ.get("DDIMCTL_MODEL") or defaults.of_top("model") or DEFAULT_MODEL
