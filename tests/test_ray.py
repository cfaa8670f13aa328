"""Work on a Ray cluster: what is made is, byte for byte, what is made here, whoever dies meanwhile."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cluster as clusters
import numpy as np
import pipelines
import pytest
import torch
from cluster import Cluster, outputs
from conftest import Result, isolated, write_tiny_model

from ddimctl.errors import DDIMError
from ddimctl.families import load
from ddimctl.images import writing
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.model import Model
from ddimctl.recipe import Way
from ddimctl.runs import ray, sent, work
from ddimctl.runs.where import here
from ddimctl.runs.work import Encoding
from ddimctl.runs.worker import Worker

Invoke = Callable[..., Result]
pytest.importorskip("ray")


# Jobs as bytes


@pytest.fixture
def encoding(model_folder: Path) -> Encoding:
    return Encoding(load(str(model_folder)), Way("ab2", "karras", 2), Preprocessing())


def pixels(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 1), dtype=np.uint8))


def test_a_job_is_sent_without_its_model_and_gives_the_same(encoding: Encoding) -> None:
    images = pixels(3)
    job = partial(work.encode, images, encoding)
    data = sent.pack(job)
    assert len(data) < 30_000  # the levels; the model's weights are 100 kB
    opened: list[sent.Reference] = []

    def model_of(reference: sent.Reference) -> Model:
        opened.append(reference)
        return sent.opened(reference)

    given = sent.unpack(sent.pack(sent.unpack(data, model_of)(progress=iter)))
    wanted = work.encode(images, encoding)
    assert torch.equal(given.x, wanted.x)
    assert given.evaluations == wanted.evaluations
    assert len(opened) == 1
    assert hash(opened[0]) == hash(sent.reference_to(encoding.model))  # so a worker opens it once


def test_tiles_are_sent(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("diffusers")
    model = load(str(pipelines.folder_of("sd", tmp_path_factory)), "cpu")
    for tile in (None, 16):
        given = sent.unpack(sent.pack(replace(model, autoencoder=model.autoencoder.tiled(tile))))
        assert given.autoencoder.tile == tile


def test_a_part_of_a_tensor_is_sent_alone(encoding: Encoding) -> None:
    whole = torch.zeros(1000, 1, 16, 16)
    assert len(sent.pack(whole[:1])) < 3000
    assert torch.equal(sent.unpack(sent.pack(whole[5:7])), whole[5:7])
    half = torch.ones(3, dtype=torch.bfloat16)
    assert torch.equal(sent.unpack(sent.pack(half)), half)


def test_a_model_is_found_from_any_folder_and_another_is_refused(
    encoding: Encoding, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder.parent)
    reference = sent.reference_to(load(model_folder.name))
    monkeypatch.chdir(tmp_path)
    assert sent.opened(reference).digest == encoding.model.digest
    other = write_tiny_model(tmp_path / "tiny", seed=1)
    with pytest.raises(DDIMError, match=r"tiny is another model there \(digest \w{12}, not \w{12}\)"):
        sent.opened(replace(reference, reference=str(other)))


def test_here_a_job_is_done_before_the_next_is_asked_for() -> None:
    said: list[str] = []

    def job(n: int, *, progress: object) -> int:
        said.append(f"did {n}")
        return n * n

    def jobs() -> Iterator[tuple[str, Any]]:
        for n in range(3):
            said.append(f"asked for {n}")
            yield f"key {n}", None if n == 1 else partial(job, n)

    assert list(here(jobs())) == [("key 0", 0), ("key 1", None), ("key 2", 4)]
    assert said == ["asked for 0", "did 0", "asked for 1", "asked for 2", "did 2"]


# The pool, on a Ray that does what a test wants


class Gone(Exception):
    """A worker that died."""


class Remote:
    """What is asked of a worker: the call, done when it is fetched."""

    def __init__(self, call: Callable[[], Any]):
        self.call = call


class Handle:
    """A worker, in this process."""

    def __init__(self, threads: int):
        worker = Worker(torch.get_num_threads())  # as it is, for the tests after it
        self.hello = SimpleNamespace(remote=lambda: Remote(worker.hello))
        self.do = SimpleNamespace(remote=lambda job: Remote(lambda: worker.do(job)))


class LastFirst:
    """Ray's module, on which the last that was asked is done first, and jobs die as often as `dies` has them."""

    exceptions = SimpleNamespace(RayTaskError=type("Never", (Exception,), {}), RayError=Gone)

    def __init__(self, dies: int = 0):
        self.dies, self.killed = dies, 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2}}]

    def remote(self, **how: object) -> Callable[[type], Any]:
        return lambda _: SimpleNamespace(remote=Handle)

    def wait(self, refs: list[Remote], **how: object) -> tuple[list[Remote], list[Remote]]:
        return refs[-1:], refs[:-1]

    def get(self, ref: Remote) -> Any:
        found = ref.call()
        if isinstance(found, bytes) and self.dies:
            self.dies -= 1
            raise Gone("killed")
        return found

    def kill(self, handle: Handle) -> None:
        self.killed += 1


