"""Pages: whole in themselves, harmless whatever a file is called, small; and what the hand does with them in a browser."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HANGS, Result, write_tiny_model
from hypothesis import given
from hypothesis import strategies as st

from ddimctl.report import html, page, runs, svg
from ddimctl.report.page import Page

Invoke = Callable[..., Result]
EVIL = '<img src=x onerror="document.title=1">&\'`${1}</script><script>document.title=2</script>'
LATENTS = Path(__file__).parent / "fixtures" / "latents"


class Reading(HTMLParser):
    """The elements of a page, with its texts, and which of them were left open."""

    VOID = ("meta", "img", "input", "br", "link")

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append((self.elements[-1][1], data))
        elif self.open and self.open[-1] == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def whole(text: str) -> Reading:
    """A page, read; fails unless it is well formed, fetches nothing, and runs its own script alone."""
    read = Reading(text)
    assert not read.open
    for tag, attributes in read.elements:
        assert tag in HARMLESS, tag
        assert not [a for a in attributes if a.startswith("on") or a == "style"], (tag, attributes)
        for name in ("src", "href", "action", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    policy = next(a["content"] or "" for a in read.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    allowed = {"script-src": [t for a, t in read.scripts if not a.get("type")], "style-src": read.styles}
    for directive, texts in allowed.items():
        assert len(texts) == 1
        digest = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a.get("alt") is not None for a in read.of("img"))
    assert not re.search(r"https?://|@import|url\(", text)
    return read


HARMLESS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "h1",
        "h2",
        "h3",
        "p",
        "main",
        "section",
        "div",
        "span",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "img", "input", "label", "select", "option", "ol", "li", "figure"),
    *(
        "figcaption",
        "svg",
        "polyline",
        "polygon",
        "circle",
        "text",
        "dl",
        "dt",
        "dd",
        "pre",
        "code",
        "button",
        "details",
    ),
    *("summary", "footer", "script", "output"),
}


def tables(path: Path) -> list[list[list[str]]]:
    """The texts of the cells of each table of a page."""
    found = re.findall(r"<table .*?</table>", path.read_text(encoding="utf-8"), re.DOTALL)
    cells = [[re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", t)] for t in found]
    return [[[unescape(re.sub("<[^>]*>", "", c)) for c in row] for row in table] for table in cells]


def record_of(read: Reading) -> Any:
    return json.loads(next(t for a, t in read.scripts if a.get("type") == "application/json"))


def example(title: str = "A page", *sections: Any, **record: Any) -> Page:
    return Page(
        title, "what it says", sections, {"ddimctl": "1", "parents": [{"name": title}]}, f"ddimctl {title}", record
    )


def pixels(n: int, side: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def every_section(name: str) -> list[Any]:
    return [
        html.Table(name, [name, "mse"], [[name, "1"], [name, "2"]]),
        html.Table(name, [name, "mse"], [[name, "1"]], [html.picture(pixels(1)[0], name)], name),
        html.Comparison(name, pixels(6), ["original", f"{name}\nS = 2", "difference\n× 2"], [name, name]),
        html.Film(name, pixels(3), [name, "b", "c"], 10),
        html.Charts(name, [svg.chart(runs.error_against_evaluations({name: [(10, 1e-2), (20, 1e-3)]}))], name),
    ]


@pytest.mark.parametrize(
    "name", [EVIL, "\u202e\x00\x1b[2J", "\ud800", "</title>", "]]>", "{{7*7}} $title ${title}", "'\""]
)
def test_a_name_is_nothing_but_a_name(name: str) -> None:
    text = page.render(example(name, *every_section(name), name=name))
    read = whole(text)
    plain = whole(page.render(example("name", *every_section("name"), name="name")))
    parts = [[t for t, _ in r.elements if t != "text"] for r in (read, plain)]  # numbers at an axis that is shorter
    assert parts[0] == parts[1]
    assert record_of(read) == {"name": name}
    seen = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    assert seen in read.texts
    text.encode()


@given(st.text(max_size=40))
def test_what_is_escaped_comes_back(text: str) -> None:
    read = Reading(f'<p title="{html.safe(text)}">{html.safe(text)}</p>')
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    assert read.elements == [("p", {"title": shown})]
    assert "".join(read.texts) == shown


def test_the_record_is_json_whatever_is_in_it() -> None:
    read = whole(page.render(example("x", a=float("nan"), b=[float("inf"), 1.5], c="</script><!--")))
    assert record_of(read) == {"a": None, "b": [None, 1.5], "c": "</script><!--"}


def test_pictures_are_exactly_what_was_made() -> None:
    import io

    from PIL import Image

    images = pixels(6)
    read = whole(page.render(example("x", html.Pictures("Samples", images, ["a", "b", "c"], ["1", "2"]))))
    found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1])))) for a in read.of("img")]
    np.testing.assert_array_equal(np.stack(found), images)
    assert [a["alt"] for a in read.of("img")] == ["1, a", "1, b", "1, c", "2, a", "2, b", "2, c"]


def test_a_page_without_its_pictures_is_small() -> None:
    text = page.render(example("x", *every_section("name")))
    assert len(re.sub(r'src="data:[^"]*"', "", text).encode()) < 40_000


def test_64_images_and_4_ways_fit_into_5_megabytes() -> None:
    heads = ["original", *(f"{kind} {i}" for i in range(4) for kind in ("way", "difference"))]
    section = html.Comparison(
        "x", pixels(64 * 9, 32), heads, [f"{i}.png" for i in range(64)]
    )  # noise: the largest PNGs
    assert len(page.render(example("x", section)).encode()) < 5e6


# The commands'


@pytest.fixture
def files(invoke: Invoke, model_folder: Path, tmp_path: Path) -> Path:
    """A folder with an image of an evil name, and two latents."""
    source = (model_folder / "held-out" / "000.png").read_bytes()
    (tmp_path / "<img src=x onerror=alert(1)>.png").write_bytes(source)
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes((model_folder / "held-out" / f"00{'ab'.index(name)}.png").read_bytes())
        invoke("encode", f"{name}.png", "-o", f"{name}.pt", "-m", model_folder, "--steps", 2).ok()
    return tmp_path


COMMANDS = {
    "reconstruct": ("reconstruct", "<img src=x onerror=alert(1)>.png", "a.png", "--steps", "2,3", "-m", "MODEL"),
    "sample": ("sample", "-n", 3, "--steps", "2,3", "-m", "MODEL", "-o", "s.png"),
    "sample into a folder": ("sample", "-n", 10, "--steps", 2, "-m", "MODEL", "-o", "folder"),
    "interpolate": ("interpolate", "a.pt", "b.pt", "--frames", 4),
    "a grid": ("interpolate", "a.pt", "b.pt", "a.pt", "b.pt", "--grid", "--size", "2x3"),
    "info": ("info", "a.pt"),
    "info of several": ("info", "a.pt", "b.pt", "a.png"),
    "info of a folder": ("info", "."),
}
SHOWN = {"reconstruct": 2 * 5, "sample": 6, "sample into a folder": 10, "interpolate": 4, "a grid": 6, "info": 1,
         "info of several": 2, "info of a folder": 2}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_writes_a_page(invoke: Invoke, files: Path, model_folder: Path, name: str) -> None:
    words = [str(model_folder) if w == "MODEL" else w for w in COMMANDS[name]]
    done = invoke(*words, "--html", "p.html", "--json").ok()
    assert "p.html: a page with all of it" in done.err
    text = (files / "p.html").read_text(encoding="utf-8")
    read = whole(text)
    assert record_of(read) == json.loads(done.out)
    pictures = [a for a in read.of("img") if a.get("src")]
    assert len(pictures) == SHOWN[name]
    command = next(t for t in read.texts if t.startswith(f"ddimctl {words[0]} "))
    assert "--html p.html" in command
    assert len(re.sub(r'src="data:[^"]*"', "", text).encode()) < 40_000
    assert "exists already" in invoke(*words, "--html", "p.html").failed(2)
    again = ("--html", "p.html", "--force", "-q")
    assert not invoke(*words, *again).ok().err


@pytest.mark.parametrize("target", ["p.txt", "p", "a.png"])
def test_a_page_has_a_name_of_its_own(invoke: Invoke, files: Path, model_folder: Path, target: str) -> None:
    before = (files / "a.png").read_bytes()
    words = ("reconstruct", "a.png", "-m", model_folder, "--steps", 2, "--html", target, "--force")
    assert "no suffix of a page" in invoke(*words).failed(2)
    assert (files / "a.png").read_bytes() == before


def test_what_has_no_page_is_told(invoke: Invoke, files: Path, model_folder: Path) -> None:
    """A page is never left away in silence."""
    for what in (["a.png", "b.png"], [model_folder]):
        assert "--html is about" in invoke("info", *what, "--html", "p.html").failed(2)
        assert not (files / "p.html").exists()


def test_a_page_is_not_written_over_a_latent_of_its_table(invoke: Invoke, files: Path) -> None:
    (files / "b.html").write_bytes(before := (files / "b.pt").read_bytes())
    invoke("info", "a.pt", "b.html", "--html", "b.html", "--force").failed(2)
    assert (files / "b.html").read_bytes() == before


def test_the_table_of_latents_says_what_info_says(invoke: Invoke, files: Path) -> None:
    """Of latents of several shapes and files, a line each: the name, the drawing, the figures, the verdict."""
    several = LATENTS / "several.safetensors"
    done = invoke("info", "a.pt", several, "--html", "p.html", "--json").ok()
    first, second = json.loads(done.out)
    read = whole((files / "p.html").read_text(encoding="utf-8"))
    table = next(t for t in tables(files / "p.html") if t[0][0] == "latent")
    assert table[0] == ["latent", "x_T", *first["health"][0]["figures"], "verdict"]
    told = [*first["health"], *second["health"]]
    assert len(table) - 1 == len(told) == len([a for a in read.of("img") if a["alt"].startswith("x_T of ")])
    for row, health in zip(table[1:], told, strict=True):
        assert row[-1] == health["verdict"]
        assert [float(v) for v in row[2:-1]] == pytest.approx(
            [f["value"] for f in health["figures"].values()], rel=6e-3, abs=1e-6
        )
    assert table[1][0] == "a.pt"
    assert table[2][0].startswith(str(several))


def test_images_that_cannot_be_read_are_no_names_of_others(invoke: Invoke, files: Path, model_folder: Path) -> None:
    (files / "0.png").write_bytes(b"no picture")
    done = invoke("reconstruct", "0.png", "b.png", "-m", model_folder, "--steps", 2, "--html", "p.html")
    assert done.code == 4
    read = whole((files / "p.html").read_text(encoding="utf-8"))
    assert next(a["alt"] for a in read.of("img") if a.get("src")) == "b.png, original"
    assert "0.png" not in [t for t in read.texts if not t.startswith("ddimctl ")][:30]


# In a browser


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


needs_browser = pytest.mark.skipif(
    chromium() is None or importlib.util.find_spec("playwright") is None,
    reason="there is no Chromium here, or no playwright",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[[Page], Any]]:
    """Opens a page from disk; fails the test if it asks for anything, complains, or runs what it should not."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    context.set_default_timeout(1000 * HANGS)
    context.set_offline(True)
    wrong: list[str] = []

    def show(what: Page) -> Any:
        page.write(tmp_path / "page.html", what)
        tab = context.new_page()
        tab.on("console", lambda m: wrong.append(m.text))
        tab.on("pageerror", lambda e: wrong.append(str(e)))
        tab.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        tab.goto((tmp_path / "page.html").as_uri())
        return tab

    yield show
    context.close()
    assert not wrong


