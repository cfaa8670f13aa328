"""The hub with a fake client (which files are asked for, what every failure says), and the real client without a network."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, write_tiny_model

from ddimctl.checkpoints import hub
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.families import load


class HubError(Exception):
    pass


class NotFoundError(HubError):
    pass


class GatedError(NotFoundError):
    pass


class NoRevisionError(HubError):
    pass


@dataclass
class FakeHub:
    """huggingface_hub as far as we use it: a repository in a folder, a cache in another."""

    repo: Path
    cache: Path
    online: bool = True
    listing: Exception | None = None
    failing: str = ""  # downloads of this file fail
    asked: list[str] = field(default_factory=list)  # files that were downloaded

    def model_info(self, repo: str, revision: str | None = None) -> Any:
        if not self.online:
            raise ConnectionError("Cannot reach https://hub.invalid: offline mode is enabled.\nSecond line.")
        if self.listing:
            raise self.listing
        names = [str(p.relative_to(self.repo)) for p in self.repo.rglob("*") if p.is_file()]
        return types.SimpleNamespace(sha="c0ffee", siblings=[types.SimpleNamespace(rfilename=n) for n in sorted(names)])

    def try_to_load_from_cache(self, repo: str, filename: str, revision: str | None = None) -> object:
        path = self.cache / filename
        return str(path) if path.exists() else None

    def snapshot_download(self, repo: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        assert revision in ("c0ffee", None)
        for name in allow_patterns or []:
            if name == self.failing:
                raise OSError("No space left on device")
            target = self.cache / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.repo / name, target)
                self.asked.append(name)
        return str(self.cache)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with one tiny model, and other files beside it that nobody needs."""
    repo = write_tiny_model(tmp_path / "repo")
    for name in (
        "pytorch_model.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ):
        (repo / name).write_bytes(b"large")
    (repo / "code.py").write_text("raise SystemExit('ran')")
    client = FakeHub(repo, tmp_path / "cache")
    module: Any = types.ModuleType("huggingface_hub")
    module.HfApi = lambda: client
    module.snapshot_download = client.snapshot_download
    module.try_to_load_from_cache = client.try_to_load_from_cache
    utils: Any = types.ModuleType("huggingface_hub.utils")
    utils.disable_progress_bars = lambda: None
    errors: Any = types.ModuleType("huggingface_hub.errors")
    errors.RepositoryNotFoundError, errors.GatedRepoError = NotFoundError, GatedError
    errors.RevisionNotFoundError = NoRevisionError
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    monkeypatch.chdir(tmp_path)
    return client


def test_only_what_is_needed_is_downloaded(fake: FakeHub) -> None:
    model = load("someone/tiny", "cpu")
    assert fake.asked == [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert model.digest == load(str(fake.repo), "cpu").digest
    assert model.name == "someone/tiny"
    assert model.about.folder == fake.cache


def test_an_id_and_its_clone_are_one_model(fake: FakeHub) -> None:
    """unet_ema/ comes first in both, online and not."""
    averaged = write_tiny_model(fake.repo.parent / "averaged", seed=5)
    shutil.copytree(averaged / "unet", fake.repo / "unet_ema")
    model = load("someone/tiny", "cpu")
    assert model.digest == load(str(fake.repo), "cpu").digest == load(str(averaged), "cpu").digest
    assert "unet_ema/diffusion_pytorch_model.safetensors" in fake.asked
    assert "unet/diffusion_pytorch_model.safetensors" not in fake.asked
    fake.online = False
    assert load("someone/tiny", "cpu").digest == model.digest


def test_weights_of_another_name_are_fetched(fake: FakeHub) -> None:
    (fake.repo / "unet/diffusion_pytorch_model.safetensors").rename(fake.repo / "unet/model.safetensors")
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (fake.repo / name).unlink()
    assert load("someone/tiny", "cpu").digest == load(str(fake.repo), "cpu").digest
    assert "unet/model.safetensors" in fake.asked


def test_flat_repositories(fake: FakeHub) -> None:
    for path in (fake.repo / "unet").iterdir():
        path.rename(fake.repo / path.name)
    (fake.repo / "scheduler" / "scheduler_config.json").rename(fake.repo / "scheduler_config.json")
    (fake.repo / "model_index.json").unlink()
    (fake.repo / "README.md").write_text("---\nlicense: mit\n---\n")
    load("someone/tiny", "cpu")
    assert sorted(fake.asked) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "scheduler_config.json",
    ]


def test_shards(fake: FakeHub) -> None:
    unet = fake.repo / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "part-1.safetensors")
    (unet / "diffusion_pytorch_model.bin").unlink()
    import safetensors.torch

    state = safetensors.torch.load_file(unet / "part-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "part-1.safetensors")}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    load("someone/tiny", "cpu")
    assert fake.asked[-2:] == ["unet/diffusion_pytorch_model.safetensors.index.json", "unet/part-1.safetensors"]


def test_what_we_do_not_implement_is_refused_before_its_weights(fake: FakeHub) -> None:
    (fake.repo / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(FileError, match="text-conditional"):
        load("someone/tiny", "cpu")
    assert not any("weights" in n or "pytorch_model" in n for n in fake.asked)
    (fake.repo / "unet" / "config.json").unlink()
    fake.cache.joinpath("unet/config.json").unlink()
    with pytest.raises(FileError, match="someone/tiny is not a model folder"):
        load("someone/tiny", "cpu")


def test_a_scheduler_is_refused_before_the_weights(fake: FakeHub) -> None:
    (fake.repo / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "ScoreSdeVeScheduler"}')
    with pytest.raises(FileError, match="ScoreSdeVe"):
        load("someone/tiny", "cpu")
    assert not any("pytorch_model" in n for n in fake.asked)


def test_no_weights(fake: FakeHub) -> None:
    for path in (fake.repo / "unet").glob("diffusion*"):
        path.unlink()
    (fake.repo / "unet" / "diffusion_flax_model.msgpack").write_bytes(b"x")
    with pytest.raises(FileError, match="someone/tiny has a Flax checkpoint but no weights"):
        load("someone/tiny", "cpu")


def test_offline(fake: FakeHub) -> None:
    """Nothing in the cache: one line that says what would have been downloaded. All in the cache: it just works."""
    fake.online = False
    with pytest.raises(
        DDIMError, match=r"cannot reach the hub to download someone/tiny \(config\.json, .*safetensors"
    ) as e:
        load("someone/tiny", "cpu")
    assert "\n" not in str(e.value)
    assert "HF_HUB_OFFLINE" in e.value.hint
    fake.online = True
    digest = load("someone/tiny", "cpu").digest
    fake.online = False
    assert load("someone/tiny", "cpu").digest == digest
    (fake.cache / "unet" / "diffusion_pytorch_model.safetensors").unlink()  # a download that broke off
    with pytest.raises(DDIMError, match="not in the cache"):
        load("someone/tiny", "cpu")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotFoundError("404"), "the hub has no model someone/tiny"),
        (NoRevisionError("404"), "the hub has no model someone/tiny"),
        (GatedError("403"), "is gated"),
    ],
)
def test_no_such_model(fake: FakeHub, error: Exception, said: str) -> None:
    fake.listing = error
    with pytest.raises(UsageError, match=said) as e:
        load("someone/tiny", "cpu")
    assert "hf auth login" in e.value.hint


