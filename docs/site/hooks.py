"""What MkDocs is told beside mkdocs.yml: pages that do not lie in docs/, and links that lead to them.

The site begins with the README, and holds a page for each command (`commands.py`) and for each file of the repository that a
page leads to: the links are those that work on a repository's page, and nothing leads away from the site.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parent))
import commands

ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)")
HTML = re.compile(r'(<img\s[^>]*?src=")([^"]+)')
CODE = re.compile(r"(^(```|~~~).*?^\2$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
PICTURES = (".png", ".svg", ".gif", ".webp", ".jpg")
LANGUAGES = {".py": "python", ".sh": "sh", ".toml": "toml", ".json": "json"}
READING = ("reading.css", "reading.js")  # what the theme lacks for who reads by keyboard or screen reader
SOURCES: dict[str, str] = {}  # a page of the site → the file of the repository that it is


def on_config(config: Any) -> Any:
    """The commands into the navigation, and pages of docs/ that it forgets."""
    reference = [{name: f"commands/{name}.md"} for name in commands.COMMANDS]
    config.nav.append({"Commands": ["commands/index.md", *reference]})
    listed = re.findall(r"[\w/-]+\.md", str(config.nav))
    missing = sorted(p.name for p in (ROOT / "docs").glob("*.md") if p.name not in listed)
    if missing:
        config.nav.append({"More": missing})
    config.nav.append({"About": ["ARCHITECTURE.md", "RELIABILITY.md", "CHANGELOG.md"]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """The pages that are not in docs/."""
    SOURCES.clear()
    SOURCES.update({f.src_uri: f"docs/{f.src_uri}" for f in files.documentation_pages()})
    for name in READING:
        files.append(File.generated(config, name, abs_src_path=str(Path(__file__).with_name(name))))
    for name, text in commands.pages().items():
        files.append(File.generated(config, name, content=text))
    waiting = ["README.md", "ARCHITECTURE.md", "RELIABILITY.md", "CHANGELOG.md", *SOURCES.values()]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            add(files, path, config)
        if path.endswith(".md"):
            found = {target for target in targets(path) if target not in seen}
            seen |= found
            waiting += sorted(found)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A page's links to files of the repository → links to pages of the site."""
    source = SOURCES.get(page.file.src_uri)
    if source is None or not source.endswith(".md"):
        return markdown
    here = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target = resolved(source, found[2])
        return found[0] if target is None else found[1] + posixpath.relpath(place(target), here or ".")

    return outside_code(markdown, lambda text: HTML.sub(moved, LINK.sub(moved, text)))


def on_page_content(html: str, **_: Any) -> str:
    """A heading of a column that says nothing is none."""
    return re.sub(r"<th([^>]*)></th>", r"<td\1></td>", html)


def add(files: Files, path: str, config: Any) -> None:
    """A file of the repository as a page: Markdown as it is, a picture as a picture, all else as code."""
    name, file = place(path), ROOT / path
    if path.endswith(PICTURES):
        files.append(File.generated(config, name, abs_src_path=str(file)))
        return
    text = file.read_text(encoding="utf-8")
    if not path.endswith(".md"):
        language = LANGUAGES.get(file.suffix, "text")
        text = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n~~~~~~ {{ .{language} }}\n{text}\n~~~~~~\n"
    SOURCES[name] = path
    files.append(File.generated(config, name, content=text))


def place(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith((".md", *PICTURES)) else f"source/{path}.md"


def targets(path: str) -> Iterable[str]:
    """The files of the repository that a page leads to."""
    found: list[str] = []

    def note(text: str) -> str:
        found.extend(t for _, t in (*LINK.findall(text), *HTML.findall(text)))
        return text

    outside_code((ROOT / path).read_text(encoding="utf-8"), note)
    return filter(None, (resolved(path, t) for t in found))


def resolved(page: str, target: str) -> str | None:
    """The file that a link on a page of the repository leads to; None if it leads away. Of a folder, what tells of it."""
    if re.match(r"[a-z]+:|/", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    if (ROOT / path).is_dir():
        path += "/README.md" if (ROOT / path / "README.md").is_file() else "/__init__.py"
    return path


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """A page of Markdown, with what is no code changed."""
    out, at = [], 0
    for found in CODE.finditer(text):
        out += [change(text[at : found.start()]), found[0]]
        at = found.end()
    return "".join([*out, change(text[at:])])
