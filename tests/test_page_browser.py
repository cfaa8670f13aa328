"""The page in a real browser, and what its server answers: see `make test-ui`, as gradio needs an environment of its own."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import HANGS, isolated

from ddimctl.cli import ui
from ddimctl.families import load
from ddimctl.model import Condition
from ddimctl.page.between import FINE, SIDE, STEP
from ddimctl.page.work import CURVE, Stop, Stopped, Studio
from ddimctl.recipe import Way
from ddimctl.sampling import Noising

ROOT = Path(__file__).parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def here(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not here("gradio"), reason="gradio is not here: see make test-ui"),
]
with_browser = pytest.mark.skipif(
    BROWSER is None or not here("playwright"),
    reason="left out: no Chromium here, or no playwright",
)
with_axe = pytest.mark.skipif(not here("axe_playwright_python"), reason="axe is not here: see make test-ui")
PATIENCE = 300_000  # ms: however busy the machine is
CLASSY = ROOT / "tests/fixtures/models/classes"
IMAGES = [str(ROOT / f"models/emoji/held-out/00{i}.png") for i in range(4)]


def waiting(wait: Callable[[float], object] = lambda ms: time.sleep(ms / 1000)) -> Iterator[None]:
    """Looks at something now and again, until it is too late."""
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        yield
        wait(50)


# Servers


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file of a folder was written, and what it holds."""
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def process(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`ddimctl ui` of the tiny model, as a process."""
    home, models = tmp_path_factory.mktemp("home"), contents(model_folder)
    words = ["ui", "-m", str(model_folder), "--port", "0", "--engine", "torch", "--device", "cpu"]
    started = subprocess.Popen(
        [sys.executable, "-m", "ddimctl", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=isolated(home), cwd=home,
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stderr is not None
    url = started.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), started.stderr.read()
    yield started, int(url.rsplit(":", 1)[1])
    started.terminate()
    assert started.wait(HANGS) == 143
    errors = started.stderr.read()
    assert "Traceback" not in errors, errors
    assert contents(model_folder) == models  # a page never writes a model
    left = {p.name for p in home.rglob("*")}
    assert left <= {".config", "matplotlib"}  # which gradio loads: nothing of what was dropped


@pytest.fixture(scope="module")
def port(process: Any) -> int:
    number: int = process[1]
    return number


class Slow:
    """A model's network, which counts its evaluations, and takes a while for each if it is told to.

    While it is `held`, it waits in the fourth evaluation, for as long as the work that was begun first is `wanted`.
    """

    def __init__(self, studio: Studio):
        self.calls, self.seconds, self.held = 0, 0.0, False
        self.wanted: Callable[[], bool] = lambda: True
        network = studio.model.network
        self.call = network.call
        self.studio = replace(studio, model=studio.model.with_network(replace(network, call=self)))

    def __call__(self, *values: Any) -> Any:
        self.calls += 1
        time.sleep(self.seconds)
        while self.held and self.calls > 3 and self.wanted():
            time.sleep(0.01)
        return self.call(*values)


@dataclass
class Served:
    """A page that is served by this process: what it is of, and what it shares."""

    slow: Slow
    page: Any
    port: int


@contextlib.contextmanager
def serving(studio: Studio, folder: Path) -> Iterator[Served]:
    from ddimctl.page import app, shared

    slow = Slow(studio)
    with ui.listening(0) as bound:
        port = bound.getsockname()[1]
        page = shared.Page(slow.studio)

        def wanted() -> bool:
            with contextlib.suppress(Stopped):
                for stop in list(page.stops.values())[:1]:
                    stop.check()
                return True
            return False

        slow.wanted = wanted
        server = app.server(page, port, folder)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield Served(slow, page, port)
        finally:
            server.should_exit = True
            thread.join(HANGS)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of the tiny model, in this process."""
    with serving(Studio(load(str(model_folder), "cpu")), tmp_path_factory.mktemp("dropped")) as found:
        yield found


@pytest.fixture(scope="module")
def classy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a small model of three classes."""
    with serving(Studio(load(str(CLASSY), "cpu")), tmp_path_factory.mktemp("classy")) as found:
        yield found


def status(port: int, path: str, headers: dict[str, str], body: bytes | None = None) -> int:
    """The status of an answer; the request may name another host."""
    for _ in waiting():
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANGS)
            known = {"Host": f"127.0.0.1:{port}", **headers}
            connection.request("GET" if body is None else "POST", path, body=body, headers=known)
            return connection.getresponse().status
        except ConnectionRefusedError:  # it is starting
            continue
    raise AssertionError("it never started")


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--b--\r\n'


def test_the_server_refuses_what_is_foreign(port: int) -> None:
    assert status(port, "/", {}) == 200
    assert status(port, "/", {"Host": "evil.example"}) == 400
    assert status(port, "/", {"Origin": "http://evil.example"}) == 403
    assert status(port, "/gradio_api/file=/etc/passwd", {}) == 403
    assert status(port, "/gradio_api/file=../../../../etc/passwd", {}) == 403
    assert status(port, "/kept/x/..%2f..%2fetc%2fpasswd", {}) == 404
    assert status(port, "/kept/x/ahead", {}) == 400
    assert status(port, "/gradio_api/upload", FORM, PART % b"0") == 200
    assert status(port, "/gradio_api/upload", FORM, PART % (b"0" * (20 << 20))) == 413


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tabs(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a tab; fails the test if anything but this machine is asked, or the script fails."""
    wrong: list[str] = []
    contexts = []

    def open_tab(port: int, **how: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **how})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda e: wrong.append(str(e)))
        local = (f"http://127.0.0.1:{port}/", "data:", "blob:")
        tab.on("request", lambda r: None if r.url.startswith(local) else wrong.append(r.url))
        status(port, "/", {})
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.get_by_role("button", name="Reconstruct").wait_for()
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    assert not wrong