def test_a_download_that_fails(fake: FakeHub) -> None:
    fake.failing = "unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(DDIMError, match=r"cannot download someone/tiny .*pytorch_model\.safetensors.*No space left"):
        load("someone/tiny", "cpu")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DDIMError, match="needs huggingface-hub") as e:
        load("someone/tiny", "cpu")
    assert "ddimctl[hub]" in e.value.hint


def test_a_folder_of_that_name_comes_first(fake: FakeHub, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "someone" / "tiny", seed=5)
    assert load("someone/tiny", "cpu").digest == load(str(tmp_path / "someone" / "tiny"), "cpu").digest
    assert fake.asked == []


# Pipelines of several parts


@pytest.fixture(scope="module")
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, that of the parameter or Stable Diffusion, read once: its libraries want the real client."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import pipelines

    folder = pipelines.folder_of(getattr(request, "param", "sd"), tmp_path_factory)
    load(str(folder), "cpu")
    return folder


def published(fake: FakeHub, written: Path) -> Path:
    """A pipeline as it lies on a hub: half precision, torch's own files, other frameworks' and code beside it."""
    shutil.rmtree(fake.repo)
    shutil.copytree(written, fake.repo)
    index = json.loads((fake.repo / "model_index.json").read_text())
    for part in [p for p in fake.repo.iterdir() if p.is_dir()]:
        for weights in part.glob("*.safetensors"):
            for other in (
                weights.with_suffix(".bin"),
                weights.with_suffix(".fp16.safetensors"),
                part / "flax_model.msgpack",
            ):
                other.write_bytes(b"large")
        (part / "code.py").write_text("raise SystemExit('ran')")
    (fake.repo / "safety_checker").mkdir()
    (fake.repo / "safety_checker" / "model.safetensors").write_bytes(b"large")
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (fake.repo / "model_index.json").write_text(json.dumps(index))
    (fake.repo / "all.ckpt").write_bytes(b"large")
    (fake.repo / "README.md").write_text("---\nlicense: mit\n---\n")
    return fake.repo