def square(n: int, *, progress: object) -> int:
    if n < 0:
        raise DDIMError(f"{n} has no root", hint="take another")
    return n * n


def squares(*numbers: int) -> list[tuple[int, Any]]:
    return [(n, partial(square, n)) for n in numbers]


def test_what_is_before_a_failure_is_kept_and_the_first_is_told() -> None:
    """As here, although the workers came to the failures first."""
    for where in (here, ray._Pool(LastFirst(), ray.Request()).do):
        kept: list[tuple[int, int | None]] = []
        with pytest.raises(DDIMError, match=r"^-3 has no root$") as e:
            kept.extend((n, value) for n, value in where(squares(1, 2, -3, 4, -5)))
        assert kept == [(1, 1), (2, 4)]
        assert e.value.hint == "take another"


@pytest.mark.parametrize("dies", [0, 1, 2])
def test_what_a_worker_died_of_is_done_by_another(dies: int) -> None:
    pretended = LastFirst(dies)
    pool = ray._Pool(pretended, ray.Request())
    assert list(pool.do(squares(*range(20)))) == [(n, n * n) for n in range(20)]
    assert pretended.killed == dies
    assert len(pool.actors) == 2


def test_a_job_that_kills_its_workers_is_given_up() -> None:
    pool = ray._Pool(LastFirst(99), ray.Request(workers=1))
    with pytest.raises(DDIMError, match="a batch ended 3 workers: killed"):
        list(pool.do(squares(1)))


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a node that is slow, Ray says so by a plain exception."""

    def init(**how: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen …")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "_import", lambda: SimpleNamespace(init=init, shutdown=lambda: None))
    started = ray.cluster(ray.Request())
    with pytest.raises(DDIMError, match=r"^cannot use Ray at local: The current node timed out during startup\.$"):
        started.__enter__()


# What makes no sense


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--on mars", "unknown place to work 'mars'"),
        ("--on local=x", "--on local=x makes no sense"),
        ("--on ray=", "--on ray= makes no sense"),
        ("--workers 2", "--workers is about workers of a cluster"),
        ("--worker-gpus 1", "--worker-gpus is about workers of a cluster"),
        ("--on ray=nowhere", "'nowhere' is no address of a Ray cluster"),
        ("--on ray=ray://head:10001", "'ray://head:10001' is no address of a Ray cluster"),
        ("--on ray --worker-gpus 1 --device cpu", "--worker-gpus is about GPUs, and --device cpu is none"),
    ],
)
def test_what_makes_no_sense(asked: str, said: str, invoke: Invoke, model_folder: Path) -> None:
    assert said in invoke("reconstruct", "-m", model_folder, "--steps", 2, *asked.split()).failed(2)


def test_an_address_where_nobody_answers(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    photos(tmp_path, 2)
    address = f"127.0.0.1:{clusters.free_port()}"
    done = invoke("encode", "photos", "-m", model_folder, "--on", f"ray={address}", "-o", "out")
    assert f"no Ray cluster answers at {address}" in done.failed(1)
    assert not (tmp_path / "out").exists()


# On a cluster


def photos(folder: Path, n: int, bad: tuple[int, ...] = ()) -> None:
    (folder / "photos").mkdir()
    for i, image in enumerate(pixels(n)):
        path = folder / f"photos/{i:03}.png"
        path.write_bytes(b"no image") if i in bad else writing.save_image(path, image)


def ended(found: Result, made: Path) -> dict[str, bytes]:
    """What was made, by its name; not without what stdout says."""
    assert found.out == "".join(f"{made.name}/{name}\n" for name in outputs(made) if name.endswith(".pt")), found.err
    return outputs(made)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with room for two workers."""
    with clusters.up(tmp_path_factory.mktemp("ray"), 2) as made:
        yield made


