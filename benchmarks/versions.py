"""The ends of the range of diffusers and transformers: python benchmarks/versions.py [--only oldest] [--share FOLDER].

For the oldest that pyproject.toml allows, and the newest there is, an environment of its own is made, with everything else
as constraints.txt has it, torch first; in it the tests of the families are run. Told is what was installed and what the
tests said. An environment takes a gigabyte and some minutes; with --share all but the two libraries, and what they want
in other versions, is taken from a folder of packages that is there already.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("diffusers", "transformers")
# What these libraries bring along may be of other versions than the pinned ones.
FREE = (*LIBRARIES, "huggingface_hub", "huggingface-hub", "hf-xet", "tokenizers", "safetensors", "accelerate")
TESTS = [
    "test_stable_diffusion.py", "test_families.py", "test_flows.py", "test_prompts.py", "test_hostile_folders.py",
    "test_engines_text.py", "test_frugal.py",
]  # fmt: skip


def oldest() -> list[str]:
    """The lowest versions that the extra takes, as requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = dict(
        re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,.*)?", r).groups() for r in project["optional-dependencies"]["diffusers"]
    )  # type: ignore[union-attr]
    return [f"{name}=={found[name] if '.' in found[name] else found[name] + '.0.0'}" for name in LIBRARIES]


def pinned() -> list[str]:
    """The lines of constraints.txt but those of `FREE`."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0].lower() not in FREE]


def check(which: str, place: Path, share: Path | None) -> bool:
    """Makes an environment, runs the tests there, tells; whether all passed."""
    venv.create(place, with_pip=True)
    python = str(place / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join(pinned()), encoding="utf-8")
    pip = [python, "-m", "pip", "install", "-q", "-c", str(constraints)]
    wanted = oldest() if which == "oldest" else list(LIBRARIES)
    if share is None:
        torch = next(line for line in pinned() if line.startswith("torch=="))
        subprocess.run([*pip, torch], check=True)
        wanted += ["pytest", "hypothesis", "openvino", "scikit-image", "-e", str(ROOT)]
    else:
        (site,) = place.glob("lib/python*/site-packages")
        (site / "shared.pth").write_text(f"{ROOT}\n{share.resolve()}\n", encoding="utf-8")
    subprocess.run([*pip, "-U", *wanted], check=True)
    shown = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
    versions = ", ".join(
        " ".join(line.split()) for line in shown.splitlines() if line.split()[0] in (*LIBRARIES, "torch")
    )
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    command = [python, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(f"{which}: {versions}")
    print("\n".join([*lines, (done.stdout.splitlines() or [done.stderr.strip()[-300:]])[-1]]), flush=True)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", choices=["oldest", "newest"], default=["oldest", "newest"])
    parser.add_argument("--share", type=Path, help="a site-packages folder with everything but these libraries")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        passed = [check(which, Path(folder) / which, asked.share) for which in asked.only]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
