"""What several commands take in: models, images and latents, with the notices that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.cli import options, prompts
from ddimctl.cli.console import Console
from ddimctl.errors import FileError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ddimctl.cli.sized import OtherTiles
    from ddimctl.latent import Latent
    from ddimctl.model import Condition, Model
    from ddimctl.recipe import Way
    from ddimctl.runs.work import Decoding


LATENT_SUFFIXES = (".pt", ".safetensors")
BARE_SUFFIXES = (*LATENT_SUFFIXES, ".npy", ".npz")  # of other programs' tensors
EVALUATIONS = {"heun": 2, "exact": 4, "adaptive": 10}  # about, a step


def open_model(
    what: options.Asked, machine: options.Device, console: Console, *, reference: str | None = None
) -> Model:
    """The model a command works with. What was guessed about it is a notice, what was chosen a detail.

    `reference` is what it is called where `what` does not say it. Raises `UsageError` if it cannot be asked for that.
    """
    from ddimctl import catalogue
    from ddimctl.families import load, resized

    reference = reference or getattr(what, "model", None) or options.default_model()
    ways, device = savings(machine)
    at_first = "cpu" if "offload" in ways else device
    model = load(reference, at_first, config=what.config, schedule=what.schedule, guess=what.guess)
    if ways:
        from ddimctl.families.frugal import frugal

        model = frugal(model, ways, device)
    if (size := getattr(what, "size", None)) is not None:
        model = resized(model, options.parse_size(size, "--size"))
    if (tile := getattr(what, "tile", None)) is not None:
        model = replace(model, autoencoder=model.autoencoder.tiled(tile or None))
    if (end := getattr(what, "sigma_max", None)) is not None:
        model = replace(model, schedule=model.schedule.up_to(end))
    condition = what.condition()
    model.embed(condition)
    tell_guesses(model, console)
    prompts.tell_unread(model, condition, console)
    prompts.tell_of_negative(condition, console)
    console.detail(f"{model.name}: {model.network.module.facts.parameters:,} parameters on {model.device}")
    catalogue.remember(model.about.folder or Path(model.about.reference), model.digest)
    for note in model.about.notes:
        console.detail(f"{model.name}: {note}")
    return model


def savings(machine: options.Device) -> tuple[list[str], str]:
    """The ways to save memory that are asked for, and the device. Raises `UsageError` where they make no sense."""
    named = getattr(machine, "low_memory", None)
    if named is None:
        return [], machine.device
    from ddimctl.engines import pytorch

    ways, device = options.parse_list(named), pytorch.device(machine.device)
    if "offload" in ways and device == "cpu":
        raise UsageError("offload is for GPUs: on a CPU the weights are in main memory", hint="leave it away")
    return ways, device


def tell_guesses(model: Model, console: Console) -> None:
    """What was assumed because the model does not say, however it was opened."""
    for guess in model.about.guesses:
        console.notice(f"{model.name}: {guess}")


def recall(what: options.What, machine: options.Machine, console: Console) -> Model | None:
    """The model without torch, where that is possible and no other engine is wanted; with notices as `open_model`."""
    from ddimctl import engines
    from ddimctl.families.recall import recall

    engines.check(machine.engine, machine.precision)
    if machine.engine not in ("auto", "openvino") or what.config or what.schedule or what.guess or machine.low_memory:
        return None
    if any(getattr(what, name, None) is not None for name in ("size", "sigma_max", "tile")):
        return None
    if getattr(machine, "worker_gpus", None):
        return None
    found = recall(what.model, machine.device, precision=machine.precision)
    if found is not None:
        found.embed(what.condition())
        tell_guesses(found, console)
        console.detail(f"{found.name} from the cache, without torch; engine openvino, {machine.precision}")
    return found


def start_engine(model: Model, machine: options.Machine, console: Console, *, work: float) -> Model:
    """`model` by the engine asked for; "auto" means the best for so much `work`, evaluations of single images."""
    from ddimctl import engines
    from ddimctl.engines import processors
    from ddimctl.families.recall import remember

    model = machine.placed(model)
    engine, precision, why = machine.engine, machine.precision, "asked for"
    engines.check(engine, precision)
    if engine == "auto":
        engine, why = engines.pick(model.network.module, work)
    if model.network.module.kind == "cpu" and engine != "openvino":
        console.detail(f"{processors.limit_torch()} threads")
    model = evaluated_by(model, engine, precision, known=machine.engine == "auto")
    remember(model)
    console.detail(f"engine {engine}, {precision} ({why})")
    if (led := model.worse) is not None:
        model = replace(model, worse=replace(led, model=start_engine(led.model, machine, console, work=work)))
    return model


def evaluated_by(model: Model, engine: str, precision: str, *, known: bool = False) -> Model:
    """The model by an engine, with its autoencoder, if it has one; that with `known` only where it is ready for it."""
    from ddimctl import engines
    from ddimctl.model import Pixels

    model = model.with_network(engines.make(model.network.module, engine, precision))
    if isinstance(model.autoencoder, Pixels):
        return model
    from ddimctl.families.halves import evaluated

    return replace(model, autoencoder=evaluated(model, engine, known=known))


def evaluations(images: int, steps: int, solver: str) -> int:
    """About what that many images cost one way, for `start_engine`."""
    return images * steps * EVALUATIONS.get(solver, 1)


def model_of(
    latent: Latent, name: str, what: OtherTiles, *, machine: options.Device, console: Console, force: bool
) -> Model:
    """The model that decodes a latent: the one named on the command line, or the one its file names.

    Raises `FileError` if that is not the model that encoded it, unless `force`.
    """
    from ddimctl.families import located, resized
    from ddimctl.files import is_special

    about = latent.provenance["model"]
    recorded = about["reference"]
    condition = condition_of(latent, what)
    what = replace(
        what, class_label=condition.class_label, prompt=condition.prompt, negative=condition.negative,
        guidance=condition.guidance, distilled=condition.distilled,
    )  # fmt: skip
    if what.model is None:
        what = replace(
            what,
            config=about.get("config") if what.config is None else what.config,
            schedule=about.get("schedule") if what.schedule is None else what.schedule,
            guess=what.guess or bool(about.get("guess")),
        )
        # A file from a stranger may name anything; only what is already here is opened, and no pipe is waited for.
        for told in (recorded, what.config, what.schedule):
            if told is not None and is_special(Path(told)):
                raise FileError(f"{name} names {told!r}, which is a pipe or a device", hint="name the model with -m")
        found = located.locate(about, None if name == "-" else Path(name).parent)
        if found.reference is None:
            raise UsageError(
                f"{name} was encoded with the model {recorded!r}, which is not here",
                hint=f"name it with -m; tried: {', '.join(found.tried)}",
            )
        if found.reference != recorded:
            console.detail(f"{name}: the model {recorded} is {found.reference}")
        recorded = found.reference
    model = open_model(what, machine, console, reference=what.model or recorded)
    if model.multiple is not None and len(latent.xT) and latent.xT.shape[1] == model.state_shape[0]:
        model = resized(model, (latent.xT.shape[2] * model.factor, latent.xT.shape[3] * model.factor))
    levels = latent.recipe.way.levels or ()
    if (
        model.schedule.endless
        and latent.recipe.way.to is None
        and levels
        and levels[-1] != model.schedule.sigma(model.schedule.T)
    ):
        model = replace(model, schedule=model.schedule.up_to(levels[-1]))
    kept = latent.corrections is not None
    prompts.tell_of_another(name, latent.recipe.condition, condition, kept=kept, console=console)
    check_model(latent, name, model, console=console, force=force)
    return tiled(latent, model, what)


def condition_of(latent: Latent, what: options.Asked) -> Condition:
    """What a latent is decoded under: what it was encoded under, unless something else is asked for."""
    return over(latent.recipe.condition, what)


def over(condition: Condition, what: options.Asked) -> Condition:
    """A condition with what is asked for instead."""
    asked = {k: getattr(what, k) for k in ("class_label", "prompt", "negative", "guidance", "distilled")}
    changed: dict[str, Any] = {k: v for k, v in asked.items() if v is not None}
    if "prompt" in changed:
        changed["blend"] = ()
    return replace(condition, **changed)


def tiled(latent: Latent, model: Model, what: OtherTiles) -> Model:
    """`model` with its autoencoder by the tiles that are asked for, else by those that made a latent, or by none."""
    if what.tile is None:
        return latent.recipe.in_tiles(model)
    return replace(model, autoencoder=model.autoencoder.tiled(what.tile or None))


def check_model(latent: Latent, name: str, model: Model, *, console: Console, force: bool) -> None:
    """Raises `FileError` if `model` cannot decode a latent, or, unless `force`, is not the one that encoded it."""
    shape = tuple(latent.xT.shape[1:])
    if shape != model.state_shape:
        raise FileError(f"{name} has shape {shape}, the model {model.name} {model.state_shape}")
    if (latent.provenance.get("made") or {}).get("difference") and not force:
        raise FileError(
            f"{name} is a difference of latents, not an image's", hint=f"add it to one: ddimctl latent add A.pt {name}"
        )
    made, same = latent.recipe, (model.digest, model.schedule.digest, model.autoencoder.digest)
    if (made.model, made.schedule, made.autoencoder) != same:
        if not force:
            made_by = latent.provenance["model"].get("name", "unknown")
            raise FileError(
                f"{name} was encoded with another model ({made_by})",
                hint="name that model with -m, or decode with this one all the same with --force",
            )
        console.notice(f"warning: {name} was encoded with another model")


def way_back(latent: Latent, model: Model, how: options.OtherHow, *, path: bool = True) -> Way:
    """How to decode a latent: as its file says, unless otherwise asked for.

    `path`: whether a path that the file keeps is of use. Without it, what goes down is what went up.
    """
    from ddimctl.solvers import SOLVERS, decoder

    about, way = latent.provenance, latent.recipe.way
    if about["decoder"] not in SOLVERS and how.solver is None:
        raise FileError(f"the latent was made for a solver that is not known, {about['decoder']!r}")
    asked = any(v is not None for v in (how.steps, how.spacing, how.solver, how.tolerance))
    keep = None if asked or not path or latent.recipe.model != model.digest else way.keep
    unkept = way.keep is not None and keep is None and way.solver in SOLVERS
    solver = how.solver or (decoder(way.solver) if unkept else about["decoder"])
    way = replace(way, solver=solver, tolerance=tolerance_of(way, solver, how), keep=keep)
    way = way.anew(steps=how.steps, solver=how.solver, spacing=how.spacing).on(model.schedule)
    levels = way.levels or ()
    if not (len(levels) - 1 <= model.schedule.T and levels[-1] <= model.schedule.sigma(model.schedule.T) * (1 + 1e-9)):
        raise FileError("the latent's noise levels are not the model's", hint="choose others with --steps")
    return way


def tell_of_way(way: Way, model: Model, console: Console) -> None:
    """Where the model's own path was taken because nobody named another."""
    from ddimctl.schedule import TUNED

    if not way.spacing and (found := way.on(model.schedule)).spacing == TUNED:
        console.detail(f"{way.steps} steps of {found.solver}, tuned to {model.name}; --spacing karras does without")


