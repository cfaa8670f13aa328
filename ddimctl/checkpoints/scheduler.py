"""Noise schedule and prediction from the fields of diffusers' ``scheduler_config.json``, and back.

The fields may come from the file, from ``--schedule``, or from a configuration of OpenAI's or the authors' repositories,
whose words for the same things are understood too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddimctl.checkpoints import betas, identify
from ddimctl.errors import FileError, choose
from ddimctl.schedule import Schedule

# The schedulers that mean x_t = √α x_0 + √(1−α) ε with integer labels, and their default β_1 and β_T.
DDPM_BETAS, LDM_BETAS = (1e-4, 0.02), (0.00085, 0.012)
SCHEDULERS = {
    **dict.fromkeys(("DDPM", "DDPMParallel", "DDIM", "DDIMInverse", "DDIMParallel", "PNDM", "RePaint"), DDPM_BETAS),
    **dict.fromkeys(("EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "DEISMultistep"), DDPM_BETAS),
    **dict.fromkeys(("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep"), DDPM_BETAS),
    **dict.fromkeys(("UniPCMultistep", "SASolver"), DDPM_BETAS),
    **dict.fromkeys(("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"), LDM_BETAS),
}
# Others' names for what networks predict.
PREDICTIONS = {
    **dict.fromkeys(("epsilon", "eps", "noise", "pred_noise"), "epsilon"),
    **dict.fromkeys(("v_prediction", "v", "velocity", "pred_v"), "v_prediction"),
    **dict.fromkeys(("sample", "x0", "start_x", "xstart", "pred_x0"), "sample"),
}
# Others' names for the fields.
FIELDS = {
    "num_train_timesteps": ("timesteps", "num_diffusion_timesteps", "diffusion_steps", "steps"),
    "beta_schedule": ("noise_schedule",),
    "prediction_type": ("model_mean_type", "parameterization", "objective"),
}
KNOWN = (
    *(name for field, others in FIELDS.items() for name in (field, *others)),
    "beta_start", "beta_end", "trained_betas", "alphas_cumprod", "rescale_betas_zero_snr", "label_scale", "timestep_type",
    "use_flow_sigmas",
    "predict_epsilon", "predict_xstart", "rescale_timesteps", "_class_name",
)  # fmt: skip


# Those that cannot mean something else in the configuration of a network, or of a whole training.
IN_CONFIGS = tuple(
    k for k in KNOWN if k not in ("timesteps", "steps", "objective", "num_train_timesteps", "_class_name")
)
OF_LISTS = {"trained_betas", "alphas_cumprod"}
OF_LEVELS = {"beta_schedule", *FIELDS["beta_schedule"], "beta_start", "beta_end", *OF_LISTS}
OF_PREDICTION = {"prediction_type", *FIELDS["prediction_type"], "predict_epsilon", "predict_xstart"}


@dataclass(frozen=True)
class Scheduler:
    """What a scheduler's fields come down to."""

    schedule: Schedule
    prediction: str = "epsilon"
    label_scale: float = 1.0


def read(fields: Mapping[str, Any], prediction: str | None = None) -> Scheduler:
    """The schedule, and what the network predicts. A field left out means diffusers' default; `prediction`, what a network
    predicts where the fields do not say. Raises `FileError` where they make no sense or are not implemented."""
    config = {k: v for k, v in fields.items() if k in KNOWN}
    for field, others in FIELDS.items():
        for other in others:
            if other in config:
                config.setdefault(field, config.pop(other))
    kind = str(config.get("_class_name", "DDPMScheduler")).removesuffix("Scheduler")
    if kind not in SCHEDULERS:
        raise FileError(f"the scheduler is a {kind}Scheduler, whose noise is not DDPM's", identify.NOT_HERE)
    if config.get("timestep_type", "discrete") not in ("discrete", None):
        raise FileError(f"the scheduler's labels are {config['timestep_type']}, which ddimctl does not implement")
    if config.get("use_flow_sigmas"):
        raise FileError("the scheduler's noise is a flow's (use_flow_sigmas), not DDPM's", identify.NOT_HERE)
    predicts = _prediction(config, prediction or "epsilon")
    T = config.get("num_train_timesteps", 1000)
    scale = config.get("label_scale", 1.0)
    if config.get("rescale_timesteps") and isinstance(T, int) and T > 0:
        scale = 1000 / T
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 < scale <= 1000:
        raise FileError(f"the scheduler's label_scale = {scale!r} makes no sense")
    return Scheduler(_schedule(config, SCHEDULERS[kind], T=T, prediction=predicts), predicts, float(scale))


