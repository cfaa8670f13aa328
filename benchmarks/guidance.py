"""What comes back under guidance: ddim, ab2, exact and a kept path side by side, relative errors of the state.

    python benchmarks/guidance.py                          # an analytic law of eight classes, where guidance is strong
    python benchmarks/guidance.py FOLDER "PROMPT" IMAGE…   # a model with text, encoded and decoded under the prompt

Prints the table of docs/inversion.md. No network is asked for the analytic one: its ε is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

import ddimctl
from ddimctl import keeping
from ddimctl.keeping import Keep
from ddimctl.model import Condition
from ddimctl.ode import integrate, relative
from ddimctl.schedule import Schedule
from ddimctl.solvers import Eps, decoder

S = 20
GUIDANCE = (1.0, 3.0, 7.5)
WAYS: list[tuple[str, str, Keep | None]] = [
    ("ddim", "karras", None), ("ab2", "karras", None), ("exact", "log", None),
    ("ab2", "karras", Keep()), ("ab2", "karras", Keep("float16")), ("ab2", "karras", Keep(steps=1)),
]  # fmt: skip
CLASSES, DIMENSIONS, WIDTH, EACH = 8, 192, 0.3, 8


@dataclass(frozen=True)
class Case:
    """States with the ε that they are encoded under at a guidance."""

    states: Tensor
    eps: Callable[[float], Eps]
    schedule: Any


def analytic() -> Iterable[Case]:
    """Data of eight classes N(μ_k, s²) in 192 dimensions: each class asked for in turn, against all of them."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn((CLASSES, DIMENSIONS), generator=g, dtype=torch.float64) / 2

    def toward(mean: Tensor, x: Tensor, t: float) -> Tensor:
        return t * (x - mean) / (WIDTH**2 + t**2)

    def eps_of(k: int) -> Callable[[float], Eps]:
        def at(guidance: float) -> Eps:
            def eps(x: Tensor, t: Any) -> Tensor:
                shares = (-((x[:, None] - means) ** 2).sum(-1) / 2 / (WIDTH**2 + t**2)).softmax(1)
                away = toward(shares @ means, x, t)
                return away + guidance * (toward(means[k], x, t) - away)

            return eps

        return at

    for k in range(CLASSES):
        noise = torch.randn((EACH, DIMENSIONS), generator=g, dtype=torch.float64)
        yield Case(means[k] + WIDTH * noise, eps_of(k), Schedule.linear())


def of_model(folder: str, prompt: str, files: list[str]) -> Iterable[Case]:
    """The states of images under a prompt."""
    model = ddimctl.load(folder)
    z = torch.cat([torch.as_tensor(model.autoencoder.encode(ddimctl.open(f, model))) for f in files]).double()
    yield Case(z, lambda g: model.eps(Condition(prompt=prompt, guidance=g)), model.schedule)


def measure(case: Case, solver: str, spacing: str, keep: Keep | None, *, guidance: float) -> Any:
    """(relative errors, evaluations of the encode, images that did not converge, those of them at a fold)."""
    path, eps = case.schedule.path(S, spacing), case.eps(guidance)
    scale = case.schedule.scale(path[-1])
    states = [case.states]
    up = integrate(eps, case.states, path, solver, progress=lambda steps: (states.append(x) or x for x in steps))
    held, spent = (up.x / scale).float().double() * scale, sum(up.evaluations)
    if keep is None:
        back = integrate(eps, held, path[::-1], decoder(solver)).x
    else:
        steps = keeping.take(eps, states, path, xbar=held, keep=keep)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                corrections = done.value
                break
        spent += S * len(held)
        back = held
        for back in keeping.corrected(eps, held, path[::-1], corrections=corrections):  # noqa: B007 (the last is it)
            pass
    folds = sum(f is not None and f.fold for f in up.failures or [])
    return relative(back, case.states), spent, len(up.unconverged), folds


def main(cases: list[Case]) -> None:
    print("| guidance | way | evaluations up | median | worst | not converged | at a fold |")
    print("|---|---|---|---|---|---|---|")
    n = sum(len(case.states) for case in cases)
    for guidance in GUIDANCE:
        for solver, spacing, keep in WAYS:
            found = [measure(replace(case), solver, spacing, keep, guidance=guidance) for case in cases]
            errors = [e for f in found for e in f[0]]
            kept = "" if keep is None else f", path kept, {keep.precision}" + (", one step" if keep.steps else "")
            counts = f"{sum(f[2] for f in found)} of {n} | {sum(f[3] for f in found)}"
            row = f"{sum(f[1] for f in found) / n:.4g} | {median(errors):.0e} | {max(errors):.0e} | {counts}"
            print(f"| {guidance:g} | `{solver}`, `{spacing}`{kept} | {row} |")


if __name__ == "__main__":
    main(list(of_model(sys.argv[1], sys.argv[2], sys.argv[3:]) if len(sys.argv) > 3 else analytic()))
