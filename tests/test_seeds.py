"""Noise k of a seed depends on seed and k alone, and is like noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddimctl.seeds import mix, noise, noise_array

SHAPE = (1, 4, 4)


@given(seed=st.integers(0, 2**40), n=st.integers(1, 6), more=st.integers(0, 5))
def test_noise_k_depends_on_seed_and_k_alone(seed: int, n: int, more: int) -> None:
    few, many = noise(SHAPE, n, seed), noise(SHAPE, n + more, seed)
    assert torch.equal(few, many[:n])
    assert few.dtype == torch.float32
    torch.randn(3)  # nor on the global generator
    assert torch.equal(few, noise(SHAPE, n, seed))


def test_noise_is_standard_normal_and_unrelated() -> None:
    x = torch.cat([noise((1000,), 20, seed).double() for seed in (0, 1, 2)])
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02
    correlation = torch.corrcoef(x) - torch.eye(len(x))
    assert correlation.abs().max() < 0.15  # 60 draws of 1000: 5 standard deviations


@given(
    a=st.tuples(st.integers(0, 2**63), st.integers(0, 10**6)), b=st.tuples(st.integers(0, 2**63), st.integers(0, 10**6))
)
def test_mixed_seeds_are_valid_and_distinct(a: tuple[int, int], b: tuple[int, int]) -> None:
    torch.Generator().manual_seed(mix(*a))
    assert 0 <= mix(*a) < 2**63
    assert mix(*a) != mix(*b) or a == b


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (1, 4, 4), (1, 3, 7), (3, 28, 28), (1, 16, 12)])
def test_noise_without_torch_is_the_same(shape: tuple[int, ...]) -> None:
    """To some of float32's last digits, which the functions for exp and cos differ in from processor to processor."""
    for seed in (0, 5):
        torchs = noise(shape, 7, seed, first=2)
        assert torch.from_numpy(noise_array(shape, 7, seed, first=2)).sub(torchs).abs().max() < 2e-5