def until(tab: Any, true: Callable[[], bool]) -> None:
    """Waits for what happens in time. (Playwright's own way is an `eval`, which the page forbids.)"""
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        if true():
            return
        tab.wait_for_timeout(50)
    raise AssertionError("it never came to that")


def compared() -> Page:
    rows = [EVIL, "b.png", "c.png"]
    columns = ["original", "ab2\nS = 2", "difference\n× 2", "ddim\nS = 2", "difference\n× 3"]
    table = html.Table("Figures", ["solver", "mse"], [["c", "0.02"], ["a", "1.0e-03"], ["b", "-"], ["d", "1,000"]])
    return example(EVIL, table, html.Comparison("Pictures", pixels(15), columns, rows), name=EVIL)


def wrong_for_readers(tab: Any) -> list[Any]:
    """What axe-core finds: rules of WCAG and of good practice that a page breaks, and where."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(tab).response
    assert len(found["passes"]) > 20
    return [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]]


READ = {
    "comparison": compared,
    "film": lambda: example("film", html.Film("Frames", pixels(5), list("abcde"), 20)),
    "everything": lambda: example("everything", *every_section("name"), *every_section("name")[:2]),
}


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", READ)
def test_axe_finds_nothing_wrong(opened: Any, name: str, scheme: str) -> None:
    tab = opened(READ[name]())
    tab.emulate_media(color_scheme=scheme)
    assert wrong_for_readers(tab) == []


@pytest.mark.slow
@needs_browser
def test_the_divider_follows_hand_and_keys(opened: Any) -> None:
    tab = opened(compared())
    assert tab.title() == EVIL.replace("\n", " ")
    stage, slider, front = tab.locator(".stage"), tab.locator(".slider"), tab.locator(".stage .front")
    box = stage.bounding_box()
    assert front.evaluate("e => e.style.clipPath") == "inset(0px 50% 0px 0px)"
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 4, box["y"] + 30)
    tab.mouse.up()
    assert abs(int(slider.input_value()) - 25) <= 1
    tab.mouse.move(box["x"] + box["width"] - 1, box["y"] + 30)  # without a button pressed
    assert abs(int(slider.input_value()) - 25) <= 1
    before = int(slider.input_value())
    tab.keyboard.press("ArrowRight")
    assert int(slider.input_value()) == before + 1
    assert front.evaluate("e => e.style.clipPath") == f"inset(0px {99 - before}% 0px 0px)"
    assert tab.locator(".stage .front").get_attribute("alt") == f"{EVIL}, original"
    tab.locator("[data-choose=row]").select_option("1")
    tab.locator("[data-choose=way]").select_option("1")
    source = tab.locator("#compared [data-row='1'][data-column='3']").get_attribute("src")
    assert tab.locator(".stage .back").get_attribute("src") == source
    tab.locator("[data-choose=what]").select_option("difference")
    assert tab.locator(".stage .back").get_attribute("alt") == "b.png, difference, × 3"
    assert not slider.is_visible()
    tab.locator("[data-choose=zoom]").select_option("4")
    assert tab.locator(".stage .back").bounding_box()["width"] == 32
    assert tab.locator(".stage .back").evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"
    tab.locator("#compared [data-row='2'][data-column='1']").click()
    assert tab.locator(".stage .back").get_attribute("alt") == "c.png, ab2, S = 2"


@pytest.mark.slow
@needs_browser
def test_tables_sort_by_mouse_and_keys(opened: Any) -> None:
    tab = opened(compared())

    def shown() -> list[str]:
        return tab.locator("table.figures tbody th").all_inner_texts()

    tab.get_by_role("button", name="mse").click()
    assert shown() == ["a", "c", "d", "b"]
    assert tab.locator("table.figures th[aria-sort=ascending]").inner_text().startswith("mse")
    tab.keyboard.press("Enter")
    assert shown() == ["d", "c", "a", "b"]
    tab.get_by_role("button", name="solver").focus()
    tab.keyboard.press("Space")
    assert shown() == ["a", "b", "c", "d"]


@pytest.mark.slow
@needs_browser
def test_a_film_plays_and_steps(opened: Any) -> None:
    tab = opened(example("film", html.Film("Frames", pixels(5), list("abcde"), 20)))
    slider, screen = tab.locator(".film .slider"), tab.locator(".screen")
    frames = [tab.locator(".frames img").nth(i).get_attribute("src") for i in range(5)]
    assert screen.get_attribute("src") == frames[0]
    tab.keyboard.press("ArrowRight")
    assert screen.get_attribute("src") == frames[1]
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert screen.get_attribute("src") == frames[4]
    slider.focus()
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowRight")
    assert screen.get_attribute("src") == frames[1]
    tab.get_by_role("button", name="Play").click()
    until(tab, lambda: slider.input_value() != "1")
    tab.get_by_role("button", name="Pause").click()
    stopped = slider.input_value()
    tab.wait_for_timeout(200)
    assert slider.input_value() == stopped
    assert screen.get_attribute("src") == frames[int(stopped)]


@pytest.mark.slow
@needs_browser
def test_a_reader_reaches_everything_by_tab(opened: Any) -> None:
    tab = opened(compared())
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("(e => e.id || e.dataset.choose || e.className || e.tagName)(document.activeElement)"))
    assert {"row", "way", "what", "zoom", "slider", "scale", "copy", "SUMMARY", "BUTTON", "wide"} <= reached
    tab.locator("summary").press("Enter")
    assert json.loads(tab.locator("#json").inner_text()) == {"name": EVIL}
    tab.locator("#copy").click()
    until(tab, lambda: tab.locator("#copied").inner_text() in ("Copied", "Selected: press Ctrl+C"))


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(opened: Any, scheme: str) -> None:
    tab = opened(compared())
    tab.emulate_media(color_scheme=scheme)
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 18, 18)")
    for width in (320, 1000):
        tab.set_viewport_size({"width": width, "height": 700})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.set_viewport_size({"width": 700, "height": 1000})  # 19 cm of paper
    tab.emulate_media(media="print")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 700
    assert not tab.locator(".viewer").is_visible()
    assert tab.locator("#compared").is_visible()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.slow
@needs_browser
def test_pages_of_real_runs_open(invoke: Invoke, files: Path, tmp_path: Path, browser: Any) -> None:
    folder = write_tiny_model(tmp_path / "m")
    for i, (name, command) in enumerate(COMMANDS.items()):
        words = [str(folder) if w == "MODEL" else w for w in command]
        invoke(*words, "--html", f"{i}.html", "--force", *(["-o", "x.gif"] if name == "interpolate" else [])).ok()
        tab = browser.new_page()
        wrong: list[str] = []
        tab.on("pageerror", lambda e, seen=wrong: seen.append(str(e)))
        tab.on("console", lambda m, seen=wrong: seen.append(m.text))
        tab.goto((files / f"{i}.html").as_uri())
        assert tab.evaluate("document.querySelector('#json').textContent.length") > 2
        assert wrong_for_readers(tab) == []
        assert not wrong, (name, wrong)
        tab.close()
