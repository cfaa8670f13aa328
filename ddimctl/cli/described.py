"""What a model of several parts is, as `info` and `models show` tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddimctl.cli.console import plain

if TYPE_CHECKING:
    from ddimctl.model import Model


def about(model: Model, *, licence: str | None) -> tuple[str, dict[str, Any]]:
    """A model as text, and as a record."""
    schedule, facts = model.schedule, model.network.module.facts
    end = "∞ in truth" if schedule.endless else "as it was trained"
    record: dict[str, Any] = {
        "kind": "model",
        "name": model.name,
        "family": model.about.family,
        "image_size": list(model.size),
        "channels": model.channels,
        "state": list(model.state_shape),
        "sizes": {"multiple": model.multiple, "largest": model.largest},
        "parameters": facts.parameters,
        "prediction": model.prediction,
        "schedule": {
            "T": schedule.T,
            "sigma_min": schedule.sigma(1),
            "sigma_max": schedule.sigma(schedule.T),
            "endless": schedule.endless,
            "label_scale": model.label_scale,
            "digest": schedule.digest,
        },
        "digest": facts.digest,
        "autoencoder": model.autoencoder.digest,
        "licence": licence,
        "notes": list(model.about.notes),
        "guesses": list(model.about.guesses),
    }
    size, state = " x ".join(map(str, model.size)), " x ".join(map(str, model.state_shape))
    sizes = "" if model.multiple is None else f"; by --size multiples of {model.multiple}"
    sizes += "" if model.largest is None else f", to {model.largest}"
    rows = [
        ("family", model.about.family),
        ("images", f"{size}, {model.channels} channels{sizes}"),
        ("states", f"{state}, {model.factor} pixels a side to each"),
        ("parameters", f"{facts.parameters:,} of the network"),
        ("predicts", model.prediction),
        ("schedule", f"σ from {schedule.sigma(1):.4g} to {schedule.sigma(schedule.T):.4g}, {end}"),
        ("digest", facts.digest),
        ("autoencoder", str(model.autoencoder.digest)),
        ("licence", licence or "not stated"),
    ]
    return "\n".join([plain(model.name), *(f"  {k:<11} {plain(v)}" for k, v in rows)]), record
