"""What a package index is told: the README as it can be shown there, and where the project is.

An index shows the README alone, so whatever in it leads to a file of the repository has to lead to the repository's address.
That is `repository` in pyproject.toml, or DDIMCTL_REPOSITORY where it is built. Without one, pictures are left out and
links are plain text: nothing is shown that leads nowhere.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

try:
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ImportError:  # the function below is tested where hatchling need not be
    MetadataHookInterface = object

IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
HTML = re.compile(r'<img\s[^>]*?src="([^"]+)"[^>]*>')
ELSEWHERE = ("https://", "http://", "mailto:", "#")


def for_an_index(text: str, repository: str, version: str) -> str:
    """The README with every link and picture absolute; with no `repository`, without those that can't be."""

    def address(path: str, kind: str) -> str:
        return f"{repository.rstrip('/')}/{kind}/v{version}/{path}"

    def image(found: re.Match[str]) -> str:
        alt, path = found.groups()
        if path.startswith(ELSEWHERE):
            return found[0]
        return f"![{alt}]({address(path, 'raw')})" if repository else ""

    def link(found: re.Match[str]) -> str:
        words, path = found.groups()
        if path.startswith(ELSEWHERE):
            return found[0]
        return f"[{words}]({address(path, 'blob')})" if repository else words

    def html(found: re.Match[str]) -> str:
        path = found[1]
        if path.startswith(ELSEWHERE):
            return found[0]
        return found[0].replace(f'"{path}"', f'"{address(path, "raw")}"') if repository else ""

    return HTML.sub(html, LINK.sub(link, IMAGE.sub(image, text)))


class Hook(MetadataHookInterface):  # type: ignore[misc,valid-type]
    """Hatchling's: fills in the fields that pyproject.toml calls dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        repository = os.environ.get("DDIMCTL_REPOSITORY") or self.config.get("repository", "")
        root = Path(self.root)
        version = re.search(
            r'"(.+)"', (root / "ddimctl/version.py").read_text(encoding="utf-8").split("__version__")[1]
        )
        if version is None:
            raise ValueError("ddimctl/version.py says no version")
        text = (root / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_an_index(text, repository, version[1])}
        urls = {"The paper": "https://arxiv.org/abs/2010.02502"}
        if repository:
            urls |= {
                "Repository": repository,
                "Documentation": f"{repository}/tree/v{version[1]}/docs",
                "Changelog": f"{repository}/blob/v{version[1]}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
        metadata["urls"] = urls
