"""The options that commands share, each written once, and their defaults. Flag beats environment beats default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ddimctl.errors import UsageError

DEFAULT_MODEL = "fashion-mnist"
COLOUR_MODEL = "emoji"  # the bundled one that keeps colour
DEFAULT_STEPS = 20
DEFAULT_SOLVER = "ab2"
DEFAULT_SPACING = "karras"
DEFAULT_BATCH = 64

MODEL_HELP = "A bundled model's name, a model folder, a checkpoint file, or a hub id (OWNER/NAME)."
SOLVER_HELP = "How the ODE is integrated: ab2, ab2mix, ddim, heun, exact, adaptive."
SPACING_HELP = "Where the noise levels lie: karras, linear, quadratic, log, arsinh."
STEPS_HELP = "Steps along the path, each way."

Model = Annotated[str, typer.Option("-m", "--model", envvar="DDIMCTL_MODEL", help=MODEL_HELP, metavar="MODEL")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="NAME|FILE", help="What an OpenAI or DDIM checkpoint does not say: a preset, or JSON."
    ),
]
Class = Annotated[
    int | None,
    typer.Option("--class", metavar="N", min=0, help="The class that a class-conditional model is asked for."),
]
Steps = Annotated[int, typer.Option("--steps", metavar="S", help=STEPS_HELP)]
Solver = Annotated[str, typer.Option("--solver", metavar="NAME", help=SOLVER_HELP)]
Spacing = Annotated[str, typer.Option("--spacing", metavar="NAME", help=SPACING_HELP)]

# Where a latent file says what to use, the option says otherwise.
OtherModel = Annotated[
    str | None, typer.Option("-m", "--model", help="Another model than the file's.", metavar="MODEL")
]
OtherSteps = Annotated[
    int | None, typer.Option("--steps", metavar="S", help="Another number of steps than the file's.")
]
OtherSolver = Annotated[str | None, typer.Option("--solver", metavar="NAME", help="Another solver than the file's.")]
OtherSpacing = Annotated[str | None, typer.Option("--spacing", metavar="NAME", help="Other levels than the file's.")]

Tolerance = Annotated[
    float | None,
    typer.Option("--tolerance", metavar="X", help="For solvers that iterate: the largest relative residual."),
]
Lossless = Annotated[
    bool, typer.Option("--lossless", help="Make sure that decoding gives back every 8-bit value (solver exact).")
]
Device = Annotated[
    str, typer.Option("--device", envvar="DDIMCTL_DEVICE", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps.")
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine", envvar="DDIMCTL_ENGINE", metavar="NAME", help="auto, torch, compile or openvino: see bench."
    ),
]
Precision = Annotated[
    str, typer.Option("--precision", metavar="NAME", help="float32, or bf16: faster, and about 8 bits exact.")
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Images that go through the network at once.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The number that all randomness follows from.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No notices and no progress bar.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]

# How an image is made to fit the model.
DEFAULT_MAX_PIXELS = 100_000_000
Fit = Annotated[
    str, typer.Option("--fit", metavar="HOW", help="crop (the middle), pad (with the background) or stretch.")
]
Background = Annotated[
    str, typer.Option("--background", metavar="COLOUR", help="Seen through transparency: white, #808080, …")
]
Frame = Annotated[
    int | None, typer.Option("--frame", metavar="N", min=0, help="Which frame of an animation or page, from 0.")
]
Range = Annotated[
    str | None, typer.Option("--range", metavar="A,B", help="Black and white of floats, or of more than 8 bits.")
]
MaxPixels = Annotated[
    int, typer.Option("--max-pixels", metavar="N", min=1, help="Images with more pixels are refused unread.")
]

# Many files at once.
FromFile = Annotated[
    str | None, typer.Option("--from-file", metavar="LIST", help="Work on the files in a list, one a line; - reads it.")
]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts, for several machines.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def parse_path(text: str) -> Path:
    """A path. Raises `UsageError` on the empty one, which would mean the folder one is in."""
    if not text:
        raise UsageError(
            "an empty name was given", hint="is a variable of the shell not set? . is the folder you are in"
        )
    return Path(text)


def parse_output(text: str) -> Path:
    """As `parse_path`, for what is written. Raises `UsageError` on -, too."""
    if text == "-":
        raise UsageError("standard output is no place for files", hint="./- would name one that is called so")
    return parse_path(text)


Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="PATH", parser=parse_output, help="Where the result goes."),
]


def default_model() -> str:
    """The model where neither a flag nor a file names one."""
    return os.environ.get("DDIMCTL_MODEL") or DEFAULT_MODEL


def parse_list(text: str) -> list[str]:
    """ "a,b" → ["a", "b"]. Raises `UsageError` if there is nothing in it."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"{text!r} names nothing", hint="give one name, or several with commas between")
    return parts


def preprocessing(fit: str, background: str, frame: int | None, value_range: str | None, max_pixels: int) -> Any:
    """The `preprocessing.Preprocessing` that the options ask for. Raises `UsageError` if they make no sense."""
    from ddimctl.images.preprocessing import Preprocessing

    try:
        low, high = map(float, value_range.split(",")) if value_range is not None else (0.0, 1.0)
    except ValueError:
        raise UsageError(f"--range takes two numbers with a comma between, not {value_range!r}") from None
    return Preprocessing(fit, background, frame, None if value_range is None else (low, high), max_pixels)


def parse_integers(text: str, option: str) -> tuple[int, ...]:
    """ "1,2,3" → (1, 2, 3)."""
    try:
        return tuple(int(p) for p in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes whole numbers with commas between, not {text!r}") from None


def parse_size(text: str, option: str) -> tuple[int, int]:
    """ "32" → (32, 32), "48x64" → (48, 64): height × width."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and 0 < int(p) <= 4096 for p in parts):
        raise UsageError(f"{option} {text!r} is not a size", hint="such as 32, or 48x64 for height x width")
    return int(parts[0]), int(parts[-1])