def panel(tab: Any, name: str) -> Any:
    """A tab of the page, opened."""
    tab.get_by_role("tab", name=name).click()
    return tab.locator("[role=tabpanel]:visible")


def drop(part: Any, files: Any) -> None:
    """Uploads files, and waits until they are there."""
    part.locator("input[type=file]").first.set_input_files(files)
    part.locator(".file-preview").first.wait_for()


def until(tab: Any, true: Callable[[], Any]) -> None:
    """Waits for what happens in time."""
    for _ in waiting(tab.wait_for_timeout):
        if true():
            return
    raise AssertionError("it never came to that")


@with_browser
def test_an_upload_is_reconstructed(tabs: Any, port: int) -> None:
    tab = tabs(port)
    part = panel(tab, "Reconstruct")
    part.get_by_role("button", name="Reconstruct").click()
    tab.get_by_text("error: there is no image").wait_for()
    drop(part, IMAGES[0])
    part.get_by_role("button", name="Reconstruct").click()
    tab.locator("#reconstruct-shown svg circle").nth(len(CURVE) - 1).wait_for()  # the default S is one of them
    assert tab.locator("#reconstruct-shown img").count() == 3


@with_browser
def test_the_picture_follows_the_slider(tabs: Any, port: int, tmp_path: Path) -> None:
    tab = tabs(port)
    part = panel(tab, "Interpolate")
    drop(part, IMAGES[:2])
    part.get_by_role("button", name="Interpolate").click()
    viewer = tab.locator(".between")
    until(tab, lambda: viewer.get_attribute("data-ready") == str(FINE // STEP + 1))
    now, slider = viewer.locator(".now"), viewer.get_by_role("slider")
    first = now.get_attribute("src")
    slider.focus()
    tab.keyboard.press("End")
    assert now.get_attribute("data-place") == f"{FINE}.0"
    assert now.get_attribute("src") != first
    tab.keyboard.press("ArrowLeft")  # between two that are ready
    until(tab, lambda: now.get_attribute("data-place") == f"{FINE - 1}.0")
    assert slider.get_attribute("aria-valuetext") == "99 %"
    for said, name in (
        ("Film (.gif)", "film.gif"), ("Film (.mp4)", "film.mp4"), ("Strip (.png)", "sheet.png"),
        ("All latents (.pt)", "latents.pt"), ("This picture (.png)", f"{FINE - 1}.0.png"),
        ("This latent (.pt)", f"{FINE - 1}.0.pt"),
    ):  # fmt: skip
        with tab.expect_download() as load:
            viewer.get_by_role("button", name=said).click()
        assert load.value.suggested_filename == f"ddimctl-{name}"
        load.value.save_as(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0
    key = viewer.get_attribute("data-kept")
    part.get_by_role("button", name="Interpolate").click()  # again: the viewer begins anew
    until(tab, lambda: viewer.get_attribute("data-kept") != key)
    until(tab, lambda: viewer.get_attribute("data-ready") == str(FINE // STEP + 1))
    assert (slider.input_value(), now.get_attribute("data-place")) == ("0", "0.0")
    assert viewer.count() == 1


@with_browser
def test_the_picture_follows_the_hand_inside_four_corners(tabs: Any, port: int) -> None:
    tab = tabs(port)
    part = panel(tab, "Interpolate")
    drop(part, IMAGES)
    part.get_by_role("button", name="Interpolate").click()
    viewer = tab.locator(".between")
    until(tab, lambda: viewer.get_attribute("data-ready") == str((SIDE // STEP + 1) ** 2))
    now, pad = viewer.locator(".now"), viewer.locator(".pad")
    assert pad.locator("img[src]").count() == 4
    box = pad.bounding_box()
    tab.mouse.move(box["x"] + 5, box["y"] + 5)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    tab.mouse.up()
    assert now.get_attribute("data-place") == f"{SIDE // 2}.{SIDE // 4}"
    tab.mouse.move(box["x"], box["y"])  # no button is pressed
    assert [s.input_value() for s in viewer.get_by_role("slider").all()] == [str(SIDE // 2), str(SIDE // 4)]
    viewer.get_by_role("slider", name="From top to bottom").focus()
    tab.keyboard.press("ArrowRight")
    until(tab, lambda: now.get_attribute("data-place") == f"{SIDE // 2}.{SIDE // 4 + 1}")


@with_browser
def test_latents_are_added_and_downloaded(tabs: Any, port: int) -> None:
    tab = tabs(port)
    part = panel(tab, "Latent")
    assert not part.get_by_label("Weights").is_visible()
    part.get_by_label("What to do with them").click()
    tab.get_by_role("option", name="mix").click()
    part.get_by_label("Weights").fill("1, x, 2")
    drop(part, IMAGES[:2])
    part.get_by_role("button", name="Compute").click()
    tab.get_by_text("are no weights").wait_for()
    part.get_by_label("Weights").fill("1, 2")
    part.get_by_role("button", name="Compute").click()
    with tab.expect_download() as load:
        tab.get_by_role("button", name="This latent").click()
    assert load.value.suggested_filename == "ddimctl-latent.pt"


@with_browser
@pytest.mark.skipif(not (here("diffusers") and here("transformers")), reason="the extra 'diffusers' is not here")
def test_models_that_take_text_are_asked_in_words(
    tabs: Any, port: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from pipelines import folder_of

    other = tabs(port)
    assert not other.get_by_role("tab", name="Edit").count()
    assert not other.get_by_label("Prompt", exact=True).first.is_visible()
    model = load(str(folder_of("sd", tmp_path_factory)), "cpu")
    with serving(Studio(model), tmp_path_factory.mktemp("words")) as said:
        tab = tabs(said.port)
        for name in ("Reconstruct", "Interpolate", "Latent", "Sample"):
            part = panel(tab, name)
            prompt = "Prompt, or a line for each" if name == "Interpolate" else "Prompt"
            for label in (prompt, "Negative prompt", "number input for Guidance"):
                assert part.get_by_label(label, exact=True).is_visible(), (name, label)
        part = panel(tab, "Interpolate")
        drop(part, IMAGES[:2])
        part.get_by_label("number input for Steps S").fill("2")
        for lines, shown in (("a\nb\nc", "[role=alert]"), ("a cat\na dog", ".between")):
            part.get_by_label("Prompt, or a line for each").fill(lines)
            part.get_by_role("button", name="Interpolate").click()
            tab.locator(f"#interpolate-shown {shown}").wait_for()
        key = tab.locator(".between").get_attribute("data-kept")
        assert [c.prompt for c in said.page.shelf.get(key).asked] == ["a cat", "a dog"]
        part = panel(tab, "Edit")
        drop(part, IMAGES[0])
        part.get_by_label("Source prompt").fill("a cat")
        part.get_by_label("Target prompt").fill("<b>a dog</b>")
        part.get_by_label("number input for Steps S").fill("2")
        part.get_by_role("button", name="Edit").click()
        tab.locator("#edit-shown img").nth(3).wait_for()
        assert tab.get_by_text("edited to\n<b>a dog</b>").count() == 1
        tab.close()


def choose(tab: Any, part: Any, label: str, option: str) -> None:
    """Chooses of a list, by hand."""
    part.get_by_label(label, exact=True).click()
    tab.get_by_role("option", name=option, exact=True).click()


@with_browser
def test_models_with_classes_are_asked_for_one(tabs: Any, classy: Served) -> None:
    tab, studio = tabs(classy.port), classy.page.studio
    for name in ("Reconstruct", "Interpolate", "Latent", "Sample"):
        part = panel(tab, name)
        assert part.get_by_label("Class", exact=True).is_visible(), name
        assert not part.get_by_label("Prompt", exact=True).is_visible(), name
    part = panel(tab, "Sample")
    part.get_by_label("number input for Images").fill("2")
    for number in ("2", "1"):
        choose(tab, part, "Class", number)
        part.get_by_role("button", name="Sample").click()
        exact = studio.sample(0, 2, Noising(Way()), condition=Condition(int(number)), stop=Stop())
        until(tab, lambda exact=exact: pictures(tab.locator("#sample-shown").inner_html()) == pictures(exact))
    part = panel(tab, "Edit")
    drop(part, str(CLASSY / "held-out/002.png"))
    choose(tab, part, "Source class", "2")
    part.get_by_role("button", name="Edit").click()
    tab.locator("#edit-shown img").nth(3).wait_for()
    assert part.get_by_text("back as\nclass 2").count() == 1
    assert part.get_by_text("edited to\nclass 0").count() == 1
    path, source, target = str(CLASSY / "held-out/002.png"), Condition(2), Condition(0)
    exact = studio.edit(path, Way(), source=source, target=target, keep=True, stop=Stop())
    assert pictures(tab.locator("#edit-shown").inner_html()) == pictures(exact)


def pictures(html: str) -> list[str]:
    """What a part of the page shows, picture by picture."""
    return re.findall(r'src="(data:image/png[^"]+)"', html)


LONG = 100  # steps


def start_long(tab: Any, served: Served) -> Any:
    """What starts something of a hundred evaluations, which waits in the fourth of them; the part of the page."""
    part = panel(tab, "Sample")
    part.get_by_label("number input for Steps S").fill(str(LONG))
    served.slow.calls, served.slow.held = 0, True
    return part


@pytest.fixture
def quick(served: Served) -> Iterator[Served]:
    """The page in this process, whose network is as fast as it is, and idle at the end."""
    yield served
    served.slow.seconds, served.slow.held = 0.0, False
    for _ in waiting():
        if not served.page.stops:
            return
    raise AssertionError("it is not idle")


@with_browser
def test_work_is_cancelled(tabs: Any, quick: Served) -> None:
    tab = tabs(quick.port)
    part = start_long(tab, quick)
    part.get_by_role("button", name="Sample").click()
    until(tab, lambda: quick.slow.calls > 2)
    bar = part.locator(".progress-bar")
    bar.first.wait_for()
    part.get_by_role("button", name="Cancel").click()
    tab.get_by_text("cancelled").wait_for()
    assert quick.slow.calls < LONG


@with_browser
def test_work_that_waits_is_cancelled(tabs: Any, quick: Served) -> None:
    """In another tab of the browser, or another part of the same page; what is under way goes on."""
    first, second = tabs(quick.port), tabs(quick.port)
    start_long(first, quick).get_by_role("button", name="Sample").click()
    until(first, lambda: quick.slow.calls > 2)
    for tab, name in ((first, "Reconstruct"), (second, "Sample")):
        part = panel(tab, name)
        if name == "Reconstruct":
            drop(part, IMAGES[0])
        part.get_by_role("button", name=name).click()
        part.get_by_text("waits until other work is done").wait_for()
        part.get_by_role("button", name="Cancel").click()
        tab.locator(f"#{name.lower()}-shown").get_by_text("cancelled").wait_for()
        assert len(quick.page.stops) == 1
    quick.slow.held = False
    panel(first, "Sample")
    first.locator("#sample-shown img").first.wait_for()
    assert quick.slow.calls == LONG


@with_browser
def test_a_tab_that_is_closed_ends_its_work(tabs: Any, quick: Served) -> None:
    tab = tabs(quick.port)
    start_long(tab, quick).get_by_role("button", name="Sample").click()
    until(tab, lambda: quick.slow.calls > 2)
    tab.close()
    for _ in waiting():
        if not quick.page.stops:
            break
    assert not quick.page.stops
    assert quick.slow.calls < LONG


@with_browser
def test_what_a_tab_keeps_goes_with_it(tabs: Any, quick: Served) -> None:
    tab = tabs(quick.port)
    part = panel(tab, "Interpolate")
    drop(part, IMAGES[:2])
    part.get_by_role("button", name="Interpolate").click()
    tab.locator(".between").wait_for()
    assert len(quick.page.shelf) == 1
    tab.close()
    for _ in waiting():
        if len(quick.page.shelf) == 0:
            return
    raise AssertionError("it is still kept")


@with_browser
def test_a_hundred_clicks_are_one_computation(tabs: Any, quick: Served) -> None:
    tab = tabs(quick.port)
    asked: list[str] = []
    tab.on("request", lambda r: asked.append(r.url) if "/queue/join" in r.url else None)
    part = start_long(tab, quick)
    part.get_by_role("button", name="Sample").evaluate(
        """async (b) => { for (let i = 0; i < 100; i++) { b.click(); await new Promise((done) => setTimeout(done, 5)); } }"""
    )
    quick.slow.held = False
    tab.locator("#sample-shown img").first.wait_for()
    assert len(asked) == 1
    assert quick.slow.calls == LONG


@with_browser
def test_two_tabs_are_both_served(tabs: Any, quick: Served) -> None:
    two = [tabs(quick.port), tabs(quick.port)]
    quick.slow.seconds = 0.01
    for seed, tab in enumerate(two):
        part = panel(tab, "Sample")
        part.get_by_label("Seed").fill(str(seed))
        part.get_by_role("button", name="Sample").click()
    shown = []
    for tab in two:
        tab.locator("#sample-shown img").nth(15).wait_for()
        shown.append(tab.locator("#sample-shown img").first.get_attribute("src"))
    assert shown[0] != shown[1]


@with_browser
def test_what_is_ready_is_shown_without_asking(tabs: Any, quick: Served) -> None:
    """And a slow step does not block the page: the hand sees the nearest of what is there."""
    tab = tabs(quick.port)
    part = panel(tab, "Interpolate")
    drop(part, IMAGES[:2])
    part.get_by_role("button", name="Interpolate").click()
    viewer = tab.locator(".between")
    until(tab, lambda: viewer.get_attribute("data-ready") == str(FINE // STEP + 1))
    asked: list[str] = []
    tab.on("request", lambda r: asked.append(r.url))
    slider, now = viewer.get_by_role("slider"), viewer.locator(".now")
    for i in range(0, FINE + 1, STEP):
        slider.fill(str(i))
        assert now.get_attribute("data-place") == f"{i}.0"
    assert not asked
    quick.slow.seconds = 0.2
    slider.fill(str(2 * STEP + 1))
    assert now.get_attribute("data-place") == f"{2 * STEP}.0"
    assert viewer.get_attribute("data-exact") == "false"
    until(tab, lambda: now.get_attribute("data-place") == f"{2 * STEP + 1}.0")
    assert viewer.get_attribute("data-exact") == "true"


def memory(pid: int) -> int:
    """Bytes that a process holds."""
    text = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(text.split("VmRSS:")[1].split()[0])


@with_browser
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_memory_is_flat_over_500_requests(tabs: Any, process: Any) -> None:
    started, port = process
    tab = tabs(port)
    part = panel(tab, "Interpolate")
    part.get_by_label("number input for Steps S").fill("1")
    drop(part, IMAGES[:2])
    part.get_by_role("button", name="Interpolate").click()
    viewer = tab.locator(".between")
    until(tab, lambda: viewer.get_attribute("data-ready") == str(FINE // STEP + 1))
    key, sample = viewer.get_attribute("data-kept"), panel(tab, "Sample")
    sample.get_by_label("number input for Steps S").fill("1")
    sample.get_by_label("number input for Images").fill("1")

    def ask(times: int) -> int:
        """Twenty requests, so many times: pictures, the page, an upload, a sample."""
        for i in range(times):
            for j in range(16):
                assert status(port, f"/kept/{key}/{(16 * i + j) % FINE}.0.png", {}) == 200
            for _ in range(2):
                assert status(port, "/", {}) == 200
            assert status(port, "/gradio_api/upload", FORM, PART % (b"%d" % i * 1000)) == 200
            sample.get_by_label("Seed").fill(str(i))
            before = tab.locator("#sample-shown").inner_html()
            sample.get_by_role("button", name="Sample").click()
            until(tab, lambda before=before: tab.locator("#sample-shown").inner_html() != before)
        return memory(started.pid)

    first = ask(10)
    grown = ask(25) - first
    assert grown < 16 << 20, f"{grown >> 10} KiB more"


# With eyes closed


@with_browser
@with_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(tabs: Any, port: int, scheme: str) -> None:
    tab, wrong = tabs(port, color_scheme=scheme), []
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 384) == (scheme == "dark"), ground
    for name, does in (("Reconstruct", ""), ("Interpolate", ""), ("Latent", "Compute"), ("Sample", "")):
        part = panel(tab, name)
        for files in ([], IMAGES if name == "Interpolate" else IMAGES[:1]):
            if name != "Sample" and files:
                drop(part, files)
            part.get_by_role("button", name=does or name).click()
            element = "[role=alert]" if name != "Sample" and not files else "img"
            tab.locator(f"#{name.lower()}-shown {element}").first.wait_for()
            wrong += violations(tab, name)
    assert not wrong


@with_browser
@with_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong_with_edits(tabs: Any, classy: Served, scheme: str) -> None:
    tab, wrong = tabs(classy.port, color_scheme=scheme), []
    part = panel(tab, "Edit")
    wrong += violations(tab, "before")
    part.get_by_role("button", name="Edit").click()
    tab.locator("#edit-shown [role=alert]").wait_for()
    wrong += violations(tab, "without an image")
    drop(part, str(CLASSY / "held-out/000.png"))
    part.get_by_role("button", name="Edit").click()
    tab.locator("#edit-shown img").nth(3).wait_for()
    wrong += violations(tab, "edited")
    assert not wrong


# Whether nothing moves that ever stops, two pictures of the page after what was done last.
STILL = """
() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(
  document.getAnimations().every((a) => a.playState != "running" || a.effect.getComputedTiming().endTime == Infinity)))))
"""


def violations(tab: Any, where: str) -> list[tuple[str, str, str]]:
    """What axe finds wrong with the page as it is now, once nothing moves."""
    from axe_playwright_python.sync_playwright import Axe

    until(tab, lambda: not tab.locator("[data-testid=status-tracker]:not(.hide):visible").count())
    tab.mouse.move(0, 0)
    until(tab, lambda: tab.evaluate(STILL))  # the button's colour is what it is where no hand is
    found = Axe().run(tab).response["violations"]
    return [(where, v["id"], n["html"][:200]) for v in found for n in v["nodes"][:3]]


@with_browser
@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_is_wider_than_the_window(tabs: Any, port: int, width: int) -> None:
    tab = tabs(port, viewport={"width": width, "height": 800})
    for name in ("Reconstruct", "Interpolate"):
        tab.set_viewport_size({"width": 1100, "height": 800})  # narrow windows put tabs into a menu
        part = panel(tab, name)
        tab.set_viewport_size({"width": width, "height": 800})
        drop(part, IMAGES if name == "Interpolate" else IMAGES[0])
        part.get_by_role("button", name=name).click()
        tab.locator(f"#{name.lower()}-shown img").first.wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
