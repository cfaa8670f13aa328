"""The latent file: the same bytes for the same latent, nothing damaged that is not noticed, nothing hostile that works."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_safetensors

from ddimctl import latent
from ddimctl.errors import FileError, UsageError
from ddimctl.families import load
from ddimctl.latent import Latent
from ddimctl.model import Condition
from ddimctl.ode import Solution
from ddimctl.recipe import Recipe, Way

SUFFIXES = latent.SUFFIXES


def about(n: int = 1) -> dict[str, Any]:
    return {
        "ddimctl": "0",
        "model": {"name": "m", "reference": "m", "digest": "d"},
        "schedule": "s",
        "solver": "ab2",
        "decoder": "ab2",
        "spacing": "karras",
        "steps": 2,
        "path": [0.01, 1.0, 157.4],
        "tolerance": None,
        "evaluations": [2] * n,
        "residuals": None,
        "unconverged": [],
        "lossless": None,
        "images": [{"name": f"{i}.png"} for i in range(n)],
        "dtype": "float32",
        "device": "cpu",
    }


def some(n: int = 1, seed: int = 0) -> Latent:
    return Latent(torch.randn(n, 1, 4, 3, generator=torch.Generator().manual_seed(seed)), about(n))


def signed(record: Any, xT: torch.Tensor) -> bytes:
    """A file whose checksum is right, whatever it says."""
    text = json.dumps(record)
    content = {"format": latent.FORMAT, "version": "1", "provenance": text, "sha256": latent.digest(xT, text), "xT": xT}
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_saved_is_loaded(suffix: str, tmp_path: Path) -> None:
    whole = some(3)
    path = tmp_path / f"a{suffix}"
    latent.save(path, whole)
    found = latent.load(path)
    assert torch.equal(found.xT, whole.xT)
    assert found.provenance == whole.provenance
    assert found.path == [0.01, 1.0, 157.4]
    assert [i["name"] for i in found.images] == ["0.png", "1.png", "2.png"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_latent_is_the_same_bytes(suffix: str) -> None:
    code = (
        "import sys, torch; sys.path.insert(0, 'tests'); import test_latent as t; from ddimctl import latent; "
        f"sys.stdout.buffer.write(latent.to_bytes(t.some(2), {suffix!r}))"
    )
    once = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[1])
    assert once.stdout == latent.to_bytes(some(2), suffix)  # safetensors' own writer orders metadata by the process


def test_other_tools_read_both_containers() -> None:
    whole = some(2)
    assert torch.equal(load_safetensors(latent.to_bytes(whole, ".safetensors"))["xT"], whole.xT)
    content = torch.load(io.BytesIO(latent.to_bytes(whole, ".pt")), weights_only=True)
    assert torch.equal(content["xT"], whole.xT)


def test_torchs_own_zip_holds_the_same(tmp_path: Path) -> None:
    """`.pt` files are written by hand: torch reads them, mapped or not, and what torch would have written is read too."""
    for whole in (some(3), Latent(some(2).xT.expand(2, 1, 4, 3), about(2))):
        path = tmp_path / "a.pt"
        latent.save(path, whole)
        content = torch.load(path, weights_only=True)
        assert torch.equal(torch.load(path, weights_only=True, mmap=True)["xT"], whole.xT)
        assert content["xT"].is_contiguous()
        torch.save(content, tmp_path / "b.pt")
        assert torch.equal(latent.load(tmp_path / "b.pt").xT, whole.xT)
        assert latent.to_bytes(Latent(whole.xT.numpy(), whole.provenance), ".pt") == path.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_flipped_byte_and_no_truncation_is_silent(suffix: str) -> None:
    whole = some()
    data = latent.to_bytes(whole, suffix)
    rng = random.Random(0)
    cases = [data[:i] for i in range(0, len(data), 3)]
    cases += [data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :] for i in range(0, len(data), 2)]
    refused = 0
    for case in cases:
        try:
            found = latent.from_bytes(case, "x")
        except FileError:
            refused += 1
        else:  # padding, dates and attributes of the zip
            assert torch.equal(found.xT, whole.xT)
            assert found.provenance == whole.provenance
    assert refused > 0.7 * len(cases)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_merged_parts_are_one_file(suffix: str, tmp_path: Path) -> None:
    parts, wholes = [], [some(2, 1), some(1, 2), some(3, 3)]
    wholes[2].provenance["unconverged"] = [1]
    for i, part in enumerate(wholes):
        parts.append(tmp_path / f"{i}.safetensors")
        latent.save(parts[-1], part)
    latent.merge(parts, tmp_path / f"all{suffix}")
    found = latent.load(tmp_path / f"all{suffix}")
    assert torch.equal(found.xT, torch.cat([w.xT for w in wholes]))
    assert found.provenance["unconverged"] == [4]
    assert len(found.images) == 6
    assert (tmp_path / f"all{suffix}").read_bytes() == latent.to_bytes(found, suffix)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_neither_written_nor_read(value: float) -> None:
    xT = torch.full((1, 1, 2, 2), value)
    with pytest.raises(FileError, match="NaN or infinity"):
        latent.to_bytes(Latent(xT, about()), ".pt")
    with pytest.raises(FileError, match="NaN or infinity"):
        latent.from_bytes(signed(about(), xT), "x")


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda r: r.pop(name)


@pytest.mark.parametrize(
    "wrong",
    [
        without("model"),
        without("path"),
        lambda r: r.update(path=[1.0, 0.5, 2.0]),
        lambda r: r.update(path=[0.1]),
        lambda r: r.update(path=[0.1, True, 2]),
        lambda r: r.update(path=[0.0, 1.0, math.inf]),
        lambda r: r.update(path="0123"),
        lambda r: r.update(steps=3),
        lambda r: r.update(steps="2"),
        lambda r: r.update(model={"name": "m"}),
        lambda r: r.update(model={"name": "\x1b[2J", "reference": "m", "digest": "d"}),
        lambda r: r.update(images=[]),
        lambda r: r.update(images=[3]),
        lambda r: r.update(evaluations=[2, 2]),
        lambda r: r.update(residuals=[math.nan]),
        lambda r: r.update(unconverged=[-1]),
        lambda r: r.update(decoder=None),
        lambda r: r.update(path=[0, 1, 10**400]),
        lambda r: r.update(tolerance=10**400),
        lambda r: r.update(residuals=[-(10**400)]),
        lambda r: r["model"].update({"class": 10**400}),
    ],
)
def test_a_provenance_that_makes_no_sense_is_refused(wrong: Callable[[dict[str, Any]], object]) -> None:
    record = about()
    wrong(record)
    with pytest.raises(FileError):
        latent.from_bytes(signed(record, torch.zeros(1, 1, 2, 2)), "x")
    with pytest.raises(FileError, match="not written"):
        latent.to_bytes(Latent(torch.zeros(1, 1, 2, 2), record), ".pt")


@pytest.mark.parametrize("record", [[], "x", None, 3])
def test_a_provenance_is_an_object(record: object) -> None:
    with pytest.raises(FileError, match="makes no sense"):
        latent.from_bytes(signed(record, torch.zeros(1, 1, 2, 2)), "x")


@pytest.mark.parametrize("odd", ["\ud800", '{"name": "\udcff"}'])
def test_half_a_surrogate_pair_is_no_provenance(odd: str) -> None:
    """A pickle can hold one, and nothing can hash it."""
    content = {"format": latent.FORMAT, "version": "1", "provenance": odd, "sha256": "", "xT": torch.zeros(1, 1, 2, 2)}
    out = io.BytesIO()
    torch.save(content, out)
    with pytest.raises(FileError, match="damaged"):
        latent.from_bytes(out.getvalue(), "x")


@pytest.mark.parametrize("metadata", ["null", "[]", "3"])
def test_metadata_that_is_no_object(metadata: str) -> None:
    header = f'{{"__metadata__":{metadata},"xT":{{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[0,4]}}}}'.encode()
    with pytest.raises(FileError, match="not a"):
        latent.from_bytes(len(header).to_bytes(8, "little") + header + bytes(4), "x")


class Call:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, ("executed",)


def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"xT": Call()}, "zip.pt")
    torch.save(Call(), "old.pt", _use_new_zipfile_serialization=False)
    Path("plain.pt").write_bytes(pickle.dumps(Call()))
    with pytest.raises(FileError, match=r"would call .*mkdir"):
        latent.load(Path("zip.pt"))
    for name in ("old.pt", "plain.pt"):
        with pytest.raises(FileError, match="not a latent"):
            latent.load(Path(name))
    assert not Path("executed").exists()


def test_bombs_and_absurd_shapes_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x/data.pkl", bytes(1 << 24))
    with pytest.raises(FileError, match="unpacks to more"):
        latent.from_bytes(out.getvalue(), "x")

    text = json.dumps(about())
    huge, wrong = torch.zeros(1).expand(10**6, 10**3, 10**3, 10), torch.zeros(1, 1, 2, 2)
    for xT in (huge, torch.zeros(0, 1, 4, 4), torch.zeros(2, 2), wrong.double(), wrong.bfloat16()):
        buffer = io.BytesIO()
        torch.save({"format": latent.FORMAT, "version": "1", "provenance": text, "sha256": "", "xT": xT}, buffer)
        with pytest.raises(FileError, match=r"damaged|refused"):
            latent.from_bytes(buffer.getvalue(), "x")

    header = json.dumps({"xT": {"dtype": "F32", "shape": [2**40, 1, 8, 8], "data_offsets": [0, 2**48]}}).encode()
    for data in (
        len(header).to_bytes(8, "little") + header,
        (2**60).to_bytes(8, "little") + b"{}",
        b"",
        b"PK",
        b"\0" * 100,
    ):
        with pytest.raises(FileError):
            latent.from_bytes(data, "x")

    sparse = tmp_path / "sparse.safetensors"
    with sparse.open("wb") as f:
        f.truncate(1 << 40)
    with pytest.raises(FileError, match="not a latent"):
        latent.load(sparse)


def test_other_files_are_no_latents(tmp_path: Path) -> None:
    for name, data in {"a.pt": b"\x89PNG\r\n\x1a\n" + bytes(100), "b.pt": b"<html>" * 20, "c.pt": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FileError, match="not a latent"):
            latent.load(tmp_path / name)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "d.pt")
    with pytest.raises(FileError, match="not a ddimctl latent"):
        latent.load(tmp_path / "d.pt")
    with pytest.raises(UsageError, match="no file"):
        latent.load(tmp_path / "none.pt")
    with pytest.raises(UsageError, match="folder"):
        latent.load(tmp_path)
    with pytest.raises(UsageError, match="no name for a latent"):
        latent.save(tmp_path / "x.png", some())


def test_provenance_describes_the_model(model_folder: Path) -> None:
    net = load(str(model_folder))
    recipe = Recipe.of(net, Way("exact", steps=3))
    record = latent.provenance(net, recipe, Solution(None, [5]), records=[{"name": "a.png"}])
    latent.check_provenance(json.loads(json.dumps(record)), 1)
    assert record["model"]["digest"] == net.digest
    assert record["decoder"] == "ddim"  # exact inverts it
    assert Recipe.read(record) == recipe
    assert Recipe.read(json.loads(json.dumps(record))) == recipe
    for other in (
        Way("exact", steps=4),
        Way("ab2", steps=3),
        Way("exact", "karras", 3),
        Way("exact", steps=3, tolerance=1e-3),
    ):
        assert Recipe.of(net, other) != recipe
    assert Recipe.of(net, Way("exact", steps=3), Condition(1)) != recipe
    assert Recipe.of(net, Way("exact", steps=3), lossless=True) != recipe
    assert Recipe.of(net, Way("exact", steps=3, tolerance=1e-5)) == recipe  # its default, spelled out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(UsageError, match="is a pipe or a device"):
        latent.load(tmp_path / "x.pt")
