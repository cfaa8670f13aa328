"""How a result is made: the way along the noise levels, and everything else that decides what comes out.

`Way` is what integrates: solver, spacing, steps, tolerance. `Recipe` is all that decides a latent: two with the same
recipe, of the same image made to fit in the same way, hold the same. What is resumed, what is cached, what a manifest
says and what a latent file records of itself all compare recipes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ddimctl.dither import read as read_dithers
from ddimctl.dither import seed_of
from ddimctl.errors import UsageError
from ddimctl.keeping import Keep
from ddimctl.model import NOTHING, Condition, Model, Share
from ddimctl.multistep import MIXING
from ddimctl.schedule import TUNED, UNDER_GUIDANCE, Levels, default_spacing
from ddimctl.solvers import DEFAULT_SOLVER, bind, decoder
from ddimctl.tuned import between, wins

DEFAULT_STEPS = 20
# What of an image's record decides about the pixels that the model gets.
OF_IMAGES = ("sha256", "fit", "background", "frame", "value_range", "pixels")


def spacing_under(condition: Condition, solver: str, spacing: str | None) -> str:
    """The spacing that is asked for; where none is, the one that guidance wants of the solver, or "" for its own."""
    return spacing or (UNDER_GUIDANCE.get(solver, "") if condition.extrapolates else "")


@dataclass(frozen=True)
class Way:
    """How the ODE is integrated, up and down alike.

    `levels`, a rising path of noise levels, stands for what `spacing` and `steps` would give. Where no spacing is named it
    is the solver's own; with the default solver, a path tuned to the model where that is known to win: see `named`. `to` is
    the noise level where the way ends, if it leads only a part of it. `keep` is for encoding, and says of what decodes that
    it goes by the corrections. `mix` is for `ab2` and `ab3`: see `multistep`. A tuned path that is not spelled out brings
    its own, and with it whichever of the two it was tuned with.
    """

    solver: str = DEFAULT_SOLVER
    spacing: str = ""
    steps: int = DEFAULT_STEPS
    tolerance: float | None = None  # of solvers that iterate; None is the solver's own
    levels: tuple[float, ...] | None = None
    to: float | None = None
    keep: Keep | None = None  # how much of the path is kept, so that decoding returns; nothing by default
    mix: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.spacing and (self.solver != DEFAULT_SOLVER or self.levels is not None):
            object.__setattr__(self, "spacing", default_spacing(self.solver))

    def named(self, schedule: Levels) -> Way:
        """The same with its spacing named: where none is, the path tuned to the model if it wins (see `tuned.wins`) and
        leads all the way, and else the solver's own."""
        if self.spacing:
            return self
        tuned = self.to is None and wins(schedule.paths, self.steps)
        return replace(self, spacing=TUNED if tuned else default_spacing(self.solver))

    def path(self, schedule: Levels) -> tuple[float, ...]:
        """The rising noise levels. Raises `UsageError` where the schedule has none of that kind."""
        if self.levels is not None:
            return self.levels
        if self.to is not None and self.spacing == "leading":
            raise UsageError(
                "leading levels end where they end, at no level that is asked for", hint="--spacing trailing"
            )
        part = schedule if self.to is None else schedule.until(self.to)
        return part.path(self.steps, self.named(schedule).spacing)

    def along(self, levels: Sequence[float]) -> Way:
        """The same along these levels, without a mix, which is of other ones."""
        return replace(self, levels=tuple(levels), steps=len(levels) - 1, mix=())

    def on(self, schedule: Levels) -> Way:
        """The same with levels and mix spelled out. Raises `UsageError` where the schedule has none of that kind."""
        if self.levels is not None:
            return self if len(self.mix) in (0, MIXING.get(self.solver, 0) * self.steps) else replace(self, mix=())
        way = self.named(schedule)
        way = way.along(way.path(schedule))
        if way.spacing != TUNED or way.solver not in MIXING:
            return way
        path = between(schedule.paths, self.steps)
        return replace(way, solver=path.solver, mix=path.mix)

    def anew(self, *, steps: int | None = None, solver: str | None = None, spacing: str | None = None) -> Way:
        """With something else in it, and without levels that say otherwise.

        A tuned path that is spelled out came with a model's default, or could have; other steps are by the default again.
        """
        named = self.spacing
        if self.levels is not None and (steps is not None or spacing is not None) and named == TUNED:
            solver = solver or (DEFAULT_SOLVER if self.solver in MIXING else None)
            named = ""
        levels = self.levels if steps is None and spacing is None else None
        mix = self.mix if levels is not None else ()
        return replace(
            self, solver=solver or self.solver, spacing=named if spacing is None else spacing,
            steps=self.steps if steps is None else steps, levels=levels, mix=mix,
        )  # fmt: skip

    def check(self) -> None:
        """Raises `UsageError` for an unknown solver, or a tolerance that it has no use for."""
        bind(self.solver, self.tolerance)

    @property
    def used_tolerance(self) -> float | None:
        """The tolerance, or what the solver takes for it; None where it needs none. Raises as `check`."""
        return bind(self.solver, self.tolerance)[1]


