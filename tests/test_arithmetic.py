"""Sums, means and directions of latents: exact answers, and every parent in the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, write_tiny_model

from ddimctl import arithmetic, latent
from ddimctl.arithmetic import Term
from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import sha256
from ddimctl.latent import Latent

Invoke = Callable[..., Result]


def test_a_kept_path_is_stacked_and_split_with_its_latent(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    for name in "01":
        image = model_folder / "held-out" / f"00{name}.png"
        invoke("encode", image, "-o", f"{name}.pt", "-m", model_folder, "--steps", 3, "--keep-path").ok()
    invoke("latent", "stack", "0.pt", "1.pt", "-o", "both.pt").ok()
    invoke("latent", "split", "both.pt", "-o", "parts").ok()
    one, again = read(tmp_path / "1.pt"), read(tmp_path / "parts" / "001.pt")
    assert one.corrections is not None
    assert np.array_equal(one.corrections, again.corrections)
    assert one.recipe == again.recipe
    invoke("latent", "add", "0.pt", "1.pt", "-o", "sum.pt").ok()
    assert read(tmp_path / "sum.pt").corrections is None


@pytest.fixture
def files(invoke: Invoke, model_folder: Path, tmp_path: Path) -> dict[str, Latent]:
    """a.pt … d.pt of one image each, of the tiny model's own."""
    for i, name in enumerate("abcd"):
        image = model_folder / "held-out" / f"{i:03}.png"
        invoke("encode", image, "-o", f"{name}.pt", "-m", model_folder, "--steps", 3).ok()
    return {name: latent.load(tmp_path / f"{name}.pt", tensors=False) for name in "abcd"}


def read(path: Path) -> Latent:
    return latent.load(path, tensors=False)


def x(file: Latent) -> np.ndarray:
    return np.asarray(file.xT, dtype="float64")


def test_sums_are_sums(invoke: Invoke, files: dict[str, Latent], tmp_path: Path) -> None:
    a, b, c = (x(files[n]) for n in "abc")
    invoke("latent", "add", "a.pt", "1.5", "b.pt", "0.25", "c.pt", "-o", "sum.pt").ok()
    assert np.abs(x(read(tmp_path / "sum.pt")) - (a + 1.5 * b + 0.25 * c)).max() < 1e-5
    invoke("latent", "sub", "a.pt", "2", "b.pt", "c.pt", "-o", "less.safetensors").ok()
    assert np.abs(x(read(tmp_path / "less.safetensors")) - (a - 2 * b - c)).max() < 1e-5
    invoke("latent", "mean", "a.pt", "b.pt", "c.pt", "-o", "mean.pt").ok()
    assert np.abs(x(read(tmp_path / "mean.pt")) - (a + b + c) / 3).max() < 1e-6
    invoke("latent", "sub", "sum.pt", "1.5", "b.pt", "0.25", "c.pt", "-o", "back.pt").ok()
    assert np.abs(x(read(tmp_path / "back.pt")) - a).max() < 1e-5


def test_every_parent_is_in_the_record_and_the_result_is_decoded_as_the_first(
    invoke: Invoke, files: dict[str, Latent], tmp_path: Path
) -> None:
    invoke("latent", "add", "a.pt", "0.5", "b.pt", "-o", "sum.pt").ok()
    made = read(tmp_path / "sum.pt").provenance
    parents = [
        {"name": f"{n}.pt", "sha256": sha256((tmp_path / f"{n}.pt").read_bytes()), "weight": w}
        for n, w in (("a", 1.0), ("b", 0.5))
    ]
    assert made["made"] == {"operation": "add", "parents": parents, "difference": False}
    assert made["images"] == [{"name": "000.png"}]
    assert read(tmp_path / "sum.pt").recipe.way == files["a"].recipe.way
    told = invoke("info", "sum.pt").ok().out
    assert "add" in told
    assert "0.5 b.pt" in told
    invoke("decode", "sum.pt", "-o", "sum.png").ok()
    assert (tmp_path / "sum.png").is_file()