@pytest.mark.parametrize("written", ["sd", "xl", "vq", "sd3", "sd3, no t5", "flux"], indirect=True)
def test_of_a_pipeline_what_its_index_names(written: Path, fake: FakeHub) -> None:
    """And it is the model that its clone is, online and not."""
    repo = published(fake, written)
    index = json.loads((repo / "model_index.json").read_text())
    model = load("someone/tiny", "cpu")
    assert (model.digest, model.autoencoder.digest) == (
        (own := load(str(repo), "cpu")).digest, own.autoencoder.digest
    )  # fmt: skip
    assert model.name == "someone/tiny"
    parts = {n.partition("/")[0] for n in fake.asked if "/" in n}
    assert parts == {k for k, v in index.items() if isinstance(v, list) and v[0]} - {"safety_checker"}
    assert not any(n.endswith((".bin", ".py", ".msgpack", ".ckpt")) or ".fp16." in n for n in fake.asked)
    weights = [n.endswith(".safetensors") for n in fake.asked]
    assert weights == sorted(weights)  # after all that is small
    fake.online = False
    assert load("someone/tiny", "cpu").digest == model.digest
    next(fake.cache.glob("*/*.safetensors")).unlink()  # a download that broke off
    with pytest.raises(DDIMError, match="not in the cache"):
        load("someone/tiny", "cpu")