def tolerance_of(way: Way, solver: str, how: options.OtherHow) -> float | None:
    """The tolerance of the way back: as asked for, or what `way` was encoded with, if `solver` is the same."""
    from ddimctl.solvers import TOLERANCES

    recorded = way.tolerance if solver == way.solver and solver in TOLERANCES else None
    return recorded if how.tolerance is None else how.tolerance


def tell_of_path(latent: Latent, decoding: Decoding, name: str, *, console: Console) -> None:
    """Whether the path that a file keeps is used, and for what."""
    if latent.corrections is None:
        return
    if decoding.way.keep is None:
        console.notice(f"{name} keeps its path, which belongs to another way or model than the one asked for: not used")
    elif decoding.condition != latent.recipe.condition:
        console.notice(f"{name} keeps its path: added under another prompt, that is direct inversion")
    else:
        console.notice(f"{name} keeps its path: decoded with it, it returns exactly")


def read_images(files: Sequence[str | bytes], model: Model, console: Console) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images as the model takes them, (N, C, H, W) in [−1, 1], and a record of what was done to each."""
    import numpy as np

    from ddimctl.images import levels, reading

    arrays, records = zip(*(reading.read(f, model.channels, model.size) for f in files), strict=True)
    tell_of(records, console)
    return levels.to_tensor(np.stack(arrays)), list(records)


def tell_of(records: Iterable[dict[str, Any]], console: Console) -> None:
    """Says what was done to images to fit the model; and where colour was lost, which model keeps it."""
    from ddimctl.images.preprocessing import describe

    lost = False
    for record in records:
        if said := describe(record):
            console.notice(said)
        lost = lost or "colour to grey" in record["colour"]
    if lost:
        console.notice(f"this model is grey; -m {options.COLOUR_MODEL} is a model of colour images")


def held_out_folder(model: Model) -> Path:
    """The images that came with a model and that it was not trained on."""
    folder = model.about.folder / "held-out" if model.about.folder else None
    if folder is None or not folder.is_dir():
        raise UsageError(f"the model {model.name} came without held-out images", hint="name images on the command line")
    return folder


def is_latent(path: str) -> bool:
    """Whether a file's name could be a latent's."""
    return path.lower().endswith(LATENT_SUFFIXES)
