"""Captions beside images: tables, texts, and what is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddimctl.errors import FileError
from ddimctl.images import captions


def test_a_table_and_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "red\\n heart"}\n\n{"file_name": "sub/b.png", "caption": "blue"}\r\n'
        '{"file_name": "c.png", "text": " "}\n{"file_name": "e.png", "prompt": "é", "text": 3}\n'
    )
    (tmp_path / "sub" / "b.txt").write_text("a  file goes\nbefore the table\n")
    (tmp_path / "d.txt").write_text("\ufeffwith a mark", encoding="utf-8")
    files = [tmp_path / n for n in ("a.png", "sub/b.png", "c.png", "d.png", "e.png")]
    assert captions.read(tmp_path, files) == ["red heart", "a file goes before the table", None, "with a mark", "é"]


def test_no_captions_are_no_fault(tmp_path: Path) -> None:
    assert captions.read(tmp_path, [tmp_path / "a.png"]) == [None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "line 1 is not JSON"),
        (b'{"file_name": "a.png", "text": "a"}\nnull\n', "line 2 names no file"),
        (b'{"text": "a"}', "line 1 names no file"),
        (b'{"file_name": 3}', "line 1 names no file"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b"\xff\xfe", "is not text in UTF-8"),
    ],
)
def test_what_is_no_table_is_refused_by_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(content)
    with pytest.raises(FileError, match=message):
        captions.read(tmp_path, [tmp_path / "a.png"])


def test_a_text_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\x00")
    with pytest.raises(FileError, match="not text"):
        captions.read(tmp_path, [tmp_path / "a.png"])
    (tmp_path / "a.txt").write_bytes(b"a" * (captions.LIMIT + 1))
    with pytest.raises(FileError):
        captions.read(tmp_path, [tmp_path / "a.png"])


@pytest.mark.parametrize(
    "text",
    ["a.png\tred heart\na.png\tanother\n\n", "a.png#0\tred  heart\na.png#1\tother", "image,caption\na.png,red heart"],
)
def test_lines_of_captions(text: str, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text(text, encoding="utf-8")
    assert captions.read(tmp_path, [tmp_path / "a.png", tmp_path / "b.png"]) == ["red heart", None]
    (tmp_path / "captions.txt").write_text("a.png", encoding="utf-8")
    with pytest.raises(FileError, match="line 1 has no caption"):
        captions.read(tmp_path, [tmp_path / "a.png"])