def words(text: str) -> dict[str, Any]:
    """Fields from words with commas between them: a schedule's name, a prediction's, FIELD=VALUE."""
    result: dict[str, Any] = {}
    for word in (w.strip() for w in text.split(",")):
        field, equals, value = word.partition("=")
        if equals and field in KNOWN:
            try:
                result[field] = json.loads(value)
            except ValueError:
                result[field] = value
        elif word in betas.BETAS or word in betas.ALIASES:
            result["beta_schedule"] = word
        elif word in PREDICTIONS:
            result["prediction_type"] = word
        else:
            names = {**betas.BETAS, **betas.ALIASES, **PREDICTIONS}
            choose(names, word, "schedule or prediction")
    return result


def is_whole(fields: Mapping[str, Any]) -> bool:
    """Whether these are a scheduler's own file, which says everything, by its defaults too."""
    return "_class_name" in fields


def merged(fields: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with those of `others` in their place; another schedule takes the place of a list of its numbers."""
    lists = OF_LISTS if others.keys() & OF_LEVELS else ()
    return {k: v for k, v in fields.items() if k not in lists} | dict(others)


def lacking(fields: Mapping[str, Any]) -> dict[str, str]:
    """What the fields do not tell → what it would be taken to be."""
    if is_whole(fields):
        return {}
    needed = (("schedule", OF_LEVELS, "DDPM's linear β"), ("prediction", OF_PREDICTION, "ε"))
    return {what: default for what, names, default in needed if not fields.keys() & names}


def _prediction(config: Mapping[str, Any], default: str) -> str:
    # Before prediction_type there was predict_epsilon; OpenAI's flag is predict_xstart.
    old = config.get("predict_epsilon") is False or config.get("predict_xstart") is True
    name = config.get("prediction_type", "sample" if old else default)
    known = PREDICTIONS.get(str(name).lower())
    if known is None:
        raise FileError(f"the network predicts {name!r}, which ddimctl does not implement")
    return known


def _schedule(config: Mapping[str, Any], ends: tuple[float, float], *, T: Any, prediction: str) -> Schedule:
    for name in OF_LISTS & config.keys():
        values = config[name]
        if values is not None and (not isinstance(values, list) or not 1 <= len(values) <= betas.MAX_T):
            raise FileError(f"the scheduler's {name} are not a list of numbers")
    if (alphas := config.get("alphas_cumprod")) is not None:
        return betas.listed_alphas(alphas)
    listed = config.get("trained_betas")
    if listed is None:
        start, end = config.get("beta_start", ends[0]), config.get("beta_end", ends[1])
        listed = betas.listed(config.get("beta_schedule", "linear"), T, start, end=end)
    return betas.schedule(listed, prediction=prediction, zero_snr=bool(config.get("rescale_betas_zero_snr")))


def fields(schedule: Schedule) -> dict[str, Any]:
    """The schedule by its name where that gives exactly the same α, else by its list of β; with the α too, a field of ours,
    where rounding keeps the β from giving them back."""
    alpha = [*schedule.alpha[:-1], 0.0 if schedule.endless else schedule.alpha[-1]]
    exact = [1 - q / p for p, q in zip(alpha, alpha[1:], strict=False)]
    start, end = (round(b, 12) for b in (exact[0], exact[-1]))
    for kind, formula in betas.BETAS.items():
        for last in (0.02, 0.012) if schedule.endless else (end,):
            if _gives(formula(schedule.T, start, last), schedule, rescale=schedule.endless):
                named = {"beta_schedule": kind, "beta_start": start, "beta_end": last}
                return {**named, "rescale_betas_zero_snr": True} if schedule.endless else named
    # β = 1 − α_t/α_(t−1) has rounding errors; the shorter decimals that it came from may give the α back exactly.
    for digits in (7, 9, 12, 15, 17):
        shorter = [float(f"{b:.{digits}g}") for b in exact]
        if _gives(shorter, schedule):
            return {"beta_schedule": "linear", "trained_betas": shorter}
    return {"beta_schedule": "linear", "trained_betas": exact, "alphas_cumprod": alpha[1:]}


def _gives(listed: list[float], schedule: Schedule, rescale: bool = False) -> bool:
    try:
        return betas.schedule(listed, prediction="v_prediction", zero_snr=rescale) == schedule
    except FileError:  # one of the formulas need not make sense between these ends
        return False
