"""The models of a run's latents: each file is decoded by the one that it names, and each model is opened once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ddimctl.cli import inputs, options
from ddimctl.cli.console import Console
from ddimctl.errors import DDIMError, UsageError

if TYPE_CHECKING:
    from ddimctl.cli.sized import OtherTiles
    from ddimctl.files import Held
    from ddimctl.latent import Latent
    from ddimctl.model import Model
    from ddimctl.recipe import Way
    from ddimctl.runs.work import Decoding


class Opened:
    """Models by the digest that latent files record; a single one, if the command line names it."""

    def __init__(
        self,
        what: OtherTiles,
        how: options.Theirs,
        *,
        machine: options.Machine,
        console: Console,
        force: bool,
    ):
        check_theirs(what, how)
        self._scheduler = how.from_diffusers
        self._what, self._how, self._machine, self._console, self._force = what, how, machine, console, force
        self._lock = Lock()  # files are read by several threads
        self._models: dict[str, Model | DDIMError] = {}
        self._stdin: bytes | None = None
        self._reading = Lock()
        self._told: set[str] = set()  # which are bare tensors

    def load(self, source: str | Held) -> Latent:
        """A latent; or another program's bare tensor, where the command line names the model that it is of."""
        from ddimctl import bare, latent
        from ddimctl.containers import NotOurs
        from ddimctl.files import read_bytes
        from ddimctl.recipe import Way

        name = source if isinstance(source, str) else source.name
        try:
            if isinstance(source, str) and name != "-":
                found = latent.load(Path(name))
            else:
                found = latent.from_bytes(self._input() if isinstance(source, str) else source.read(), name)
            if self._scheduler is not None:
                raise no_bare(name)
            return found
        except NotOurs:
            if self._what.model is None or not isinstance(source, str):
                raise
        how = self._how
        steps = options.DEFAULT_STEPS if how.steps is None else how.steps
        solver = how.solver or (options.DEFAULT_SOLVER if self._scheduler is None else "ddim")
        way = Way(solver, how.spacing or "", steps, how.tolerance)
        way.check()
        with self._lock:
            model = self._models.get("")
            if model is None:
                model = inputs.open_model(self._what, self._machine, self._console)
                work = inputs.evaluations(1, steps, way.solver)
                self._models[""] = model = inputs.start_engine(model, self._machine, self._console, work=work)
            if isinstance(model, DDIMError):
                raise model
            if self._scheduler is not None:
                way = sampled_by(self._scheduler, model, way)
            way = way.on(model.schedule)
            if name not in self._told:
                self._console.notice(
                    f"{name} is a bare tensor, taken for x_T: {way.steps} steps of {way.solver}, {way.spacing}"
                )
            self._told.add(name)
        data = self._input() if name == "-" else read_bytes(Path(name), latent.MAX_BYTES)
        return bare.load((name, data), model, way, condition=self._what.condition())

    def _input(self) -> bytes:
        """Standard input, which can be read once."""
        from ddimctl import latent
        from ddimctl.files import read_stdin

        with self._reading:
            if self._stdin is None:
                self._stdin = read_stdin(latent.MAX_BYTES)
        return self._stdin

    def of(self, file: Latent, name: str, *, images: int = 1) -> Model:
        """The model that decodes `file`, ready for about so many `images`.

        Raises `DDIMError` if it is not here, cannot be used, or is another and that is not forced.
        """
        from ddimctl.images import formats

        key = file.recipe.model if self._what.model is None else ""
        with self._lock:
            again = found = self._models.get(key)
            if found is None:
                try:
                    found = inputs.model_of(
                        file, name, self._what, machine=self._machine, console=self._console, force=self._force
                    )
                    formats.check_channels(f"an image of the model {found.name}", found.channels)
                    solver = self._how.solver or file.provenance["decoder"]
                    work = inputs.evaluations(images, self._how.steps or len(file.path) - 1, solver)
                    found = inputs.start_engine(found, self._machine, self._console, work=work)
                except DDIMError as e:
                    found = e
                self._models[key] = found
        if isinstance(found, DDIMError):
            raise found if again is None else type(found)(f"{name}: {found}", hint=found.hint)
        inputs.check_model(file, name, found, console=self._console, force=self._force)
        return inputs.tiled(file, found, self._what)

    def way_back(self, file: Latent, name: str) -> Decoding:
        """How `file` is decoded: as it says itself, unless otherwise asked for."""
        from ddimctl.runs.work import Decoding

        model = self.of(file, name)
        how = self._how if self._scheduler is None else replace(self._how, steps=None)  # the file has their levels
        return Decoding(model, inputs.way_back(file, model, how), inputs.condition_of(file, self._what))


def check_theirs(what: OtherTiles, how: options.Theirs) -> None:
    """Raises `UsageError` where diffusers' scheduler is named and cannot be of use."""
    if how.from_diffusers is not None and what.model is None:
        raise UsageError("--from-diffusers is about tensors that name no model", hint="name it with -m")
    if how.from_diffusers is not None and how.spacing is not None:
        raise UsageError("--from-diffusers and --spacing say the same in two ways", hint="choose one")


def no_bare(name: str) -> UsageError:
    """That the scheduler named says nothing about a latent file."""
    return UsageError(f"{name} is no bare tensor, and says its levels itself", hint="no --from-diffusers then")


def sampled_by(scheduler: Path, model: Model, way: Way) -> Way:
    """`way` along the levels that diffusers' scheduler takes. Raises `DDIMError` where it is none of the model's."""
    from ddimctl.checkpoints import sampler

    config = sampler.read(scheduler)
    schedule = sampler.check(config, model.schedule, model.prediction)
    spacing = f"diffusers' {config.get('timestep_spacing', 'leading')}"
    return replace(way, spacing=spacing).along(sampler.levels(config, schedule, way.steps))
