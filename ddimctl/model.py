"""A model: a network with its schedule, and the one function that solvers see, ε(x̄, σ).

`Model.eps` is the only place for the scaling x̄ → x_t, the translation σ → label, what the network predicts, and guidance.
It never clips. A `Model` is a value: another engine, precision or schedule is another one, by ``dataclasses.replace``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ddimctl.arrays import Array, concatenate, per_image, rows
from ddimctl.errors import DDIMError, UsageError
from ddimctl.network import Embedded, Network
from ddimctl.predictions import PREDICTIONS
from ddimctl.schedule import Levels
from ddimctl.solvers import Eps


@dataclass(frozen=True)
class Share:
    """A prompt of a blend, and its weight in it."""

    prompt: str | None
    weight: float


@dataclass(frozen=True)
class Condition:
    """What an integration is asked for: one for all of its images. The default asks for nothing."""

    class_label: int | None = None
    prompt: str | None = None
    negative: str | None = None  # what guidance leads away from; without one, no prompt
    guidance: float = 1.0  # g in ε = ε_u + g (ε_c − ε_u) (Ho and Salimans 2022); 1 needs no second evaluation
    distilled: float | None = None  # what a distilled network is told of guidance; None is the model's own
    blend: tuple[Share, ...] = ()  # instead of a prompt: some, whose embeddings are added with these weights

    @property
    def null(self) -> Condition:
        """The condition of ε_u: the negative prompt, or none."""
        return Condition(prompt=self.negative, distilled=self.distilled)

    @property
    def extrapolates(self) -> bool:
        """Whether guidance leads beyond what the network says with a prompt or without."""
        return not 0 <= self.guidance <= 1

    @property
    def shares(self) -> tuple[Share, ...]:
        """Its blend; a prompt alone is one, too."""
        return self.blend or (Share(self.prompt, 1.0),)

    def toward(self, other: Condition, w: float) -> Condition:
        """What lies between, from this one (w = 0) to another (1): their prompts' embeddings and guidance in straight lines.

        Raises `UsageError` where they differ in anything else.
        """
        if w == 0 or self == other:
            return self
        if w == 1:
            return other
        guidance = (1 - w) * self.guidance + w * other.guidance
        a, b = (replace(c, prompt=None, blend=(), guidance=guidance) for c in (self, other))
        if a != b:
            raise UsageError("between two classes, or two negative prompts, there is nothing")
        weights: dict[str | None, float] = {}
        for shares, part in ((self.shares, 1 - w), (other.shares, w)):
            for s in shares:
                weights[s.prompt] = weights.get(s.prompt, 0.0) + part * s.weight
        if len(weights) == 1:
            return replace(a, prompt=next(iter(weights)))
        return replace(a, blend=tuple(Share(p, weight) for p, weight in weights.items()))


NOTHING = Condition()


class Autoencoder(Protocol):
    """Between images and the states of the ODE."""

    @property
    def digest(self) -> str | None:
        """SHA-256 of what it computes; None for the identity."""

    @property
    def tile(self) -> int | None:
        """Pixels a side of the tiles it goes by; None: all at once."""

    @property
    def engine(self) -> str | None:
        """What evaluates it, where it is neither torch nor nothing."""

    def tiled(self, tile: int | None) -> Autoencoder:
        """The same by other tiles. Raises `UsageError` where it has none of that size."""

    def encode(self, images: Array) -> Array:
        """Images (B, C, H, W) in [−1, 1] → states (B, c, h, w)."""

    def decode(self, z: Array) -> Array:
        """States → images in about [−1, 1]."""


class Pixels:
    """The autoencoder of models of pixels: nothing."""

    digest = None
    tile = None
    engine = None

    def tiled(self, tile: int | None) -> Pixels:
        if tile is not None:
            raise UsageError("a model of pixels has no autoencoder that goes by tiles", hint="leave --tile away")
        return self

    def encode(self, images: Array) -> Array:
        return images

    def decode(self, z: Array) -> Array:
        return z


@dataclass(frozen=True)
class About:
    """What a model is called, where it is from, and what was said while it was loaded."""

    name: str = "unnamed"
    reference: str = ""  # what it was asked for by
    config: str | None = None  # what had to be said about it beside that: see `families.find`
    folder: Path | None = None  # where it was loaded from; None for a single file
    family: str = "pixel"
    classes: int | None = None  # of a class-conditional network
    notes: tuple[str, ...] = ()  # what was chosen while loading
    guesses: tuple[str, ...] = ()  # what was assumed because the checkpoint does not say
    schedule: str | None = None  # what had to be said about its noise levels
    guess: bool = False  # whether what nobody said was guessed


def all_read(prompt: str) -> str:
    """What of a prompt is cut: nothing, where nothing is read."""
    return ""


def no_condition(condition: Condition) -> Embedded:
    """The embedding of a network that is asked for nothing. Raises `UsageError` if it is."""
    if condition != NOTHING:
        raise UsageError("the model takes no class, prompt or guidance")
    return {}


@dataclass(frozen=True)
class Worse:
    """A worse model of the same images, and w in ε = ε_worse + w (ε − ε_worse): autoguidance (Karras et al. 2024)."""

    model: Model
    weight: float


@dataclass(frozen=True, repr=False)
class Model:
    """A network, its schedule, and what stands between images and it."""

    network: Network
    schedule: Levels
    image_shape: tuple[int, int, int]  # (C, H, W) of its images
    about: About = field(default_factory=About)
    prediction: str = "epsilon"  # a name of `PREDICTIONS`
    label_scale: float = 1.0  # the network was trained on labels times this
    embed: Callable[[Condition], Embedded] = no_condition  # raises `UsageError` for what the network cannot be asked
    autoencoder: Autoencoder = field(default_factory=Pixels)
    multiple: int | None = None  # its images' sides may be any multiple of this; None: they are what they are
    largest: int | None = None  # up to this, if there is an end
    unread: Callable[[str], str] = all_read  # the end of a prompt that is longer than the text encoder reads
    worse: Worse | None = None  # what it is led away from

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.image_shape))
        network, T = self.network, self.schedule.T
        by = f"{network.engine} {network.precision} on {self.device}"
        return f"Model({self.name!r}, images {shape}, {self.prediction}, T = {T}, {by})"

    def _repr_html_(self) -> str:
        """With the first of the images that came with it and that it was not trained on."""
        from ddimctl import shown

        return shown.as_html(repr(self), self._held_out())

    def _held_out(self) -> Any:
        """(N, C, H, W), or None where there are none that fit."""
        import numpy as np

        from ddimctl.images import levels, reading
        from ddimctl.shown import SHOWN

        folder = self.about.folder / "held-out" if self.about.folder else None
        files = sorted(folder.glob("*.png"))[:SHOWN] if folder is not None else []
        try:
            images = [reading.read(file, self.channels, self.size)[0] for file in files]
        except DDIMError:
            return None
        return levels.to_array(np.stack(images)) if images else None

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the ODE's states, x_T among them."""
        return self.network.module.state_shape

    @property
    def factor(self) -> int:
        """Pixels a side for each of a state."""
        return self.image_shape[1] // self.state_shape[1]

    @property
    def name(self) -> str:
        return self.about.name

    @property
    def channels(self) -> int:
        """Of its images."""
        return self.image_shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images."""
        return self.image_shape[1:]

    @property
    def digest(self) -> str:
        """SHA-256 of what the network computes."""
        return self.network.module.facts.digest

    @property
    def device(self) -> str:
        return self.network.module.device

    @property
    def hears_text(self) -> bool:
        """Whether it can be asked for something in words. That is tried."""
        try:
            self.embed(Condition(prompt="a"))
        except DDIMError:
            return False
        return True

    def eps(self, condition: Condition = NOTHING) -> Eps:
        """ε(x̄, σ) under a condition: the noise prediction ε_θ(x_t, label(σ)), x_t = x̄/scale(σ) (eq. 14).

        x̄ is (B, C, H, W) float64 and σ one level, or one for each image; the result is float64 like x̄. Raises
        `UsageError` where the network cannot be asked for that.
        """
        embedded = self.embed(condition)
        null = self.embed(condition.null) if condition.guidance != 1 else None
        schedule, formula, network = self.schedule, PREDICTIONS[self.prediction], self.network
        channels, g = self.state_shape[0], condition.guidance

        def eps(xbar: Array, sigma: float | Sequence[float]) -> Array:
            sigmas = [sigma] if isinstance(sigma, float | int) else list(sigma)
            x = xbar * per_image([1.0 / schedule.scale(s) for s in sigmas], xbar)
            labels = [schedule.label(s) * self.label_scale for s in sigmas]
            # A network with twice the channels has learned variances too; DDIM has no use for them.
            if null is None:
                out = network(x, labels, embedded)[:, :channels]
            else:
                out, away = (part[:, :channels] for part in both(network, x, labels, embedded=embedded, null=null))
                out = away + g * (out - away)
            # Below the first trained level the network is asked at that level; so is the algebra around it.
            return formula(out, x, [max(s, schedule.lowest) for s in sigmas])

        return eps if self.worse is None else led(eps, self.worse.model.eps(condition), self.worse.weight)

    def away_from(self, worse: Model, weight: float) -> Model:
        """The same model, led away from a worse one. Raises `UsageError` where they have too little in common."""
        if not math.isfinite(weight):
            raise UsageError(f"a weight of {weight:g} makes no sense")
        if worse.state_shape != self.state_shape or worse.autoencoder.digest != self.autoencoder.digest:
            raise UsageError(f"the models {self.name} and {worse.name} do not make the same kind of images")
        if worse.schedule.sigma(worse.schedule.T) < (1 - 1e-6) * self.schedule.sigma(self.schedule.T):
            raise UsageError(f"the model {worse.name} knows less noise than {self.name}")
        return replace(self, worse=Worse(worse, weight))

    def with_network(self, network: Network) -> Model:
        """The same model, evaluated by another engine or in another precision."""
        return replace(self, network=network)


def led(eps: Eps, worse: Eps, w: float) -> Eps:
    """ε away from a worse one."""

    def further(xbar: Array, sigma: float | Sequence[float]) -> Array:
        away = worse(xbar, sigma)
        return away + w * (eps(xbar, sigma) - away)

    return further


def both(
    network: Network, x: Array, labels: Sequence[float], *, embedded: Embedded, null: Embedded
) -> tuple[Array, Array]:
    """What the network says under two conditions: in one batch where it can mix them, which engines cut to what fits."""
    if not network.module.mixed:
        return network(x, labels, embedded), network(x, labels, null)
    n = len(x)
    heard = {k: concatenate([rows(v, n), rows(null[k], n)]) for k, v in embedded.items()}
    out = network(concatenate([x, x]), labels if len(labels) == 1 else [*labels, *labels], heard)
    return out[:n], out[n:]
