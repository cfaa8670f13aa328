"""What several commands take in: models, images and latents, with the notices that go with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.cli import options
from ddimctl.cli.console import Console
from ddimctl.errors import FileError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ddimctl.latent import Latent
    from ddimctl.model import Model
    from ddimctl.prepared import Prepared

LATENT_SUFFIXES = (".pt", ".safetensors")
EVALUATIONS = {"heun": 2, "exact": 4, "adaptive": 10}  # about, a step


def open_model(
    reference: str, device: str, console: Console, class_label: int | None = None, config: str | None = None
) -> Model:
    """The model a command works with. What was guessed about it is a notice, what was chosen a detail."""
    from ddimctl.model import load

    model = load(reference, device, class_label, config)
    tell_guesses(model, console)
    console.detail(f"{model.name}: {model.parameters:,} parameters on {model.device}")
    for note in model.notes:
        console.detail(f"{model.name}: {note}")
    return model


def tell_guesses(model: Model | Prepared, console: Console) -> None:
    """What was assumed because the model does not say, however it was opened."""
    for guess in model.guesses:
        console.notice(f"{model.name}: {guess}")


def recall(
    reference: str,
    device: str,
    engine: str,
    precision: str,
    console: Console,
    class_label: int | None,
    config: str | None,
) -> Prepared | None:
    """The model without torch, where that is possible and no other engine is wanted; with notices as `open_model`."""
    from ddimctl import engines, prepared

    engines.check(engine, precision)
    found = prepared.recall(reference, device, class_label) if engine in ("auto", "openvino") and not config else None
    if found is not None:
        found.precision = precision
        tell_guesses(found, console)
    return found


def start_engine(model: Model, engine: str, precision: str, evaluations: float, console: Console) -> None:
    """Has `model` evaluated by that engine; "auto" means the best for so many evaluations of single images."""
    from ddimctl import engines, prepared

    engines.check(engine, precision)
    why = "asked for"
    if engine == "auto":
        engine, why = engines.pick(model, evaluations)
    model.use(engine, precision)
    prepared.remember(model)
    console.detail(f"engine {engine}, {precision} ({why})")


def evaluations(images: int, steps: int, solver: str) -> int:
    """About what that many images cost one way, for `start_engine`."""
    return images * steps * EVALUATIONS.get(solver, 1)


def model_of(
    latent: Latent,
    name: str,
    reference: str | None,
    device: str,
    console: Console,
    force: bool,
    class_label: int | None = None,
    config: str | None = None,
) -> Model:
    """The model that decodes a latent: the one named on the command line, or the one its file names.

    Raises `FileError` if that is not the model that encoded it, unless `force`.
    """
    from ddimctl.files import exists, is_special
    from ddimctl.model import bundled

    about = latent.provenance["model"]
    recorded = about["reference"]
    class_label = about.get("class") if class_label is None else class_label
    if reference is None:
        config = about.get("config") if config is None else config
        # A file from a stranger may name anything; only what is already here is opened, and no pipe is waited for.
        for said in (recorded, config):
            if said is not None and is_special(Path(said)):
                raise FileError(f"{name} names {said!r}, which is a pipe or a device", hint="name the model with -m")
        if recorded not in bundled() and not exists(Path(recorded)):
            raise UsageError(
                f"{name} was encoded with the model {recorded!r}, which is not here", hint="name it with -m"
            )
        reference = recorded
    model = open_model(reference, device, console, class_label, config)
    check_model(latent, name, model, console, force)
    return model


def check_model(latent: Latent, name: str, model: Model, console: Console, force: bool) -> None:
    """Raises `FileError` if `model` cannot decode a latent, or, unless `force`, is not the one that encoded it."""
    made_by = latent.provenance["model"]
    if tuple(latent.xT.shape[1:]) != model.shape:
        raise FileError(f"{name} has shape {tuple(latent.xT.shape[1:])}, the model {model.name} {model.shape}")
    if made_by["digest"] != model.digest or latent.provenance["schedule"] != model.schedule.digest:
        if not force:
            raise FileError(
                f"{name} was encoded with another model ({made_by.get('name', 'unknown')})",
                hint="name that model with -m, or decode with this one all the same with --force",
            )
        console.notice(f"warning: {name} was encoded with another model")


def way_back(
    latent: Latent, model: Model, steps: int | None, spacing: str | None, solver: str | None
) -> tuple[list[float], str]:
    """(levels, solver) to decode a latent with: its file's, unless others are asked for."""
    from ddimctl.solvers import SOLVERS

    about = latent.provenance
    path = latent.path
    if steps is not None or spacing is not None:
        s = len(path) - 1 if steps is None else steps  # 0 is a number too, and refused
        path = list(model.schedule.path(s, about["spacing"] if spacing is None else spacing))
    if not (len(path) - 1 <= model.schedule.T and path[-1] <= model.schedule.sigma(model.schedule.T) * (1 + 1e-9)):
        raise FileError("the latent's noise levels are not the model's", hint="choose others with --steps")
    if about["decoder"] not in SOLVERS and solver is None:
        raise FileError(f"the latent was made for a solver that is not known, {about['decoder']!r}")
    return path, solver or about["decoder"]