@dataclass(frozen=True)
class Recipe:
    """All that decides a latent, besides the image and how it was made to fit."""

    model: str  # digests
    schedule: str
    way: Way  # with its levels
    condition: Condition = NOTHING
    dtype: str = "float32"
    lossless: bool = False  # checked, and tightened until every 8-bit value came back
    autoencoder: str | None = None
    dither: int | None = None  # the seed of the noise that was added first
    tile: int | None = None  # of the autoencoder, which gives something else by tiles

    @classmethod
    def of(
        cls,
        model: Model,
        way: Way,
        condition: Condition = NOTHING,
        *,
        lossless: bool = False,
        dither: int | None = None,
    ) -> Recipe:
        """What `model` makes that way. The tolerance is spelled out."""
        way = replace(way.on(model.schedule), tolerance=way.used_tolerance)
        if way.keep is not None:
            way = replace(way, keep=way.keep.of(way.steps))
        return cls(
            model.digest,
            model.schedule.digest,
            way,
            condition,
            model.network.dtype,
            lossless,
            model.autoencoder.digest,
            dither,
            model.autoencoder.tile,
        )

    @classmethod
    def read(cls, provenance: Mapping[str, Any]) -> Recipe:
        """The recipe in a latent file's provenance, which was checked."""
        made_by, levels = provenance["model"], tuple(float(s) for s in provenance["path"])
        way = Way(
            provenance["solver"],
            provenance["spacing"],
            len(levels) - 1,
            provenance["tolerance"],
            levels,
            provenance.get("to_level"),
            mix=tuple(float(p) for p in provenance.get("mix") or ()),
        )
        if (kept := provenance.get("keep_path")) is not None:
            way = replace(way, keep=Keep(kept["precision"], kept["steps"]))
        return cls(
            made_by["digest"],
            provenance["schedule"],
            way,
            read_condition(provenance),
            provenance["dtype"],
            provenance["lossless"] is not None,
            provenance.get("autoencoder"),
            seed_of(read_dithers(provenance.get("dither") or [])),
            provenance.get("tile"),
        )

    def in_tiles(self, model: Model) -> Model:
        """`model` with its autoencoder by the tiles of this recipe, or by none, where it is the same autoencoder."""
        same = self.autoencoder == model.autoencoder.digest
        return replace(model, autoencoder=model.autoencoder.tiled(self.tile)) if same else model

    def record(self) -> dict[str, Any]:
        """As it stands in a provenance."""
        out: dict[str, Any] = {
            "schedule": self.schedule,
            "solver": self.way.solver,
            "decoder": decoder(self.way.solver) if self.way.keep is None else "ddim",
            "spacing": self.way.spacing,
            "steps": self.way.steps,
            "path": list(self.way.levels or ()),
            "tolerance": self.way.tolerance,
            "dtype": self.dtype,
        }
        if self.way.keep is not None:
            out["keep_path"] = asdict(self.way.keep)
        if self.autoencoder is not None:
            out["autoencoder"] = self.autoencoder
        if self.tile is not None:
            out["tile"] = self.tile
        if self.way.mix:
            out["mix"] = list(self.way.mix)
        if self.way.to is not None:
            out["to_level"] = self.way.to
        if replace(self.condition, class_label=None) != NOTHING:  # the class stands beside the model
            out["condition"] = {k: v for k, v in asdict(self.condition).items() if k != "class_label"}
            if self.condition.distilled is None:
                del out["condition"]["distilled"]
            out["condition"]["blend"] = [asdict(share) for share in self.condition.blend]
            if not self.condition.blend:
                del out["condition"]["blend"]
        return out


def read_condition(provenance: Mapping[str, Any]) -> Condition:
    """What a latent was encoded under."""
    asked = dict(provenance.get("condition") or {})
    blend = tuple(Share(s["prompt"], float(s["weight"])) for s in asked.pop("blend", ()))
    return Condition(provenance["model"].get("class"), **asked, blend=blend)


def of_image(record: Mapping[str, Any]) -> dict[str, Any]:
    """What in an image's record decides about its latent, as JSON knows it."""
    value = {k: record.get(k) for k in OF_IMAGES}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}
