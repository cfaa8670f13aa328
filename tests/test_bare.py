"""Bare tensors of other programs are decoded as the same x_T of ours is, and nothing but numbers is read of them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image
from safetensors.torch import save_file

from ddimctl import bare, latent
from ddimctl.errors import FileError
from ddimctl.images import metadata

X = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3)).half().float()


def write(path: Path) -> Path:
    """X[:1] in the manner that the name tells."""
    kind, x = path.name, X[:1]
    if kind.startswith("half"):
        torch.save(x.half(), path)
    elif kind.startswith("chw"):
        torch.save(x[0], path)
    elif kind.startswith("dict"):
        torch.save({"latents": x, "seed": torch.tensor(1)}, path)
    elif kind.endswith(".safetensors"):
        save_file({"x_T": x.bfloat16() if kind.startswith("bf") else x}, path)
    elif kind.endswith(".npz"):
        (np.savez_compressed if kind.startswith("small") else np.savez)(path, noise=x.numpy())
    elif kind.endswith(".npy"):
        np.save(path, np.asfortranarray(x.numpy()) if kind.startswith("f") else x.numpy().astype(">f8"))
    else:
        torch.save(x, path)
    return path


NAMES = ("plain.pt", "half.pt", "chw.pt", "dict.pt", "other.safetensors", "a.npy", "fortran.npy", "a.npz", "small.npz")


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_is_read_whatever_it_came_in(name: str, tmp_path: Path) -> None:
    found = bare.read(write(tmp_path / name).read_bytes(), name)
    assert found.dtype == np.float32
    assert np.array_equal(found, X[:1].numpy())


def test_it_is_decoded_as_the_same_latent_of_ours(
    model_folder: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    image = model_folder / "held-out/000.png"
    how = ("--steps", 5, "--solver", "ddim", "--spacing", "linear")
    invoke("encode", image, "-m", model_folder, *how, "-o", "a.pt").ok()
    invoke("decode", "a.pt", "-o", "ours.png").ok()
    np.save(tmp_path / "a.npy", latent.load(tmp_path / "a.pt").xT.numpy())
    done = invoke("decode", "a.npy", "-m", model_folder, *how, "-o", "theirs.png").ok()
    assert "bare tensor" in done.err
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("ours", "theirs"))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_model_the_way_in_is_told(name: str, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    write(tmp_path / name)
    done = invoke("decode", name)
    assert "is not a ddimctl latent" in done.failed(3)
    assert "-m MODEL" in done.err


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("run",))


def test_what_is_no_tensor_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def npy(value: object) -> bytes:
        out = io.BytesIO()
        np.save(out, value, allow_pickle=True)  # type: ignore[arg-type]
        return out.getvalue()

    good = npy(X.numpy())
    huge = good.replace(b"(2, 1, 16, 16)", b"(2, 9, 99, 99)")
    for data in (good[:-4], huge, npy(np.array([Evil()])), npy(np.zeros((3, 4))), npy(np.zeros((1, 4, 4), int))):
        with pytest.raises(FileError):
            bare.read(data, "x")
    for value in (X * float("nan"), X[:0], {"a": X, "b": X}, Evil(), [X]):
        torch.save(value, tmp_path / "x.pt")
        with pytest.raises(FileError):
            bare.read((tmp_path / "x.pt").read_bytes(), "x")
    with pytest.raises(FileError):
        bare.read(pickle.dumps(Evil()), "x")
    assert "run" not in capsys.readouterr().out


def test_a_damaged_latent_of_ours_is_not_taken_for_another_programs(tmp_path: Path) -> None:
    text = {"format": "ddimctl-latemt", "version": "1", "provenance": "{}", "sha256": "0"}
    torch.save({**text, "xT": X}, tmp_path / "x.pt")
    with pytest.raises(FileError, match="damaged"):
        bare.read((tmp_path / "x.pt").read_bytes(), "x")


def test_encode_writes_one_that_other_programs_read(
    model_folder: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    how = ("-m", model_folder, "--steps", 3)
    held_out = model_folder / "held-out"
    invoke("encode", held_out / "000.png", *how, "-o", "a.pt").ok()
    invoke("encode", held_out / "000.png", *how, "--to", "npy").ok()
    x = np.load(tmp_path / "000.npy", allow_pickle=False)
    assert np.array_equal(x, latent.load(tmp_path / "a.pt").xT.numpy())

    folder = ("encode", held_out, *how, "--to", "npy", "-o", "all/")
    invoke(*folder).ok()
    again = invoke(*folder).ok()
    assert "there already: 4" in again.err
    assert "already" in invoke(*folder, "--solver", "ddim").err  # another x_T: not skipped, and not written over
    invoke("encode", held_out, *how, "-o", "packed.npy").ok()
    packed = np.load(tmp_path / "packed.npy", allow_pickle=False)
    assert np.array_equal(packed, np.concatenate([np.load(p) for p in sorted((tmp_path / "all").glob("*.npy"))]))
    invoke("decode", "all/", "-m", model_folder, "--steps", 3, "-o", "back/").ok()
    assert len(list((tmp_path / "back").glob("*.png"))) == 4
    assert "no name for" in invoke("encode", held_out / "000.png", *how, "--to", "npy", "-o", "b.pt").failed(2)
    assert "unknown kind" in invoke("encode", held_out / "000.png", *how, "--to", "csv").failed(2)


def test_the_tolerance_of_adaptive_is_kept(model_folder: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    noise = ("--solver", "adaptive", "--tolerance", 0.01, "--steps", 2, "--save-noise", "n.pt")
    invoke("sample", "-n", 1, "-m", model_folder, *noise, "-o", "samples/").ok()
    invoke("decode", "n.pt", "-o", "back.png").ok()
    made = [metadata.find(tmp_path / name) for name in ("samples/000.png", "back.png")]
    assert [m and m["tolerance"] for m in made] == [0.01, 0.01]
    invoke("decode", "n.pt", "--tolerance", 0.02, "-o", "other.png").ok()
    assert (metadata.find(tmp_path / "other.png") or {})["tolerance"] == 0.02


def test_interpolate_takes_it_as_decode_does(model_folder: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    """Beside latents of ours as they were made, alone as the options say; frame by frame what ours give."""
    way = ("--steps", 5, "--solver", "ddim", "--spacing", "linear")
    for i, name in enumerate("ab"):
        invoke("encode", model_folder / f"held-out/00{i}.png", "-m", model_folder, *way, "-o", f"{name}.pt").ok()
        np.save(tmp_path / f"{name}.npy", latent.load(tmp_path / f"{name}.pt").xT.numpy())
    torch.save(latent.load(tmp_path / "b.pt").xT.half(), tmp_path / "half.pt")
    invoke("interpolate", "a.pt", "b.pt", "--frames", 3, "-o", "ours").ok()
    asked = ("-m", model_folder, "--frames", 3, "-o")
    runs = {
        "alone": ("a.npy", "b.npy", *way),
        "beside": ("a.pt", "b.npy"),
        "before": ("a.npy", "b.pt"),
        "half": ("a.npy", "half.pt", *way),
        "piped": ("a.pt", "-"),
    }
    for out, words in runs.items():
        done = invoke("interpolate", *words, *asked, out, input=(tmp_path / "b.npy").read_bytes()).ok()
        assert "is a bare tensor, taken for x_T: 5 steps of ddim, linear" in done.err
        frames = [sorted((tmp_path / folder).glob("*.png")) for folder in ("ours", out)]
        assert [len(f) for f in frames] == [3, 3]
        for pair in zip(*frames, strict=True):
            ours, theirs = (np.asarray(Image.open(f), float) for f in pair)
            assert np.abs(ours - theirs).max() <= (64 if out == "half" else 1)
    assert "-m MODEL" in invoke("interpolate", "a.npy", "b.npy", "-o", "no.gif").err
    invoke("interpolate", "a.npy", "b.npy", "-o", "no.gif").failed(3)
    np.save(tmp_path / "small.npy", np.zeros((1, 8, 8), np.float32))
    assert "has shape" in invoke("interpolate", "a.pt", "small.npy", *asked, "no.gif").failed(3)
    np.save(tmp_path / "flat.npy", np.zeros(8, np.float32))
    assert "could be x_T" in invoke("interpolate", "a.pt", "flat.npy", *asked, "no.gif").failed(3)
    assert not (tmp_path / "no.gif").exists()
