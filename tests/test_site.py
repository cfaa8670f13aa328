"""The documentation as a site: built without a warning, every link leads somewhere, and a browser asks nobody else."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer.main
from conftest import HANGS

from ddimctl.cli.app import app
from ddimctl.cli.help import COMMANDS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def commands() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_commands", ROOT / "docs" / "site" / "commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The commands


def leaves() -> Iterator[tuple[str, Any]]:
    root: Any = typer.main.get_command(app)
    for name in COMMANDS:
        found = root.commands[name]
        inner = getattr(found, "commands", None)
        yield from [(f"{name} {k}", v) for k, v in inner.items()] if inner else [(name, found)]


@pytest.mark.parametrize(("name", "found"), list(leaves()), ids=lambda x: x if isinstance(x, str) else "")
def test_the_reference_has_every_option_once(commands: ModuleType, name: str, found: Any) -> None:
    page = commands.pages()[f"commands/{name.split()[0]}.md"]
    part = re.search(rf"^#+ ddimctl {re.escape(name)}\n.*?(?=^#|\Z)", page, re.DOTALL | re.MULTILINE)
    assert part is not None
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", part[0], re.MULTILINE)
    spelled = {o: said for names, said in rows for o in names.replace(",", "").split() if o.startswith("-")}
    known = [p for p in found.params if p.param_type_name == "option" and not p.hidden]
    assert sorted(spelled) == sorted(o for p in known for o in (*p.opts, *p.secondary_opts))
    for p in known:
        assert commands.plain(p.help) in spelled[p.opts[0]]
        if isinstance(p.default, str) and p.default:
            assert f"`{p.default}`" in spelled[p.opts[0]]
    for sentence in found.help.partition("\n\nExample: ")[0].split("\n\n"):
        assert commands.plain(sentence) in part[0]


def test_the_list_names_every_command(commands: ModuleType) -> None:
    made = commands.pages()
    assert re.findall(r"^\| \[`(\w+)`\]", made["commands/index.md"], re.MULTILINE) == list(COMMANDS)
    assert set(made) == {"commands/index.md", *(f"commands/{name}.md" for name in COMMANDS)}


def test_what_is_markup_elsewhere_is_text_here(commands: ModuleType) -> None:
    assert commands.plain("a_b <c> *d* | [e](f) `g`") == r"a\_b \<c\> \*d\* \| \[e\](f) \`g\`"


# The site


LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Reading(HTMLParser):
    """What a page leads to, what it loads, and the places in it that can be led to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        self.places.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADED and found.get("rel") not in ("canonical", "next", "prev") and LOADED[tag] in found:
            self.loaded.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder], cwd=ROOT, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_link_leads_somewhere(site: Path) -> None:
    pages = {p: Reading(p) for p in site.rglob("*.html")}
    assert len(pages) > len(list((ROOT / "docs").glob("*.md"))) + len(COMMANDS)
    for page, read in pages.items():
        if page.name == "404.html":  # whose links are from the site's root
            continue
        for link in read.links:
            address = urlsplit(unescape(link))
            if address.scheme:
                assert address.scheme in ("https", "http", "mailto"), (page, link)
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page, link)
            if address.fragment and target in pages:
                assert unquote(address.fragment) in pages[target].places, (page, link)


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert [a for a in Reading(page).loaded if re.match(r"(https?:)?//", a)] == [], page
        styles = " ".join(re.findall(r"<style.*?</style>", page.read_text(encoding="utf-8"), re.DOTALL))
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", styles), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_readme_and_the_sources_are_in_it(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    assert "Turn images into the noise" in start
    assert 'href="inversion.html"' in start
    assert 'href="source/ddimctl/schedule.py.html"' in start
    assert "def karras" in re.sub("<[^>]*>", "", (site / "source/ddimctl/schedule.py.html").read_text(encoding="utf-8"))
    assert not (site / "site").exists(), "the scripts that build it are no part of it"


@pytest.mark.slow
def test_lists_and_tables_are_such(site: Path) -> None:
    """What a repository's page shows as a list or a table is one here, too, where an empty line before it is needed."""
    for page in [*site.glob("*.html"), *site.glob("commands/*.html")]:
        text = page.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.DOTALL):
            assert not re.search(r"^([-*|]|\d+\.) ", unescape(paragraph), re.MULTILINE), (page.name, paragraph)


@pytest.mark.slow
def test_a_browser_asks_nobody_else(site: Path) -> None:
    with browsed(site) as (browser, here):
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.set_default_timeout(1000 * HANGS)
        asked: list[str] = []
        tab.on("request", lambda r: asked.append(r.url))
        for name in ("index.html", "gallery.html", "commands/encode.html"):
            tab.goto(here + name)
            tab.wait_for_load_state("networkidle")
        tab.locator("input.md-search__input").click()
        tab.keyboard.type("dither")
        tab.locator(".md-search-result__link", has_text="Latents").first.wait_for(state="attached")
    assert len(asked) > 3
    assert [a for a in asked if not a.startswith((here, "data:", "blob:"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(site: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    wrong = []
    with browsed(site) as (browser, here):
        tab = browser.new_context(color_scheme=scheme, viewport={"width": 1200, "height": 900}).new_page()
        tab.set_default_timeout(1000 * HANGS)
        for name in ("index", "gallery", "pictures", "inversion", "commands/encode", "source/ddimctl/ode.py"):
            tab.goto(f"{here}{name}.html")
            tab.wait_for_load_state("networkidle")
            for v in axe.Axe().run(tab).response["violations"]:
                wrong += [(name, v["id"], n["html"][:120]) for n in v["nodes"][:3]]
    assert not wrong


@contextlib.contextmanager
def browsed(site: Path) -> Iterator[tuple[Any, str]]:
    """(a browser, the address where the site is served to it)."""
    import test_report

    if test_report.chromium() is None:
        pytest.skip("there is no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with playwright.sync_playwright() as p:
            browser = p.chromium.launch(executable_path=test_report.chromium(), args=["--no-sandbox"])
            yield browser, f"http://127.0.0.1:{server.server_address[1]}/"
            browser.close()
    finally:
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
