"""Slerp against the formula written out again, its symmetries, and paths and grids frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from rounding import apart
from torch import Tensor

from ddimctl.errors import DDIMError, UsageError
from ddimctl.interpolate import INTERPOLANTS, grid, keyframes, lerp, renorm, slerp, weights
from ddimctl.seeds import noise

SHAPE = (2, 3, 4)
seeds = st.integers(0, 2**32 - 1)
fractions = st.floats(0, 1)


def latents(n: int, seed: int = 0, shape: Sequence[int] = SHAPE) -> list[Tensor]:
    return list(noise(shape, max(n, 1), seed).double())[:n]


def eq_67(a: Tensor, b: Tensor, w: float) -> np.ndarray:
    """x_T = sin((1−α)θ)/sin θ · x_T⁰ + sin(αθ)/sin θ · x_T¹, θ = arccos(x_T⁰·x_T¹ / ‖x_T⁰‖‖x_T¹‖)."""
    p, q = a.numpy().astype(np.float64).ravel(), b.numpy().astype(np.float64).ravel()
    theta = np.arccos(p @ q / np.sqrt(p @ p) / np.sqrt(q @ q))
    out = np.sin((1 - w) * theta) / np.sin(theta) * p + np.sin(w * theta) / np.sin(theta) * q
    return out.reshape(a.shape)


@given(seed=seeds, w=fractions)
def test_the_papers_formula(seed: int, w: float) -> None:
    a, b = latents(2, seed)
    assert apart(slerp(a, b, w), eq_67(a, b, w)) < 1e-11


def test_the_middle_of_two_axes() -> None:
    a, b = torch.tensor([[[3.0, 0.0]]]).double(), torch.tensor([[[0.0, 3.0]]]).double()
    assert apart(slerp(a, b, 0.5), np.array([[[3 / 2**0.5, 3 / 2**0.5]]])) < 1e-11
    assert apart(slerp(a, b, 1 / 3), 3 * np.array([[[3**0.5 / 2, 1 / 2]]])) < 1e-11


@given(seed=seeds, near=st.floats(0, 1), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_ends_are_exact(seed: int, near: float, dtype: torch.dtype) -> None:
    """To the last bit, also where the two are nearly parallel."""
    a, b = latents(2, seed)
    b = near * a + (1 - near) * b
    a, b = a.to(dtype), b.to(dtype)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)


@given(seed=seeds, w=fractions)
def test_it_is_symmetric(seed: int, w: float) -> None:
    a, b = latents(2, seed)
    assert apart(slerp(a, b, w), slerp(b, a, 1 - w)) < 1e-11


@given(seed=seeds, w=fractions, radius=st.floats(0.1, 100))
def test_equal_norms_are_kept(seed: int, w: float, radius: float) -> None:
    a, b = (radius * x / x.norm() for x in latents(2, seed))
    assert float(slerp(a, b, w).norm()) == pytest.approx(radius, rel=1e-12)


@given(seed=seeds, w=fractions)
def test_the_angle_grows_evenly(seed: int, w: float) -> None:
    a, b = (x / x.norm() for x in latents(2, seed))
    whole = torch.arccos((a * b).sum())
    part = torch.arccos((a * slerp(a, b, w)).sum().clamp(-1, 1))
    assert float(part) == pytest.approx(w * float(whole), abs=1e-6)  # arccos near 1


def test_one_angle_for_the_whole_latent_not_one_a_channel() -> None:
    """Channel 0 of the two is parallel, channel 1 opposite: by channels there would be no way at all."""
    a = torch.tensor([[[1.0, 2.0]], [[1.0, -1.0]]]).double()
    b = torch.tensor([[[1.0, 2.0]], [[-1.0, 1.0]]]).double()
    assert apart(slerp(a, b, 0.3), eq_67(a, b, 0.3)) < 1e-11
    assert apart(slerp(a, b, 0.3), slerp(a.flatten(), b.flatten(), 0.3).view(a.shape)) < 1e-11
    by_rows = torch.stack([slerp(p, q, 0.3) for p, q in zip(*latents(2), strict=True)])
    assert apart(slerp(*latents(2), 0.3), by_rows) > 1e-3


@given(seed=seeds, w=fractions, factor=st.floats(0.1, 10))
def test_parallel_latents_go_straight(seed: int, w: float, factor: float) -> None:
    (a,) = latents(1, seed)
    out = slerp(a, factor * a, w)
    assert apart(out, (1 - w) * a + w * factor * a) < 1e-11


@given(seed=seeds, w=fractions, exponent=st.floats(-12, -2))
def test_nearly_parallel_latents_are_continuous_with_it(seed: int, w: float, exponent: float) -> None:
    """The straight line and the arc differ by O(θ²); nothing blows up where one takes over from the other."""
    a, b = latents(2, seed)
    b = a + 10**exponent * b
    assert apart(slerp(a, b, w), lerp(a, b, w)) < 50 * 10 ** (2 * exponent) + 1e-12


@pytest.mark.parametrize("factor", [-1.0, -0.3, -7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opposite_latents_have_no_shortest_way(factor: float, dtype: torch.dtype) -> None:
    a = latents(1)[0].to(dtype)
    with pytest.raises(DDIMError, match="opposite"):
        slerp(a, factor * a, 0.5)


def test_nearly_opposite_latents_have_one() -> None:
    a, b = (x / x.norm() for x in latents(2))
    c = -a + 1e-3 * b
    c = c / c.norm()
    out = slerp(a, c, 0.5)
    assert float(out.norm()) == pytest.approx(1, rel=1e-9)
    assert float((out * a).sum()) == pytest.approx(0, abs=1e-3)  # a quarter of the way round
    assert float((out - a).norm()) == pytest.approx(float((out - c).norm()), rel=1e-6)


@pytest.mark.parametrize("which", ["first", "second", "both"])
def test_zeros_have_no_direction(which: str) -> None:
    a, zero = latents(1)[0], torch.zeros(SHAPE).double()
    pair = {"first": (zero, a), "second": (a, zero), "both": (zero, zero)}[which]
    with pytest.raises(DDIMError, match="zeros"):
        slerp(*pair, 0.5)


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dtype_is_kept_and_the_sum_is_in_float64(name: str, dtype: torch.dtype) -> None:
    a, b = (x.to(dtype) for x in latents(2))
    out = INTERPOLANTS[name](a, b, 0.3)
    assert out.dtype == dtype
    assert torch.equal(out, INTERPOLANTS[name](a.double(), b.double(), 0.3).to(dtype))


@given(seed=seeds, w=fractions)
def test_lerp(seed: int, w: float) -> None:
    a, b = latents(2, seed)
    assert apart(lerp(a, b, w), a.numpy() * (1 - w) + b.numpy() * w) < 1e-11


def test_noise_loses_its_norm_on_the_straight_line_alone() -> None:
    a, b = latents(2, shape=(3, 32, 32))
    norm = a.norm()
    assert float(slerp(a, b, 0.5).norm() / norm) == pytest.approx(1, abs=0.05)
    assert float(lerp(a, b, 0.5).norm() / norm) == pytest.approx(0.5**0.5, abs=0.05)


@given(n=st.integers(2, 50), ease=st.booleans(), end=st.booleans())
def test_weights(n: int, ease: bool, end: bool) -> None:
    out = weights(n, ease, end)
    assert len(out) == n
    assert out[0] == 0.0
    assert (out[-1] == 1.0) == end
    assert all(p < q <= 1 for p, q in zip(out, out[1:], strict=False))
    if end:
        np.testing.assert_allclose(out, 1 - np.array(out[::-1]), atol=1e-12)
    steps = np.arange(n) / (n - 1 if end else n)
    np.testing.assert_allclose(out, steps * steps * (3 - 2 * steps) if ease else steps, atol=1e-15)


def where(frames: Tensor, latent: Tensor) -> list[int]:
    """The frames that are exactly `latent`."""
    return [i for i, f in enumerate(frames) if torch.equal(f, latent)]


@given(stops=st.integers(2, 6), extra=st.integers(0, 30), loop=st.booleans(), ease=st.booleans())
def test_keyframes(stops: int, extra: int, loop: bool, ease: bool) -> None:
    """Exactly so many frames; every latent among them, once, in order; legs of even length."""
    keys = latents(stops)
    n = stops + extra
    frames = keyframes(keys, n, loop, ease=ease)
    assert frames.shape == (n, *SHAPE)
    found = [where(frames, k) for k in keys]
    assert all(len(f) == 1 for f in found)
    at = [f[0] for f in found]
    assert at == sorted(at)
    assert at[0] == 0
    assert loop or at[-1] == n - 1
    gaps = np.diff([*at, n] if loop else at)
    assert max(gaps) - min(gaps) <= 1


@given(n=st.integers(2, 20), ease=st.booleans())
def test_two_keyframes_are_a_slerp_with_both_ends(n: int, ease: bool) -> None:
    a, b = latents(2)
    frames = keyframes([a, b], n, ease=ease)
    for frame, w in zip(frames, weights(n, ease), strict=True):
        assert apart(frame, slerp(a, b, w)) < 1e-11


def test_a_loop_goes_on_to_the_first_which_is_not_repeated() -> None:
    a, b, c = latents(3)
    frames = keyframes([a, b, c], 9, loop=True)
    legs = [(p, q, w) for p, q in ((a, b), (b, c), (c, a)) for w in (0, 1 / 3, 2 / 3)]
    for frame, (p, q, w) in zip(frames, legs, strict=True):
        assert apart(frame, slerp(p, q, w)) < 1e-11


def test_a_loop_of_two_comes_back_the_way_it_went() -> None:
    a, b = latents(2)
    frames = keyframes([a, b], 4, loop=True)
    assert apart(frames[1], frames[3]) < 1e-11
    assert torch.equal(frames[0], a)
    assert torch.equal(frames[2], b)


def test_ease_slows_down_at_every_latent() -> None:
    keys = [x / x.norm() for x in latents(3)]
    plain, eased = (keyframes(keys, 21, ease=e) for e in (False, True))
    speed = (eased[1:] - eased[:-1]).flatten(1).norm(dim=1) / (plain[1:] - plain[:-1]).flatten(1).norm(dim=1)
    assert float(speed[[0, 9, 10, 19]].max()) < 0.5  # beside the latents
    assert float(speed[[4, 5, 14, 15]].min()) > 1.3  # halfway between


@pytest.mark.parametrize(("stops", "loop", "least"), [(2, False, 2), (3, False, 3), (5, False, 5), (3, True, 3)])
def test_too_few_frames(stops: int, loop: bool, least: int) -> None:
    keys = latents(stops)
    assert len(keyframes(keys, least, loop)) == least
    for n in (least - 1, 1, 0, -3):
        with pytest.raises(UsageError, match=f"{n} frames cannot show {stops} latents") as e:
            keyframes(keys, n, loop)
        assert f"--frames {least} or more" in e.value.hint


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("loop", [False, True])
def test_fewer_than_two_latents(n: int, loop: bool) -> None:
    with pytest.raises(UsageError, match="at least two"):
        keyframes(latents(n), 10, loop)


def test_keyframes_by_lerp() -> None:
    a, b = latents(2)
    assert apart(keyframes([a, b], 3, interpolant=lerp)[1], (a + b) / 2) < 1e-11


@given(rows=st.integers(2, 5), columns=st.integers(2, 5), seed=seeds)
def test_grid(rows: int, columns: int, seed: int) -> None:
    a, b, c, d = corners = latents(4, seed)
    assume(all(float((p - q).norm()) > 0.1 for p, q in ((a, b), (a, c), (b, d), (c, d))))
    out = grid(corners, rows, columns)
    assert out.shape == (rows * columns, *SHAPE)
    out = out.view(rows, columns, *SHAPE)
    for got, want in zip((out[0, 0], out[0, -1], out[-1, 0], out[-1, -1]), corners, strict=True):
        assert torch.equal(got, want)
    for i in range(rows):
        left, right = eq_67(a, c, i / (rows - 1)), eq_67(b, d, i / (rows - 1))
        for j in range(columns):
            want = eq_67(torch.tensor(left), torch.tensor(right), j / (columns - 1))
            assert apart(out[i, j], want) < 1e-10


@pytest.mark.parametrize("n", [0, 2, 3, 5])
def test_a_grid_needs_four_corners(n: int) -> None:
    with pytest.raises(UsageError, match=f"four corners, not {n}"):
        grid(latents(n), 3, 3)


@pytest.mark.parametrize("size", [(1, 4), (4, 1), (0, 0)])
def test_a_grid_has_two_rows_and_columns(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="at least 2 rows"):
        grid(latents(4), *size)


def test_renorm_keeps_the_ends_and_is_as_strong_as_noise_in_the_middle() -> None:
    a, b = 0.8 * noise((3, 16, 16), 2, seed=0)
    assert torch.equal(renorm(a, b, 0.0), slerp(a, b, 0.0))
    assert torch.equal(renorm(a, b, 1.0), slerp(a, b, 1.0))
    strength = [float(renorm(a, b, w).double().square().mean().sqrt()) for w in (0.01, 0.25, 0.5, 0.75, 0.99)]
    assert strength[2] == pytest.approx(1, rel=1e-6)
    assert strength[0] < strength[1] < strength[2] > strength[3] > strength[4]
    along = torch.nn.functional.cosine_similarity(renorm(a, b, 0.3).flatten(), slerp(a, b, 0.3).flatten(), dim=0)
    assert float(along) == pytest.approx(1, abs=1e-6)  # the direction is slerp's
