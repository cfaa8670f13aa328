"""``ddimctl ui``: who may ask, what it answers, and the page in a real browser.

What needs gradio needs an environment of its own: `make test-ui`.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, isolated

from ddimctl import latent, roundtrip
from ddimctl.cli import ui
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.families import load
from ddimctl.images import levels, reading
from ddimctl.model import NOTHING
from ddimctl.page import guard
from ddimctl.page.work import CURVE, FRAMES, Stop, Stopped, Studio
from ddimctl.recipe import Way
from ddimctl.sampling import Noising

Invoke = Callable[..., Result]
ROOT = Path(__file__).parent.parent
GOOD = {"host": "127.0.0.1:7860"}


# Who may ask


def ask(headers: dict[str, str], body: list[bytes] = [b""], kind: str = "http") -> list[dict[str, Any]]:  # noqa: B006
    """What the guard sends for a request, whose body comes in these pieces."""
    sent: list[dict[str, Any]] = []
    left = [{"type": "http.request", "body": b, "more_body": i < len(body) - 1} for i, b in enumerate(body)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        while (await receive()).get("more_body"):
            pass
        own = [(b"content-type", b"text/html"), (b"content-security-policy", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": own})
        await send({"type": "http.response.body", "body": b"page"})

    async def receive() -> Any:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    asyncio.run(guard.guarded(app, 7860)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (GOOD, 200),
        ({"host": "localhost:7860"}, 200),
        ({**GOOD, "origin": "http://127.0.0.1:7860"}, 200),
        ({**GOOD, "sec-fetch-site": "same-origin"}, 200),
        ({"host": "evil.example"}, 400),
        ({"host": "127.0.0.1:7861"}, 400),
        ({"host": "127.0.0.1.evil.example:7860"}, 400),
        ({}, 400),
        ({**GOOD, "origin": "http://evil.example"}, 403),
        ({**GOOD, "origin": "null"}, 403),
        ({**GOOD, "origin": "https://127.0.0.1:7860"}, 403),
        ({**GOOD, "sec-fetch-site": "cross-site"}, 403),
        ({**GOOD, "content-length": str(20 << 20)}, 413),
        ({**GOOD, "content-length": "-1"}, 413),
    ],
)
def test_foreign_requests_are_refused(headers: dict[str, str], status: int) -> None:
    start, body = ask(headers)
    assert start["status"] == status
    assert (body["body"] == b"page") == (status == 200)


def test_what_tells_no_length_is_counted() -> None:
    assert ask(GOOD, [b"x" * (1 << 20)] * 15)[0]["status"] == 200
    assert ask(GOOD, [b"x" * (1 << 20)] * 20)[0]["status"] == 413


def test_a_policy_goes_with_every_answer() -> None:
    headers = ask(GOOD)[0]["headers"]
    policies = [v.decode() for k, v in headers if k == b"content-security-policy"]
    assert policies == [guard.POLICY]
    assert "http" not in guard.POLICY


def test_sockets_are_refused_too() -> None:
    assert ask(GOOD, kind="websocket") == [{"type": "websocket.accept"}]
    assert ask({**GOOD, "origin": "http://evil.example"}, kind="websocket") == [
        {"type": "websocket.close", "code": 1008}
    ]


# What it asks of the library


@pytest.fixture
def studio(model_folder: Path) -> Studio:
    return Studio(load(str(model_folder), "cpu"))


@pytest.fixture
def images(model_folder: Path) -> list[str]:
    return [str(model_folder / "held-out" / f"00{i}.png") for i in range(4)]


WAY = Way(steps=3)


def test_a_round_trip_is_the_librarys(studio: Studio, images: list[str]) -> None:
    parts = list(studio.reconstruct(images[0], WAY, condition=NOTHING, stop=Stop()))
    assert len(parts) == 1 + len(CURVE)
    x0 = levels.to_tensor(reading.read(images[0], 1, (16, 16))[0][None])
    (trip,) = roundtrip.measure(studio.model, [x0], [WAY])
    assert f"mse {trip.total('mse'):.4g}," in parts[0]
    assert parts[0].count("<img ") == 3
    assert all(p.startswith(parts[0]) and p.count("<svg ") == 1 for p in parts[1:])
    assert [p.count("<circle ") for p in parts[1:]] == [2, 3, 4, 5]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_ends_between_images_are_the_images(studio: Studio, images: list[str], tmp_path: Path, n: int) -> None:
    found = studio.between(images[:n], Way(steps=20), condition=NOTHING, stop=Stop())
    assert len(found.pixels) == FRAMES + (FRAMES - 1) * (n - 2)
    for i, path in ((0, images[0]), (-1, images[n - 1])):
        (trip,) = roundtrip.measure(studio.model, [studio.image(path)], [Way(steps=20)], keep=1)
        assert abs(found.pixels[i].astype(int) - levels.to_pixels(trip.shown[0]).astype(int)).max() <= 1
    assert found.html().count("<img ") == len(found.pixels)
    assert found.html().count(" hidden>") == len(found.pixels) - 1
    files = found.save(tmp_path)
    assert {p.suffix for p in files.values()} == {".gif", ".png", ".pt"}
    assert len(latent.load(files["pt"]).xT) == len(found.pixels)


def test_latents_are_taken_as_they_are(studio: Studio, images: list[str], tmp_path: Path) -> None:
    files = studio.between(images[:2], WAY, condition=NOTHING, stop=Stop()).save(tmp_path)
    known = latent.load(files["pt"]).xT[:1]
    torch.testing.assert_close(studio.latent_of(str(files["pt"]), WAY, condition=NOTHING, stop=Stop()), known)
    said = studio.health(str(files["pt"]), WAY, condition=NOTHING, stop=Stop())
    assert "noise" in said
    assert said.count("<svg ") == 2
    other = ROOT / "tests/fixtures/latents/one.pt"
    with pytest.raises(FileError, match=r"one\.pt was encoded with another model"):
        studio.health(str(other), WAY, condition=NOTHING, stop=Stop())


def test_samples_are_those_of_the_seed(studio: Studio) -> None:
    first = studio.sample(7, 3, Noising(WAY), condition=NOTHING, stop=Stop())
    assert first.count("<img ") == 3
    assert first == studio.sample(7, 3, Noising(WAY), condition=NOTHING, stop=Stop())
    assert first != studio.sample(8, 3, Noising(WAY), condition=NOTHING, stop=Stop())
    assert studio.sample(7, 10**9, Noising(Way(steps=1)), condition=NOTHING, stop=Stop()).count("<img ") == 64


def test_work_ends_between_two_steps(studio: Studio, images: list[str]) -> None:
    stop = Stop()
    parts = studio.reconstruct(images[0], WAY, condition=NOTHING, stop=stop)
    next(parts)
    stop.now()
    with pytest.raises(Stopped):
        next(parts)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda s: next(s.reconstruct(None, WAY, condition=NOTHING, stop=Stop())), "there is no image"),
        (lambda s: s.between(["a.png"], WAY, condition=NOTHING, stop=Stop()), "two to four images or latents, not 1"),
        (lambda s: s.health(None, WAY, condition=NOTHING, stop=Stop()), "there is no latent and no image"),
        (lambda s: s.sample(0, 1, Noising(Way(steps=0)), condition=NOTHING, stop=Stop()), "steps"),
    ],
)
def test_errors_are_sentences(studio: Studio, work: Callable[[Studio], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        work(studio)


def test_a_model_that_hears_no_text_is_not_asked(studio: Studio) -> None:
    assert not studio.hears_text


# The command


def test_without_the_extra(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "gradio" else real(n, *a))
    done = invoke("ui")
    assert "'ui'" in done.failed(2)
    assert "constraints-ui.txt" in done.err


def test_only_this_machine_reaches_it() -> None:
    with ui.listening(0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(DDIMError, match=r"port \d+ cannot be had") as raised:
            ui.listening(other.getsockname()[1])
        assert "--port 0" in raised.value.hint


def test_the_two_lists_of_versions_agree() -> None:
    """But for what gradio needs to be older."""
    lists = [dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / n).read_text(), re.MULTILINE))
             for n in ("constraints.txt", "constraints-ui.txt")]  # fmt: skip
    assert {k for k, v in lists[0].items() if lists[1].get(k) != v} == {"pillow", "tomlkit"}


# In a browser

browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
with_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not here: see make test-ui"
)
with_browser = pytest.mark.skipif(
    browser_path is None or importlib.util.find_spec("playwright") is None, reason="no Chromium here, or no playwright"
)


@pytest.fixture(scope="module")
def port(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The page of the tiny model, served by a process of its own."""
    home = tmp_path_factory.mktemp("home")
    words = ["ui", "-m", str(model_folder), "--port", "0", "--engine", "torch", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ddimctl", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=isolated(home, {"GRADIO_TEMP_DIR": str(home)}), cwd=home,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), process.stderr.read()
    yield int(url.rsplit(":", 1)[1])
    process.terminate()
    assert process.wait(60) == 143
    errors = process.stderr.read()
    assert "Traceback" not in errors, errors


def status(port: int, path: str, headers: dict[str, str], body: bytes | None = None) -> int:
    """The status of an answer; the request may name another host."""
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            known = {"Host": f"127.0.0.1:{port}", **headers}
            connection.request("GET" if body is None else "POST", path, body=body, headers=known)
            return connection.getresponse().status
        except ConnectionRefusedError:  # it is starting
            time.sleep(0.1)
    raise AssertionError("it never started")


@pytest.mark.slow
@with_gradio
def test_the_server_refuses_what_is_foreign(port: int) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--b--\r\n'
    assert status(port, "/", {}) == 200
    assert status(port, "/", {"Host": "evil.example"}) == 400
    assert status(port, "/", {"Origin": "http://evil.example"}) == 403
    assert status(port, "/gradio_api/file=/etc/passwd", {}) == 403
    assert status(port, "/gradio_api/upload", form, part % b"0") == 200
    assert status(port, "/gradio_api/upload", form, part % (b"0" * (20 << 20))) == 413


@pytest.fixture
def tab(port: int) -> Iterator[Any]:
    """The page in a browser; fails the test if anything but this machine is asked, or the script fails."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda e: wrong.append(str(e)))
        here = (f"http://127.0.0.1:{port}/", "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(here) else wrong.append(r.url))
        status(port, "/", {})
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_role("button", name="Reconstruct").wait_for()
        yield page
        browser.close()
    assert not wrong


def drop(tab: Any, files: Any) -> None:
    """Uploads files in the tab that is open, and waits until they are there."""
    panel = tab.locator("[role=tabpanel]:visible")
    panel.locator("input[type=file]").first.set_input_files(files)
    panel.locator(".file-preview").wait_for()


@pytest.mark.slow
@with_gradio
@with_browser
def test_an_upload_is_reconstructed(tab: Any, images: list[str]) -> None:
    tab.get_by_role("button", name="Reconstruct").click()
    tab.get_by_text("error: there is no image").wait_for()
    drop(tab, images[0])
    tab.get_by_role("button", name="Reconstruct").click()
    tab.locator("#trip-shown svg circle").nth(len(CURVE) - 1).wait_for()  # the default S is one of them
    assert tab.locator("#trip-shown img").count() == 3


@pytest.mark.slow
@with_gradio
@with_browser
def test_the_picture_follows_the_slider(tab: Any, images: list[str]) -> None:
    tab.get_by_role("tab", name="Interpolate").click()
    drop(tab, images[:2])
    tab.get_by_role("button", name="Interpolate").click()
    tab.locator("#between .frame").nth(FRAMES - 1).wait_for(state="attached")
    shown = "[...document.querySelectorAll('#between .frame')].findIndex(f => !f.hidden)"
    assert tab.evaluate(shown) == 0
    slider = tab.locator("#between-slider input[type=range]")
    slider.focus()
    tab.keyboard.press("End")
    for _ in range(100):
        if tab.evaluate(shown) == FRAMES - 1:
            break
        tab.wait_for_timeout(50)
    assert tab.evaluate(shown) == FRAMES - 1
    with tab.expect_download() as load:
        tab.get_by_role("button", name="Download film").click()
    assert load.value.suggested_filename == "between.gif"


@pytest.mark.slow
@with_gradio
@with_browser
def test_work_is_cancelled(tab: Any, images: list[str]) -> None:
    tab.get_by_role("tab", name="Sample").click()
    panel = tab.locator("[role=tabpanel]:visible")
    panel.get_by_label("Images").first.fill("64")
    panel.get_by_label("Steps S").first.fill("100")
    panel.get_by_role("button", name="Sample").click()
    tab.wait_for_timeout(300)
    panel.get_by_role("button", name="Cancel").click()
    tab.get_by_text("cancelled").wait_for()
