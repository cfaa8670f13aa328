"""A model without torch: computes what the model does, is forgotten when a file changes, and never loads torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import isolated, write_tiny_model

from ddimctl import cache, engines, families, latent, ode
from ddimctl.engines import openvino
from ddimctl.errors import UsageError
from ddimctl.families import load, recall
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.recipe import Way

pytest.importorskip("openvino")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


def remembered(folder: Path, condition: Condition = NOTHING) -> Model:
    model = load(str(folder), "cpu")
    model = model.with_network(engines.make(model.network.module, "openvino"))
    model.eps(condition)(torch.zeros(1, *model.state_shape, dtype=torch.float64), 1.0)
    recall.remember(model)
    return model


@pytest.fixture(scope="module")
def known(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, remembered, and with the cache beside it. Read only."""
    place = tmp_path_factory.mktemp("known")
    shutil.copytree(model_folder, place / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        remembered(place / "model")
    return place


@pytest.fixture
def ready(known: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder, where the cache knows it. Read only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(known / "cache"))
    return known / "model"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"prediction": "v_prediction"},
        {"label_scale": 0.25},
        {"out_channels": 2},
        {"num_class_embeds": 3},
    ],
)
def test_the_same_as_the_model(fields: dict[str, Any], tmp_path: Path) -> None:
    network = {k: v for k, v in fields.items() if k in ("out_channels", "num_class_embeds")}
    folder = write_tiny_model(tmp_path / "m", held_out=0, **network)
    path = folder / "scheduler" / "scheduler_config.json"
    about = json.loads(path.read_text())
    about["prediction_type"] = fields.get("prediction", "epsilon")
    if "label_scale" in fields:
        about["label_scale"] = fields["label_scale"]
    path.write_text(json.dumps(about))
    condition = Condition(1 if "num_class_embeds" in fields else None)
    model = remembered(folder, condition)
    quick = recall.recall(str(folder), "cpu")
    assert quick is not None
    for name in ("about", "schedule", "image_shape", "state_shape", "prediction", "label_scale", "digest", "device"):
        assert getattr(quick, name) == getattr(model, name), name
    for name in ("engine", "precision", "dtype", "needs_torch"):
        assert getattr(quick.network, name) == getattr(model.network, name), name
    assert quick.network.module.facts == model.network.module.facts
    x = np.random.default_rng(0).standard_normal((5, *quick.state_shape))
    levels = [0.0, 0.1, 1.0, 5.0, 50.0]
    np.testing.assert_array_equal(
        quick.eps(condition)(x, levels), model.eps(condition)(torch.from_numpy(x), levels).numpy()
    )
    whole = ode.encode(quick, x, Way("exact", tolerance=1e-2), condition, batch_size=2)
    assert isinstance(whole.x, np.ndarray)
    assert whole.x.shape == x.shape