def test_a_pipeline_in_shards(written: Path, fake: FakeHub) -> None:
    import safetensors.torch

    unet = published(fake, written) / "unet"
    whole = unet / "diffusion_pytorch_model.safetensors"
    state, index = safetensors.torch.load_file(whole), Path(f"{whole}.index.json")
    digest = load(str(fake.repo), "cpu").digest
    whole.unlink()
    for half, keys in enumerate((sorted(state)[::2], sorted(state)[1::2])):
        safetensors.torch.save_file({k: state[k] for k in keys}, unet / f"part-{half}.safetensors")
    table = {k: f"part-{i % 2}.safetensors" for i, k in enumerate(sorted(state))}
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    assert load("someone/tiny", "cpu").digest == digest
    assert {"unet/part-0.safetensors", "unet/part-1.safetensors", f"unet/{index.name}"} <= set(fake.asked)
    for evil in ("../../x.safetensors", "*.safetensors", "missing.safetensors", "part-0.bin"):
        shutil.rmtree(fake.cache)
        fake.asked.clear()
        index.write_text(json.dumps({"weight_map": dict.fromkeys(table, evil)}))
        with pytest.raises(FileError, match="someone/tiny"):
            load("someone/tiny", "cpu")
        assert not any(n.endswith((".safetensors", ".bin")) for n in fake.asked)


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "code": (lambda r: change(r / "model_index.json", unet=["my_unet", "UNet"]), "code of its own"),
    "code in a part": (lambda r: change(r / "unet/config.json", auto_map={"AutoModel": "code.UNet"}), "code of its own"),
    "one part more": (lambda r: change(r / "model_index.json", adapter=["code", "Adapter"]), "code of its own"),
    "another class": (lambda r: change(r / "model_index.json", vae=["diffusers", "AutoencoderTiny"]), "does not implement"),
    "a part that is not there": (lambda r: shutil.rmtree(r / "vae"), "lacks a part"),
    "another scheduler": (lambda r: change(r / "scheduler/scheduler_config.json", _class_name="SdeVe"), "SdeVe"),
    "nonsense": (lambda r: change(r / "unet/config.json", cross_attention_dim=1 << 40), "makes no sense"),
    "torch's files alone": (lambda r: (r / "vae/diffusion_pytorch_model.safetensors").unlink(), "no weights as safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pipeline_is_refused_before_its_weights(kind: str, written: Path, fake: FakeHub) -> None:
    repo = published(fake, written)
    spoil, said = HOSTILE[kind]
    spoil(repo)
    for half in (repo / "vae").glob("*.fp16.*"):
        half.unlink()
    with pytest.raises(FileError, match=said) as e:
        load("someone/tiny", "cpu")
    assert "\n" not in str(e.value)
    assert not any(n.endswith((".safetensors", ".bin", ".py")) for n in fake.asked)


@pytest.mark.parametrize(
    ("reference", "is_id"),
    [
        ("google/ddpm-cifar10-32", True),
        ("a/b", True),
        ("fashion-mnist", False),
        ("a/b/c", False),
        ("../b", False),
        ("/a/b", False),
        ("a/..", False),
        ("a/b.pt ", False),
        ("", False),
    ],
)
def test_ids(reference: str, is_id: bool) -> None:
    assert hub.is_id(reference) == is_id


@pytest.mark.slow
def test_the_real_client_without_a_network(ddimctl: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    result = ddimctl("models", "pull", "google/ddpm-cifar10-32", env=env)
    message = result.failed(1)
    assert "cannot reach the hub to download google/ddpm-cifar10-32" in message
    assert "diffusion_pytorch_model.safetensors" in message
    assert result.out == ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A hub on this machine, as far as the real client asks: (address, the repository's folder, files it served)."""
    repo, served = tmp_path / "repo", []
    sha = "c0ffee" * 6 + "c0ff"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.partition(f"/resolve/{sha}/")[2]
            if self.path.startswith("/api/models/someone/tiny"):
                names = [str(p.relative_to(repo)) for p in repo.rglob("*") if p.is_file()]
                answer: object = {"id": "someone/tiny", "sha": sha, "siblings": [{"rfilename": n} for n in names]}
                if "/tree/" in self.path:
                    answer = [{"type": "file", "path": n, "size": (repo / n).stat().st_size, "oid": n} for n in names]
                self.answer(json.dumps(answer).encode())
            elif name and (repo / name).is_file():
                if self.command == "GET":
                    served.append(name)
                self.answer((repo / name).read_bytes())
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def answer(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", sha)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", repo, served
        httpd.shutdown()
        thread.join()


@pytest.mark.slow
def test_the_real_client_with_a_server(
    ddimctl: Callable[..., Result], server: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    """Downloads what is needed once; later runs, online or not, use it; an unknown model is one line."""
    pytest.importorskip("huggingface_hub")
    address, repo, served = server
    write_tiny_model(repo)
    (repo / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"large")
    env = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address, "NO_PROXY": "*"}
    folder = ddimctl("models", "pull", "someone/tiny", env=env).ok().out.strip()
    assert sorted(served) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert load(folder, "cpu").digest == load(str(repo), "cpu").digest
    served.clear()
    for offline in ("0", "1"):
        ddimctl("models", "show", "someone/tiny", env={**env, "HF_HUB_OFFLINE": offline}).ok()
    assert served == []
    assert "the hub has no model someone/other" in ddimctl("models", "pull", "someone/other", env=env).failed(2)


@pytest.mark.slow
def test_the_real_client_with_a_pipeline(
    ddimctl: Callable[..., Result], server: tuple[str, Path, list[str]], tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """As one network: what is needed, once; then with or without a network."""
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import pipelines

    address, repo, served = server
    shutil.copytree(pipelines.folder_of("sd", tmp_path_factory), repo)
    (repo / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"large")
    (repo / "code.py").write_text("raise SystemExit('ran')")
    env = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address, "NO_PROXY": "*"}
    ddimctl("models", "pull", "someone/tiny", env=env).ok()
    assert {n for n in served if n.endswith(".safetensors")} == {
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }  # fmt: skip
    assert not {"unet/diffusion_pytorch_model.bin", "code.py"} & set(served)
    served.clear()
    for offline in ("0", "1"):
        words = ("sample", "-m", "someone/tiny", "--prompt", "a dog", "--steps", 2, "-n", 1, "-o", f"{offline}.png")
        ddimctl(*words, env={**env, "HF_HUB_OFFLINE": offline}).ok()
    assert served == []
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


@pytest.mark.slow
def test_the_real_client_uses_its_cache_offline(ddimctl: Callable[..., Result], tmp_path: Path) -> None:
    """A snapshot as the hub's client lays it out under HF_HOME."""
    pytest.importorskip("huggingface_hub")
    cache = tmp_path / "hf" / "hub" / "models--someone--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("c0ffee")
    model = write_tiny_model(cache / "snapshots" / "c0ffee")
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    assert ddimctl("models", "pull", "someone/tiny", env=env).ok().out.strip() == str(model)
    assert load(str(model), "cpu").digest in ddimctl("models", "show", "someone/tiny", env=env).ok().out
