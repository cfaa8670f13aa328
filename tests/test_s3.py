"""A store of objects, s3://, as moto serves one on the loopback address: read and written as files here are."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from test_remote import picture

Invoke = Callable[..., Result]
s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytest.importorskip("flask_cors")
N = 5
LOOPBACK = "127.0.0.1"
HEADERS = {  # moto looks whether somebody signed, and not who
    "Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, Signature=b",
    "Content-Type": "application/octet-stream",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A store of objects; its URL."""
    from moto.server import ThreadedMotoServer

    served = ThreadedMotoServer(LOOPBACK, 0, verbose=False)
    served.start()
    try:
        yield "http://{}:{}".format(*served.get_host_and_port())
    finally:
        served.stop()


class Store:
    """What lies there, asked of the store itself and not of the driver."""

    def __init__(self, at: str):
        self.at = at

    def ask(self, name: str, method: str, data: bytes = b"") -> bytes:
        request = urllib.request.Request(f"{self.at}/{name}", data, HEADERS, method=method)
        with urllib.request.urlopen(request) as answer:
            body: bytes = answer.read()
            return body

    def get(self, name: str) -> bytes:
        return self.ask(name, "GET")

    def names(self, bucket: str) -> list[str]:
        from xml.etree import ElementTree

        found = ElementTree.fromstring(self.ask(f"{bucket}?list-type=2", "GET"))
        return [str(e.text) for e in found.iter() if e.tag.endswith("}Key")]


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store with a bucket of images and an empty one, as the environment names it; nobody else is asked for anything."""
    found = Store(server)
    found.ask("moto-api/reset", "POST")
    for bucket in ("photos", "made"):
        found.ask(bucket, "PUT")
    for i in range(N):
        found.ask(f"photos/in/deep/{i}.png" if i % 2 else f"photos/in/{i}.png", "PUT", picture(i))
    asked: set[str] = set()
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        asked.add(str(address[0]))
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield found
    assert asked == {LOOPBACK}
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def encode(store: Store, invoke: Invoke, model_folder: Path) -> Invoke:
    def run(*args: object) -> Result:
        return invoke("encode", "s3://photos/in/", "-m", model_folder, "--steps", 2, "--batch-size", 2, *args)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_become_shards_and_images_again(
    kind: str, store: Store, encode: Invoke, invoke: Invoke, tmp_path: Path
) -> None:
    """The bytes that the same run makes here; what is missing is made again, and only that."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    to = ("-o", f"s3://made/latents/{{shard:02}}.{kind}", "--per-shard", 2)
    done = encode(*to).ok()
    names = [f"latents/{i:02}.{kind}" for i in range(3)]
    assert store.names("made") == names
    assert f"encoded: {N}, there already: 0, failed: 0" in done.err
    encode("-o", f"latents/{{shard:02}}.{kind}", "--per-shard", 2).ok()
    for name in names:
        assert store.get(f"made/{name}") == (tmp_path / name).read_bytes()
    store.ask(f"made/{names[1]}", "DELETE")
    s3fs.S3FileSystem.clear_instance_cache()  # as another process would begin
    assert f"encoded: 2, there already: {N - 2}, failed: 0" in encode(*to).ok().err
    assert store.get(f"made/{names[1]}") == (tmp_path / names[1]).read_bytes()
    assert f"{names[0]} exists already and is not what this would make" in encode(*to, "--solver", "ddim").failed(2)
    assert store.names("made") == names
    invoke("decode", "s3://made/latents/", "-o", "s3://made/back/").ok()
    invoke("decode", "latents", "-o", "back").ok()
    pictures = [str(p.relative_to(tmp_path)) for p in (tmp_path / "back").rglob("*.png")]
    assert len(pictures) == N
    assert sorted(pictures) == [name for name in store.names("made") if name.endswith(".png")]
    assert "there already: 5, failed: 0" in invoke("decode", "s3://made/latents/", "-o", "s3://made/back/").ok().err
    assert not (tmp_path / "s3:").exists()


@pytest.mark.slow
def test_a_latent_each(store: Store, encode: Invoke, tmp_path: Path) -> None:
    encode("-o", "s3://made/each/").ok()
    encode("-o", "each").ok()
    made = list((tmp_path / "each").rglob("*.pt"))
    assert len(made) == N
    assert {f"made/each/{p.relative_to(tmp_path / 'each').as_posix()}" for p in made} == {
        f"made/{name}" for name in store.names("made")
    }
    for path in made:
        assert store.get(f"made/{path.relative_to(tmp_path).as_posix()}") == path.read_bytes()
    assert f"there already: {N}" in encode("-o", "s3://made/each/").ok().err


@pytest.mark.slow
def test_what_is_not_there(store: Store, encode: Invoke, invoke: Invoke, model_folder: Path) -> None:
    """A bucket that is not there is none to be made; a key that is wrong is told by the store."""
    assert "cannot write s3://nowhere/0" in encode("-o", "s3://nowhere/{shard}.tar").failed(1)
    assert "cannot write s3://nowhere/x/" in encode("-o", "s3://nowhere/x/").failed(1)
    with pytest.raises(urllib.error.HTTPError):
        store.names("nowhere")
    how = ("-m", model_folder, "--steps", 2)
    assert "s3://nowhere/" in invoke("encode", "s3://nowhere/a.png", "-o", "a.pt", *how).failed(2)
    assert "holds nothing" in invoke("encode", "s3://photos/none/", "-o", "a", *how).failed(2)