def test_a_mixture_is_slerp_of_two_and_has_their_norm(invoke: Invoke, files: dict[str, Latent], tmp_path: Path) -> None:
    from ddimctl.interpolate import slerp

    invoke("latent", "mix", "a.pt", "b.pt", "-o", "half.pt").ok()
    half = x(read(tmp_path / "half.pt"))
    both = latent.load(tmp_path / "a.pt").xT[0], latent.load(tmp_path / "b.pt").xT[0]
    between = slerp(both[0], both[1], 0.5).double().numpy()
    assert (half.ravel() @ between.ravel()) / (np.linalg.norm(half) * np.linalg.norm(between)) > 0.999
    invoke("latent", "mix", "3", "a.pt", "b.pt", "c.pt", "d.pt", "-o", "four.pt").ok()
    norms = [np.linalg.norm(x(files[n])) for n in "abcd"]
    assert np.linalg.norm(x(read(tmp_path / "four.pt"))) == pytest.approx(np.mean(norms), rel=1e-5)
    assert [p["weight"] for p in read(tmp_path / "four.pt").provenance["made"]["parents"]] == [0.5, *[1 / 6] * 3]


def test_renorm_gives_a_mean_the_norm_of_its_parents(invoke: Invoke, files: dict[str, Latent], tmp_path: Path) -> None:
    told = invoke("latent", "mean", "a.pt", "b.pt", "c.pt", "d.pt", "-o", "m.pt").ok().err
    invoke("latent", "mean", "a.pt", "b.pt", "c.pt", "d.pt", "--renorm", "-o", "n.pt").ok()
    m, n = x(read(tmp_path / "m.pt")), x(read(tmp_path / "n.pt"))
    assert np.linalg.norm(n) == pytest.approx(np.mean([np.linalg.norm(x(files[k])) for k in "abcd"]), rel=1e-5)
    assert np.abs(m / np.linalg.norm(m) - n / np.linalg.norm(n)).max() < 1e-6
    assert "--renorm" in told


def test_a_direction_leads_from_the_others_to_some(invoke: Invoke, files: dict[str, Latent], tmp_path: Path) -> None:
    for folder, names in (("some", "ab"), ("others", "cd")):
        (tmp_path / folder).mkdir()
        for n in names:
            (tmp_path / folder / f"{n}.pt").write_bytes((tmp_path / f"{n}.pt").read_bytes())
    invoke("latent", "direction", "some", "others", "-o", "way.pt").ok()
    a, b, c, d = (x(files[n]) for n in "abcd")
    assert np.abs(x(read(tmp_path / "way.pt")) - ((a + b) / 2 - (c + d) / 2)).max() < 1e-6
    assert [p["weight"] for p in read(tmp_path / "way.pt").provenance["made"]["parents"]] == [0.5, 0.5, -0.5, -0.5]
    # It is no image's latent: it is added to one.
    assert "difference" in invoke("decode", "way.pt", "-o", "way.png").failed(3)
    assert "difference" in invoke("interpolate", "a.pt", "way.pt", "-o", "way.gif").failed(3)
    assert "no latent of an image" in invoke("latent", "mean", "way.pt", "--renorm", "-o", "w.pt").failed(2)
    invoke("latent", "add", "c.pt", "1.5", "way.pt", "--renorm", "-o", "led.pt").ok()
    assert np.linalg.norm(x(read(tmp_path / "led.pt"))) == pytest.approx(np.linalg.norm(c), rel=1e-5)
    invoke("decode", "led.pt", "-o", "led.png").ok()
    invoke("latent", "sub", "a.pt", "b.pt", "-o", "apart.pt").ok()
    assert arithmetic.is_difference(read(tmp_path / "apart.pt"))


def test_stack_and_split_are_inverse_and_keep_each_record(
    invoke: Invoke, files: dict[str, Latent], model_folder: Path, tmp_path: Path
) -> None:
    image = model_folder / "held-out" / "001.png"
    invoke("encode", image, "-m", model_folder, "--steps", 3, "-o", "e.pt", "--dither", 1).ok()
    invoke("latent", "stack", "a.pt", "e.pt", "c.pt", "-o", "all.safetensors").ok()
    whole = read(tmp_path / "all.safetensors")
    assert [Path(i["name"]).name for i in whole.images] == ["000.png", "001.png", "002.png"]
    assert [d is not None for d in whole.dithers] == [False, True, False]
    out = invoke("latent", "split", "all.safetensors", "-o", "parts").ok().out.split()
    assert out == [f"parts/{i:03}.safetensors" for i in range(3)]
    for name, part in zip("aec", out, strict=True):
        before, after = read(tmp_path / f"{name}.pt"), read(tmp_path / part)
        assert np.array_equal(x(before), x(after))
        assert before.images == after.images
        assert before.provenance["evaluations"] == after.provenance["evaluations"]
        assert (before.dithers or [None]) == after.dithers
        assert before.recipe == after.recipe
        assert after.provenance["made"]["parents"][0]["name"] == "all.safetensors"
    invoke("encode", image, "-m", model_folder, "--steps", 4, "-o", "f.pt").ok()
    assert "not decoded in the same way" in invoke("latent", "stack", "a.pt", "f.pt", "-o", "no.pt").failed(2)