def read_images(files: list[str], model: Model, console: Console) -> tuple[Tensor, list[dict[str, Any]]]:
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
    folder = model.folder / "held-out" if model.folder else None
    if folder is None or not folder.is_dir():
        raise UsageError(f"the model {model.name} came without held-out images", hint="name images on the command line")
    return folder


def is_latent(path: str) -> bool:
    """Whether a file's name could be a latent's."""
    return path.lower().endswith(LATENT_SUFFIXES)


def gather_latents(
    names: list[str],
    model: str | None,
    steps: int | None,
    solver: str | None,
    spacing: str | None,
    tolerance: float | None,
    device: str,
    batch_size: int,
    console: Console,
    force: bool,
    class_label: int | None,
    config: str | None,
    engine: str,
    precision: str,
    outputs: int,
) -> tuple[Model, Tensor, list[float], str]:
    """All latents of latent files and images (which are encoded), in order: (model, x_T, levels, solver to decode with).

    They must be of one model; levels and solver are the first latent file's unless others are asked for. Images are
    encoded as that file was. `outputs` is how many images will be decoded.
    """
    import torch

    from ddimctl import ddim, latent
    from ddimctl.ddim import bind
    from ddimctl.files import refuse_special
    from ddimctl.solvers import SOLVERS, decoder

    for name in names:
        if name != "-":
            refuse_special(Path(name))
    files = {n: latent.load(Path(n)) for n in names if is_latent(n)}
    net, path, how, way_in = None, None, None, solver
    for name, file in files.items():
        if net is None:
            net = model_of(file, name, model, device, console, force, class_label, config)
            path, how = way_back(file, net, steps, spacing, solver)
            way_in = solver or (file.provenance["solver"] if file.provenance["solver"] in SOLVERS else how)
        else:
            check_model(file, name, net, console, force)
    net = net or open_model(model or options.default_model(), device, console, class_label, config)
    if path is None:
        s = options.DEFAULT_STEPS if steps is None else steps
        path = list(net.schedule.path(s, options.DEFAULT_SPACING if spacing is None else spacing))
    way_in = way_in or options.DEFAULT_SOLVER
    how = decoder(how or way_in)
    bind(way_in, tolerance)  # no such solver, or no use for a tolerance
    images = [n for n in names if n not in files]
    start_engine(net, engine, precision, evaluations(outputs + len(images), len(path) - 1, way_in), console)
    encoded: dict[str, Tensor] = {}
    if images:
        x0, _ = read_images(images, net, console)
        with console.bar((len(path) - 1) * -(-len(x0) // batch_size), "encoding") as bar:
            xT = ddim.encode(net, x0, path, way_in, tolerance, batch_size, bar).x.float()
        encoded = dict(zip(images, xT.split(1), strict=True))
    return net, torch.cat([files[n].xT if n in files else encoded[n] for n in names]), path, how
