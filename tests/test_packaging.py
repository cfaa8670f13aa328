"""A wheel that is built from an sdist and installed elsewhere: it finds its models, and carries nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import isolated, write_tiny_model

from ddimctl import __version__

REPOSITORY = Path(__file__).parent.parent
PARTS = (
    "hatch_build.py",
    "ddimctl",
    "models",
    "examples",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "constraints.txt",
    "constraints-ui.txt",
)

pytestmark = pytest.mark.slow


def call(*command: object, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=isolated(cwd, env), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with one more model, whose folder still holds what its training needed."""
    copy = tmp_path_factory.mktemp("source")
    for name in PARTS:
        part = REPOSITORY / name
        ignore = shutil.ignore_patterns("__pycache__", "*.tmp")
        if part.is_dir():
            shutil.copytree(part, copy / name, ignore=ignore)
        elif part.is_file():
            shutil.copy(part, copy / name)
    write_tiny_model(copy / "models" / "tiny")
    (copy / "models" / "tiny" / "training").mkdir()
    (copy / "models" / "tiny" / "training" / "checkpoint.pt").write_bytes(b"large")
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source, cwd=source)
    (found,) = (source / "dist").glob("*.whl")
    assert list((source / "dist").glob("*.tar.gz"))  # the wheel was built from it
    return found


def test_the_wheel_holds_package_and_models_and_nothing_else(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.endswith("/")}
        about = next(n for n in names if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(about).decode()
    models = {p for p in (source / "models").rglob("*") if p.is_file()}
    shipped = {f"ddimctl/{p.relative_to(source)}" for p in models if "training" not in p.parts}
    assert {f"ddimctl/models/{p.name}/unet/config.json" for p in (source / "models").iterdir() if p.is_dir()} <= names
    code = {f"ddimctl/{p.relative_to(source / 'ddimctl')}" for p in (source / "ddimctl").rglob("*.py")}
    extra = {n for n in names if not n.startswith(f"ddimctl-{__version__}.dist-info/")} - shipped - code
    assert shipped <= names
    assert code <= names
    pages = {
        *(f"ddimctl/report/page.{kind}" for kind in ("css", "html", "js")),
        "ddimctl/page/page.css",
        "ddimctl/page/viewer.js",
    }
    assert extra == {"ddimctl/py.typed", *pages}
    assert f"ddimctl-{__version__}.dist-info/licenses/LICENSE" in names
    assert f"Version: {__version__}" in metadata
    assert "Requires-Dist: torch" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [line for line in needed if "diffusers" in line or "transformers" in line]
    assert "Description-Content-Type: text/markdown" in metadata
    assert "Project-URL: The paper, https://arxiv.org/abs/2010.02502" in metadata
    assert "](docs/" not in metadata


def test_an_installed_wheel_finds_its_models(source: Path, wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    call(
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", target, wheel,
        cwd=tmp_path,
    )  # fmt: skip
    env = {"PYTHONPATH": str(target)}  # before the editable installation
    code = "import ddimctl; from ddimctl import families; print(ddimctl.__file__, *families.bundled(), sep='\\n')"
    file, *bundled = call(sys.executable, "-c", code, cwd=tmp_path, **env).splitlines()
    assert Path(file).is_relative_to(target)
    assert bundled == sorted(p.name for p in (source / "models").iterdir() if p.is_dir())
    assert "tiny" in bundled

    script = target / "bin" / "ddimctl"
    assert call(script, "--version", cwd=tmp_path, **env) == f"ddimctl {__version__}\n"
    assert "tiny" in call(script, "models", "list", cwd=tmp_path, **env)
    table = call(script, "reconstruct", "-m", "tiny", "--steps", "2", "--report", "mse", cwd=tmp_path, **env)
    assert "ab2" in table


def test_an_editable_installation_finds_the_repositorys_models(tmp_path: Path) -> None:
    """As the developer has it: the models are beside the package."""
    code = "from ddimctl import files; print(files.bundled_folder())"
    assert Path(call(sys.executable, "-c", code, cwd=tmp_path).strip()) == REPOSITORY / "models"
