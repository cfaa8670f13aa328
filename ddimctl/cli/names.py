"""What may be said for an option whose values have names: for the help, and for TAB.

The names stand here a second time, because the registries they come from import torch or numpy; a test holds the two
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

SOLVERS = ("ab2", "ab2mix", "ab3", "ddim", "heun", "exact", "adaptive")
SPACINGS = ("karras", "linear", "quadratic", "log", "arsinh", "guided", "trailing", "leading", "tuned")
KEPT = ("float32", "float16")
ENGINES = ("torch", "compile", "openvino")
SAVINGS = ("slice", "offload")
PRECISIONS = ("float32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda", "mps")
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
KINDS = ("pt", "safetensors", "npy")
FITS = ("crop", "pad", "stretch")
FEATURES = ("classifier", "bottleneck", "inception")
REPORTS = (
    "mse", "mse_8bit", "psnr", "ssim", "max_abs", "wrong_pixels", "norm", "latent_error", "xT_error", "autoencoder_mse",
    "state_error",
)  # fmt: skip


def one_of(*names: str) -> Callable[[str], list[str]]:
    """Completes one name."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def some_of(*names: str) -> Callable[[str], list[str]]:
    """Completes the last of several names with commas between, each once."""

    def complete(incomplete: str) -> list[str]:
        *before, last = incomplete.split(",")
        return [",".join([*before, name]) for name in names if name.startswith(last) and name not in before]

    return complete


def some_models(incomplete: str) -> Iterable[str]:
    """Completes the last of several names of bundled models."""
    from ddimctl.catalogue import bundled

    return some_of(*bundled())(incomplete)


def models(incomplete: str) -> Iterable[str]:
    """Completes the name of a bundled model."""
    from ddimctl.catalogue import bundled

    return [name for name in bundled() if name.startswith(incomplete)]
