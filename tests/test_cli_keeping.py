"""encode --keep-path and what decode, info and interpolate make of such files; with prompts, of a tiny model with text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

import ddimctl
from ddimctl import latent

Invoke = Callable[..., Result]


@pytest.fixture
def pictures(tmp_path: Path, model_folder: Path) -> list[Path]:
    out = []
    for i, source in enumerate(sorted((model_folder / "held-out").glob("*.png"))[:2]):
        out.append(tmp_path / f"{'ab'[i]}.png")
        out[-1].write_bytes(source.read_bytes())
    return out


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("more", [(), ("--path-precision", "float16"), ("--path-steps", "1")])
def test_decode_gives_the_image_back(
    more: tuple[str, ...], invoke: Invoke, model_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    done = invoke("encode", pictures[0], "-o", "k.pt", "-m", model_folder, "--steps", 4, "--keep-path", *more).ok()
    assert "kept: " in done.err
    assert "it returns within" in done.err
    back = invoke("decode", "k.pt", "-o", "back.png").ok()
    assert "keeps its path: decoded with it, it returns exactly" in back.err
    np.testing.assert_array_equal(pixels(tmp_path / "back.png"), pixels(pictures[0]))
    plain = invoke("decode", "k.pt", "-o", "plain.png", "--solver", "ddim").ok()
    assert "not used" in plain.err
    assert (pixels(tmp_path / "plain.png") != pixels(pictures[0])).any()
    told = invoke("info", "k.pt").ok().out
    assert (
        f"path kept   the last {1 if '1' in more else 4} steps, {more[1] if 'float16' in more else 'float32'}" in told
    )
    kept = latent.load(tmp_path / "k.pt").provenance["keep_path"]
    assert kept == {"precision": "float16" if "float16" in more else "float32", "steps": 1 if "1" in more else 4}


def test_many_and_packed(invoke: Invoke, model_folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    asked = ("-m", model_folder, "--steps", 3, "--keep-path", "--batch-size", 1)
    invoke("encode", *pictures, "-o", "ab.safetensors", *asked).ok()
    invoke("encode", *pictures, "-o", "each", *asked).ok()
    again = invoke("encode", *pictures, "-o", "each", *asked).ok()
    assert "there already: 2" in again.err
    other = invoke("encode", *pictures, "-o", "each", *asked, "--path-steps", 2)
    assert other.code == 4, "another recipe"
    for latents, out in (("ab.safetensors", "one"), ("each", "two")):
        invoke("decode", latents, "-o", out, "--batch-size", 2).ok()
        for picture in pictures:
            np.testing.assert_array_equal(pixels(tmp_path / out / picture.name), pixels(picture))
    film = invoke("decode", "ab.safetensors", "-o", "film.apng").ok()
    assert "returns exactly" in film.err
    with Image.open(tmp_path / "film.apng") as frames:
        for i, picture in enumerate(pictures):
            frames.seek(i)
            np.testing.assert_array_equal(np.asarray(frames.convert("L")), pixels(picture))


def test_what_lies_between_has_no_path_and_that_is_said(
    invoke: Invoke, model_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """The film is that of the same latents without a path: the solver that went up goes down."""
    asked = ("-m", model_folder, "--steps", 4, "--solver", "ab2")
    invoke("encode", *pictures, "-o", "kept.pt", *asked, "--keep-path").ok()
    invoke("encode", *pictures, "-o", "plain.pt", *asked).ok()
    told = invoke("interpolate", "kept.pt", "--frames", 3, "-o", "kept").ok().err
    assert told.count("path") == 1
    assert "the path that kept.pt keeps is not used" in told
    assert "path" not in invoke("interpolate", "plain.pt", "--frames", 3, "-o", "plain").ok().err
    frames = [sorted((tmp_path / folder).glob("*.png")) for folder in ("kept", "plain")]
    assert [len(f) for f in frames] == [3, 3]
    for one, other in zip(*frames, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 1
    told = invoke("decode", "kept.pt", "-o", "k", "--steps", 5).ok().err  # so does decode, where the path is of no use
    invoke("decode", "plain.pt", "-o", "p", "--steps", 5).ok()
    assert "not used" in told
    for picture in pictures:
        found, wanted = (pixels(tmp_path / folder / picture.name).astype(int) for folder in "kp")
        assert np.abs(found - wanted).max() <= 1


def test_a_part_of_the_way_with_noise_added(
    invoke: Invoke, model_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    asked = ("--steps", 4, "--keep-path", "--strength", 0.5, "--dither", 3)
    invoke("encode", pictures[0], "-o", "k.pt", "-m", model_folder, *asked).ok()
    invoke("decode", "k.pt", "-o", "back.png").ok()
    np.testing.assert_array_equal(pixels(tmp_path / "back.png"), pixels(pictures[0]))


def test_a_notebook_saves_and_opens_it(model_folder: Path, tmp_path: Path) -> None:
    from ddimctl.keeping import Keep

    net = ddimctl.load(str(model_folder), "cpu")
    x0 = ddimctl.open(model_folder / "held-out" / "001.png", net)
    ddimctl.save(tmp_path / "k.pt", ddimctl.encode(net, x0, ddimctl.Way("ab2", steps=4, keep=Keep())))
    opened = ddimctl.open(tmp_path / "k.pt")
    assert float((ddimctl.decode(net, opened).x - x0).abs().max()) < 1e-5
    assert float((ddimctl.decode(net, opened, solver="ab2").x - x0).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "args",
    [
        ("--keep-path", "--lossless"),
        ("--path-steps", 2),
        ("--path-precision", "float16"),
        ("--keep-path", "--path-precision", "float8"),
        ("--keep-path", "--path-steps", 5),
        ("--keep-path", "--path-steps", 0),
        ("--keep-path", "--solver", "adaptive"),
        ("--keep-path", "--to", "npy"),
    ],
)
def test_what_contradicts_itself(
    args: tuple[object, ...], invoke: Invoke, model_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    invoke("encode", pictures[0], "-o", "new", "-m", model_folder, "--steps", 4, *args).failed(2)
    assert not (tmp_path / "new").exists()


def test_with_prompts(invoke: Invoke, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """At guidance 7.5 z returns; under another prompt the corrections are added, and it is said."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from pipelines import write_stable_diffusion

    folder = write_stable_diffusion(tmp_path_factory.mktemp("sd") / "model")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    asked = ("-m", folder, "--prompt", "a red square", "--guidance", 7.5, "--steps", 5)
    record = json.loads(invoke("encode", "a.png", "-o", "k.pt", *asked, "--keep-path", "--json").ok().out)
    assert record["keep_path"] == {"precision": "float32", "steps": 5}
    assert record["returned"][0] <= 1e-5
    assert "returns exactly" in invoke("decode", "k.pt", "-o", "same.png").ok().err
    net = ddimctl.load(str(folder), "cpu")
    z = net.autoencoder.encode(ddimctl.open(tmp_path / "a.png", net))
    found = latent.load(tmp_path / "k.pt")
    back = net.autoencoder.encode(ddimctl.open(tmp_path / "same.png", net))
    assert z.shape == back.shape == found.xT.shape
    own = net.autoencoder.decode(z)
    assert float((ddimctl.decode(net, found).x - own).abs().max()) < 1e-4, "all that is lost is the autoencoder's"
    edited = invoke("decode", "k.pt", "-o", "other.png", "--prompt", "a blue circle").ok()
    assert "direct inversion" in edited.err
    assert (pixels(tmp_path / "other.png") != pixels(tmp_path / "same.png")).any()
    checked = invoke("encode", "a.png", "-o", "e.pt", *asked, "--solver", "exact")
    assert "comes back within" in checked.err or "does not come back" in checked.err
    assert len(latent.load(tmp_path / "e.pt").provenance["returned"]) == 1