def test_one_is_added_to_each_of_several(invoke: Invoke, files: dict[str, Latent], tmp_path: Path) -> None:
    invoke("latent", "stack", "a.pt", "b.pt", "-o", "ab.pt").ok()
    invoke("latent", "sub", "c.pt", "d.pt", "-o", "cd.pt").ok()
    invoke("latent", "add", "2", "cd.pt", "ab.pt", "-o", "both.pt").ok()
    way = x(files["c"]) - x(files["d"])
    expected = np.concatenate([x(files["a"]), x(files["b"])]) + 2 * way
    assert np.abs(x(read(tmp_path / "both.pt")) - expected).max() < 1e-5
    assert [i["name"] for i in read(tmp_path / "both.pt").images] == ["000.png", "001.png"]
    invoke("latent", "stack", "a.pt", "b.pt", "c.pt", "-o", "abc.pt").ok()
    assert "holds 2" in invoke("latent", "add", "ab.pt", "abc.pt", "-o", "no.pt").failed(2)


def test_the_nearest_come_first(invoke: Invoke, files: dict[str, Latent], tmp_path: Path) -> None:
    invoke("latent", "mix", "3", "a.pt", "b.pt", "-o", "e.pt").ok()
    found = json.loads(invoke("latent", "nearest", "a.pt", *(f"{n}.pt" for n in "abcde"), "-n", 2, "--json").ok().out)
    near = found["nearest"]
    assert near[0]["name"] == "e.pt"  # itself is left out
    assert len(near) == 2
    a, e = x(files["a"]).ravel(), x(read(tmp_path / "e.pt")).ravel()
    assert near[0]["cosine"] == pytest.approx(a @ e / np.linalg.norm(a) / np.linalg.norm(e), rel=1e-9)
    assert near[0]["distance"] == pytest.approx(np.sqrt(np.square(a - e).mean()), rel=1e-9)
    assert "no other latent" in invoke("latent", "nearest", "a.pt", "a.pt").failed(2)


def test_what_belongs_to_other_spaces_is_refused(
    invoke: Invoke, files: dict[str, Latent], model_folder: Path, tmp_path: Path
) -> None:
    other = write_tiny_model(tmp_path / "other", seed=5)
    image = model_folder / "held-out" / "000.png"
    invoke("encode", image, "-o", "x.pt", "-m", other, "--steps", 3).ok()
    invoke("encode", image, "-o", "y.pt", "-m", model_folder, "--steps", 3, "--to-level", 2).ok()
    for name, said in (("x", "another model"), ("y", "ends at")):
        for command in ("add", "mean", "mix", "stack", "sub"):
            assert said in invoke("latent", command, "a.pt", f"{name}.pt", "-o", "no.pt").failed(2)
        assert said in invoke("latent", "direction", "a.pt", f"{name}.pt", "-o", "no.pt").failed(2)
    # Another number of steps is the same space: all ways end at σ(T).
    invoke("encode", image, "-o", "z.pt", "-m", model_folder, "--steps", 5).ok()
    invoke("latent", "add", "a.pt", "z.pt", "-o", "az.pt").ok()
    assert not (tmp_path / "no.pt").exists()


def test_wrong_sums_are_told(invoke: Invoke, files: dict[str, Latent]) -> None:
    assert "nothing follows" in invoke("latent", "add", "a.pt", "2").failed(2)
    assert "another weight" in invoke("latent", "add", "2", "3", "a.pt").failed(2)
    assert "no latent file" in invoke("latent", "add", "a.png").failed(2)
    assert "add up to" in invoke("latent", "mix", "0", "a.pt", "-o", "m.pt").failed(2)
    assert "folder" in invoke("latent", "split", "a.pt").failed(2)
    assert "exists already" in invoke("latent", "add", "a.pt", "b.pt", "-o", "a.pt").failed(2)
    assert "no name for a latent" in invoke("latent", "add", "a.pt", "b.pt", "-o", "a.png").failed(2)


def test_a_sum_of_nothing_has_no_direction(files: dict[str, Latent]) -> None:
    a = Term(files["a"], "a", "0")
    with pytest.raises(DDIMError, match="zero"):
        arithmetic.add([a, replace(a, weight=-1.0)], renorm=True)
    with pytest.raises(UsageError, match="add up to -1"):
        arithmetic.mix([replace(a, weight=-1.0)])
