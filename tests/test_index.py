"""The README as a package index shows it: alone, so nothing in it may lead to a file beside it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPOSITORY = "https://example.org/someone/ddimctl"


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def addresses(markdown: str) -> Iterator[tuple[str, str]]:
    """(kind, address) of all that the rendered page leads to or shows."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    yield from re.findall(r'(href|src)="([^"]*)"', html)


def test_the_readme_itself_is_relative() -> None:
    """Else the tests below would find nothing to mend."""
    assert ("src", "docs/film-round-trip.gif") in set(addresses(README))


def test_with_an_address_everything_is_absolute(hook: ModuleType) -> None:
    made = hook.for_an_index(README, REPOSITORY, "1.2")
    found = list(addresses(made))
    assert len(found) == len(list(addresses(README)))
    assert not [a for _, a in found if not a.startswith("https://")]
    assert ("src", f"{REPOSITORY}/raw/v1.2/docs/film-round-trip.gif") in found
    assert ("src", f"{REPOSITORY}/raw/v1.2/docs/grid.png") in found
    assert ("href", f"{REPOSITORY}/blob/v1.2/docs/checkpoints.md") in found
    for _, address in found:  # what it leads to is there
        if address.startswith(REPOSITORY):
            assert (ROOT / address.split("/v1.2/")[1]).exists(), address


def test_without_an_address_nothing_leads_nowhere(hook: ModuleType) -> None:
    made = hook.for_an_index(README, "", "1.2")
    assert not [a for _, a in addresses(made) if not a.startswith("https://")]
    assert "docs/checkpoints.md" in made  # the words stay
    assert made.count("```") == README.count("```")


def test_the_metadata_has_it(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hatchling")
    for address in ("", REPOSITORY):
        monkeypatch.setenv("DDIMCTL_REPOSITORY", address)
        metadata: dict[str, object] = {}
        hook.Hook(str(ROOT), {"repository": ""}).update(metadata)
        assert metadata["readme"]["content-type"] == "text/markdown"  # type: ignore[index]
        urls = metadata["urls"]
        assert isinstance(urls, dict)
        assert all(u.startswith("https://") for u in urls.values())
        assert ("Repository" in urls) == bool(address)


def test_the_cpu_build_of_torch_comes_before_ours() -> None:
    """Who follows the README from the top has it before `pip install` fetches CUDA."""
    page, ours = (
        README.index("https://pytorch.org/get-started/locally/"),
        README.index("pip install -c constraints.txt ."),
    )
    assert page < ours
    assert "--torch-backend cpu" in README
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^\s*"torch>=[\d.]+",$', text, re.MULTILINE), "no build, no index is asked for"