def test_a_folder_called_as_a_bundled_model_is_itself(
    ready: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As `families.find` has it: a name is the bundled model's, a path to a folder of that name the folder's."""
    monkeypatch.setattr(recall, "bundled_folder", lambda: ready.parent)
    monkeypatch.setattr(recall, "bundled", lambda: ["model"])
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert recall.recall("model", "cpu") is not None
    for path in ("./model", "model/", f"../{tmp_path.name}/model"):
        assert recall.recall(path, "cpu") is None


@pytest.mark.slow
def test_forgotten_when_a_file_changes(folder: Path) -> None:
    remembered(folder)
    assert recall.recall(str(folder), "cpu") is not None
    quick = recall.recall(str(folder), "cpu")
    assert quick is not None
    with pytest.raises(UsageError, match="has no classes"):
        quick.eps(Condition(1))
    for path in (
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        folder / "scheduler" / "scheduler_config.json",
    ):
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert recall.recall(str(folder), "cpu") is None
        path.write_bytes(kept)
    assert recall.recall(str(folder), "cpu") is not None


@pytest.mark.slow
def test_a_network_named_by_itself_has_its_scheduler_beside_it(folder: Path) -> None:
    remembered(folder / "unet")
    assert recall.recall(str(folder / "unet"), "cpu") is not None
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.02", "0.03"))
    assert recall.recall(str(folder / "unet"), "cpu") is None


@pytest.mark.slow
def test_not_where_openvino_cannot_be_loaded(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise UsageError("the engine openvino cannot be loaded")

    monkeypatch.setattr(openvino, "import_openvino", broken)
    assert recall.recall(str(ready), "cpu") is None


@pytest.mark.slow
def test_not_without_the_network_in_the_cache(folder: Path) -> None:
    remembered(folder)
    for path in cache.folder().iterdir():
        if path.stat().st_size > 100_000:
            path.unlink()
    assert recall.recall(str(folder), "cpu") is None


@pytest.mark.slow
def test_a_network_that_is_damaged_is_loaded_again(folder: Path) -> None:
    model = remembered(folder)
    quick = recall.recall(str(folder), "cpu")
    assert quick is not None
    for path in cache.folder().iterdir():
        if path.stat().st_size > 100_000:
            path.write_bytes(path.read_bytes()[:-1])
    x = torch.randn(1, *model.state_shape, dtype=torch.float64)
    np.testing.assert_array_equal(quick.eps()(x.numpy(), 1.0), model.eps()(x, 1.0).numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "gpus", "found"), [("cpu", True, True), ("auto", True, False), ("cuda", False, False)]
)
def test_not_where_a_gpu_may_be(
    device: str, gpus: bool, found: bool, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "GPUS", (str(tmp_path),) if gpus else ())
    assert (recall.recall(str(ready), device) is not None) == found


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["nothing", "", "owner/name", "model.pt"])
def test_other_references(reference: str, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recall.recall(reference, "cpu") is None


@pytest.mark.slow
def test_reconstruct_without_torch(invoke: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (
        "reconstruct",
        *sorted((folder / "held-out").glob("*.png")),
        "-m",
        folder,
        "--steps",
        "3",
        "--device",
        "cpu",
    )
    slow = invoke(*command, "--engine", "openvino", "--json").ok().out
    real = load
    monkeypatch.setattr(families, "load", lambda *_, **__: pytest.fail("torch was needed"))
    quick = invoke(*command, "--json", "-v").ok()
    assert "without torch" in quick.err
    a, b = (json.loads(text)["results"][0] for text in (slow, quick.out))
    assert a["each"].keys() == b["each"].keys()
    for name, values in a["each"].items():
        assert b["each"][name] == pytest.approx(values, rel=1e-9)
    monkeypatch.setattr(families, "load", real)
    assert "without torch" not in invoke(*command, "--engine", "torch", "-v").ok().err
    assert "without torch" not in invoke(*command, "-o", "sheet.png", "-v").ok().err


WITHOUT = """
import sys
from ddimctl.cli.app import main
sys.argv = ["ddimctl", *sys.argv[1:]]
try:
    main()
except SystemExit as e:
    assert e.code == 0, e.code
print("loaded:", *[m for m in ("torch", "openvino", "safetensors", "matplotlib", "rich") if m in sys.modules])
"""


@pytest.mark.slow
def test_encode_without_torch(invoke: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files, whether torch is there or not: what one run began the other goes on with."""
    held_out = folder / "held-out"
    command = ("encode", held_out, "-m", folder, "--device", "cpu", "--steps", "3", "--batch-size", "3")
    invoke(*command, "-o", "with", "--engine", "openvino").ok()
    assert invoke(*command, "-o", "without", "-v").ok().err.count("without torch") == 1
    for path in sorted((tmp_path / "with").glob("*.pt")):
        one, other = latent.load(path), latent.load(tmp_path / "without" / path.name)
        np.testing.assert_allclose(one.xT, other.xT, rtol=1e-6, atol=1e-6)
        assert one.provenance == other.provenance
    assert "there already: 4" in invoke(*command, "-o", "with").ok().err
    invoke(*command, "-o", "packed.safetensors").ok()
    assert len(latent.load(tmp_path / "packed.safetensors").xT) == 4
    # Lossless is checked with tensors, and so with torch.
    image = held_out / "000.png"
    assert "without torch" not in invoke("encode", image, "-m", folder, "-o", "x.pt", "--lossless", "-v").err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_torch_is_not_imported(command: str, ddimctl: Any, folder: Path, tmp_path: Path) -> None:
    image = folder / "held-out" / "000.png"
    env = isolated(tmp_path, {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    words = (command, str(image), "-m", str(folder), "--steps", "3", "--device", "cpu")
    ddimctl(*words, "--engine", "openvino", env=env).ok()
    (tmp_path / "000.pt").unlink(missing_ok=True)
    script = [sys.executable, "-c", WITHOUT, *words]
    done = subprocess.run(script, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: openvino"
