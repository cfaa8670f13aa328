"""``ddimctl.toml``: a flag beats an environment variable beats the folder's file beats the home's; the unknown is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from ddimctl import latent

Invoke = Callable[..., Result]


@pytest.fixture
def picture(model_folder: Path, tmp_path: Path) -> str:
    (tmp_path / "a.png").write_bytes((model_folder / "held-out/000.png").read_bytes())
    return "a.png"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_who_beats_whom(invoke: Invoke, model_folder: Path, tmp_path: Path, picture: str) -> None:
    home, here = tmp_path / ".config/ddimctl/ddimctl.toml", tmp_path / "ddimctl.toml"
    write(home, f'model = "{model_folder}"\n[encode]\nsteps = 3\nspacing = "linear"\n')

    def made(*options: object, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        invoke("encode", picture, "-o", "x.pt", "--force", *options, env=env).ok()
        about = latent.load(tmp_path / "x.pt").provenance
        return about["steps"], about["spacing"], about["model"]["reference"]

    assert made() == (3, "linear", str(model_folder))
    write(here, "[encode]\nsteps = 4\n")
    assert made() == (4, "linear", str(model_folder))
    assert made("--steps", 2) == (2, "linear", str(model_folder))
    write(here, 'model = "nothing/here"\n')
    assert made(env={"DDIMCTL_MODEL": str(model_folder)}) == (3, "linear", str(model_folder))
    assert "nothing/here" in invoke("encode", picture, "-o", "y.pt").err
    invoke("decode", "x.pt", "-o", "back.png").ok()  # the latent says its model itself


def test_lists_flags_and_numbers(invoke: Invoke, model_folder: Path, tmp_path: Path, picture: str) -> None:
    write(
        tmp_path / "ddimctl.toml",
        f'batch-size = 2\n[reconstruct]\nmodel = "{model_folder}"\nsteps = [2, 3]\njson = true\nfail_above = 1e9\n',
    )
    record = json.loads(invoke("reconstruct", picture).ok().out)
    assert [r["steps"] for r in record["results"]] == [2, 3]


def test_an_empty_name_is_no_model(invoke: Invoke, tmp_path: Path, picture: str) -> None:
    """A variable of the shell that is not set must not mean the model that comes with the tool."""
    for command in (("encode", picture), ("decode", "a.pt"), ("reconstruct",), ("sample",)):
        assert "an empty name of a model" in invoke(*command, "-m", "").failed(2)


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("stepz = 3", "there is no option 'stepz'", "did you mean steps?"),
        ("[encode]\nstepz = 3", "there is no option 'stepz' in [encode]", "did you mean steps?"),
        ("[encod]\nsteps = 3", "there is no option '[encod]'", "did you mean [encode]?"),
        ("[encode]\nforce = true", "'force' in [encode] is not for a file to decide", "command line"),
        ("tolerance = 1", "'tolerance' is for single commands", "[encode]"),
        ("[models.show]\nstepz = 3", "there is no option 'stepz' in [show]", "long names"),
        ('[encode]\nsteps = "many"', "'--steps'", ""),
    ],
)
def test_what_makes_no_sense_is_named(text: str, told: str, hint: str, invoke: Invoke, tmp_path: Path) -> None:
    write(tmp_path / "ddimctl.toml", text)
    done = invoke("encode", "a.png")
    assert told in done.failed(2)
    assert hint in done.err
    invoke("encode", "--help").ok()
    invoke("--version").ok()


def test_what_is_no_toml_is_told(invoke: Invoke, tmp_path: Path) -> None:
    write(tmp_path / "ddimctl.toml", "steps: 3")
    assert "ddimctl.toml is no TOML" in invoke("encode", "a.png").failed(3)