@pytest.fixture
def encode(two: Cluster, model_folder: Path, tmp_path: Path) -> Callable[..., tuple[object, ...]]:
    """The arguments of an encoding of `photos` in `tmp_path`."""

    def args(to: str, *more: object, steps: int = 2, workers: int = 2) -> tuple[object, ...]:
        on = ("--on", f"ray={two.address}", "--workers", workers, "--worker-cpus", 1)
        how = ("-m", model_folder, "--steps", steps, "--batch-size", 4, "--engine", "torch")
        return ("encode", "photos", *how, "-o", to, *more, *(on if to.startswith("ray") else ()))

    return args


@pytest.mark.slow
def test_the_same_bytes_as_here(two: Cluster, encode: Any, invoke: Invoke, tmp_path: Path) -> None:
    """One by one, with images that cannot be read; in one file; in shards; and back."""
    bad = (7, 50, 99)
    photos(tmp_path, 100, bad)
    runs = {
        to: two.run(*encode(to), cwd=tmp_path) if to == "rayed" else invoke(*encode(to)) for to in ("rayed", "plain")
    }
    for run in runs.values():
        assert run.failed(4) == "3 of 100 failed"
        assert [re.findall(r"failed: (\S+)", line) for line in run.err.splitlines() if line.startswith("failed: ")] == [
            [f"photos/{i:03}.png"] for i in bad
        ]
    made = ended(runs["rayed"], tmp_path / "rayed")
    assert made == ended(runs["plain"], tmp_path / "plain")
    assert len([name for name in made if name.endswith(".pt")]) == 97
    for i in bad:
        (tmp_path / f"photos/{i:03}.png").unlink()
    on = ("--on", f"ray={two.address}", "--workers", 2, "--worker-cpus", 1)
    for to, more in (("all.safetensors", ()), ("shards/{shard:03}.tar", ("--per-shard", 30))):
        for where in ("rayed2", "plain2"):
            done = (partial(two.run, cwd=tmp_path) if where == "rayed2" else invoke)(*encode(f"{where}/{to}", *more))
            assert "encoded: 97, there already: 0, failed: 0" in done.ok().err
    assert outputs(tmp_path / "rayed2") == {
        name: data.replace(b"plain2", b"rayed2") for name, data in outputs(tmp_path / "plain2").items()
    }
    two.run("decode", "rayed", "-o", "ray-back", "--batch-size", 5, *on, cwd=tmp_path).ok()
    invoke("decode", "rayed", "-o", "back", "--batch-size", 5).ok()
    assert outputs(tmp_path / "ray-back") == outputs(tmp_path / "back")


@pytest.mark.slow
def test_round_trips(two: Cluster, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    args = ("reconstruct", "-m", model_folder, "--steps", "2,3", "--batch-size", 1, "--json", "--engine", "torch")
    plain = json.loads(invoke(*args).ok().out)
    rayed = json.loads(two.run(*args, "--on", f"ray={two.address}", cwd=tmp_path).ok().out)
    for record in (plain, rayed):
        for result in record["results"]:
            assert result.pop("seconds") > 0
    assert rayed == plain


@pytest.mark.slow
def test_a_worker_that_is_killed(two: Cluster, encode: Any, invoke: Invoke, tmp_path: Path) -> None:
    photos(tmp_path, 60)
    found = clusters.losing_a_worker(two, encode("rayed", steps=30), tmp_path / "rayed")
    invoke(*encode("plain", steps=30)).ok()
    assert not clusters.difference(found, tmp_path / "rayed", tmp_path / "plain")
    assert ended(found, tmp_path / "rayed") == outputs(tmp_path / "plain")


@pytest.mark.slow
def test_a_machine_that_is_gone(two: Cluster, encode: Any, invoke: Invoke, tmp_path: Path) -> None:
    """The second of two: what it was at is done by the first."""
    photos(tmp_path, 80)
    found = clusters.losing_a_machine(two, encode("rayed", steps=30, workers=3), tmp_path / "rayed")
    invoke(*encode("plain", steps=30)).ok()
    assert not clusters.difference(found, tmp_path / "rayed", tmp_path / "plain")
    assert ended(found, tmp_path / "rayed") == outputs(tmp_path / "plain")


# A command of ours to which Ray tells the same of two workers, as its threads do: it keeps the second until it is left.
TOLD_TWICE = """
import sys, threading
from ddimctl.cli.app import main
from ddimctl.runs import outputs
save = outputs.save
def tell():
    from ray._private import worker
    for pid in "raylet", 7:
        worker.print_to_stdstream({"lines": ["one is gone"] * 3, "pid": pid, "ip": "x", "is_err": False}, False)
def saving(target, value):
    save(target, value)
    thread = threading.Thread(target=tell, name="ray_listen_error_messages")
    thread.start()
    thread.join()
outputs.save = saving
main()
"""


@pytest.mark.slow
def test_what_ray_says_of_several_alike(two: Cluster, encode: Any, tmp_path: Path) -> None:
    photos(tmp_path, 2)
    running = two.start(*encode("rayed", workers=1), cwd=tmp_path, program=("-c", TOLD_TWICE))
    out, err = running.communicate()
    ended(Result(running.returncode, out, err).ok(), tmp_path / "rayed")


@pytest.mark.slow
def test_a_run_that_is_killed_or_interrupted(two: Cluster, encode: Any, invoke: Invoke, tmp_path: Path) -> None:
    """No worker outlives it, and the same command again does what is left."""
    photos(tmp_path, 32)
    args = encode("rayed", steps=30)
    for signum, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        found = clusters.stopped(two, args, tmp_path / "rayed", by=signum)
        assert found.code == code, found.err
        if signum == signal.SIGINT:
            assert found.err.splitlines()[-1] == "error: interrupted"
    done = two.run(*args, cwd=tmp_path).ok()
    assert "there already: " in done.err
    assert "there already: 0" not in done.err
    invoke(*encode("plain", steps=30)).ok()
    assert not clusters.difference(done, tmp_path / "rayed", tmp_path / "plain")


def test_what_is_lost_twice_or_other_is_seen(tmp_path: Path) -> None:
    """By the comparison that the three before rest on."""
    plain, made = tmp_path / "plain", tmp_path / "made"
    for folder in (plain, made):
        folder.mkdir()
        for name in "ab":
            (folder / f"{name}.pt").write_bytes(name.encode())
        (folder / "manifest.jsonl").write_text('{"run": {}}\n{"name": "a"}\n{"name": "b"}\n')

    def said(*names: str) -> str:
        out = "".join(f"made/{name}.pt\n" for name in names)
        return clusters.difference(Result(0, out.encode(), b""), made, plain)

    assert said("a", "b") == said("b", "a") == ""
    assert "told of 3 latents, made 2" in said("a", "b", "b")
    with (made / "manifest.jsonl").open("a") as f:
        f.write('{"name": "b"}\n')
    assert "twice: ['b']" in said("a", "b")
    (made / "a.pt").write_bytes(b"x")
    assert "not the same: ['a.pt']" in said("a", "b")
    (made / "a.pt").unlink()
    assert "lost: ['a.pt']" in said("b")
    assert "exit code 1" in clusters.difference(Result(1, b"", b""), made, plain)


@pytest.mark.slow
def test_more_workers_than_there_is_room_for(two: Cluster, encode: Any, tmp_path: Path) -> None:
    photos(tmp_path, 2)
    done = two.run(*encode("rayed", workers=40), cwd=tmp_path)
    assert done.failed(2).startswith("the cluster has room for 2, not for 40 workers with 1 processor")
    assert not (tmp_path / "rayed").exists()


@pytest.mark.slow
def test_workers_without_the_package_or_with_another_version(two: Cluster, encode: Any, tmp_path: Path) -> None:
    import ddimctl

    photos(tmp_path, 2)
    package = two.shadow / "ddimctl"
    package.mkdir()
    real = str(Path(ddimctl.__file__).parent)
    other = f"__path__ = [{real!r}]\nimport ddimctl.version\nddimctl.version.__version__ = '0.0.1'\n"
    missing = "raise ModuleNotFoundError(\"No module named 'ddimctl'\", name='ddimctl')\n"
    try:
        for code, said in (
            (other, r"the worker on \S+ has ddimctl 0\.0\.1, not"),
            (missing, "a worker has no ddimctl"),
        ):
            (package / "__init__.py").write_text(code)
            assert re.match(said, two.run(*encode("rayed"), cwd=tmp_path).failed(1))
            assert not list((tmp_path / "rayed").glob("*.pt"))
    finally:
        shutil.rmtree(package)


@pytest.mark.slow
def test_one_that_is_started_here(encode: Any, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    """On the loopback alone, with nothing left behind; a single image goes the same way."""
    photos(tmp_path, 1)
    how = ("-m", model_folder, "--steps", 2, "--engine", "torch")
    command = [*clusters.lone(), sys.executable, "-m", "ddimctl", "encode", "photos/000.png", *how, "--on", "ray"]
    done = subprocess.run(
        [str(a) for a in command],
        cwd=tmp_path,
        env=isolated(tmp_path / "home", clusters.PATIENT),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"000.pt\n", b"")
    invoke("encode", "photos/000.png", *how, "-o", "plain.pt").ok()
    assert (tmp_path / "000.pt").read_bytes() == (tmp_path / "plain.pt").read_bytes()
