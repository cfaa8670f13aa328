"""The house's rules: imports point one way, help is quick, every command is documented."""

from __future__ import annotations

import ast
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import typer.main
from conftest import isolated

import ddimctl
from ddimctl.cli.app import app

PACKAGE = Path(ddimctl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A module may import from its own layer and from those above it in this list. A new module belongs in one of them.
LAYERS: list[set[str]] = [
    {"telemetry"},
    {"", "errors", "version"},
    {"places"},
    {"files", "paper", "arrays", "remote"},
    {
        "cache",
        "schedule",
        "tuned",
        "multistep",
        "solvers",
        "implicit",
        "folds",
        "keeping",
        "predictions",
        "network",
        "seeds",
        "images",
        "animation",
        "interpolate",
        "motion",
        "charts",
        "archives",
        "containers",
    },
    {"shown", "metrics", "frechet", "unet", "health", "dither"},
    {"checkpoints", "engines", "model", "features", "bottleneck"},
    {"recipe", "ode", "families", "catalogue"},
    {"provenance"},
    {
        "latent",
        "arithmetic",
        "bare",
        "translation",
        "lossless",
        "origin",
        "sampling",
        "roundtrip",
        "plots",
        "bench",
        "tune",
    },
    {"evaluate", "notebook", "report", "runs", "training"},
    {"page"},
    {"cli", "__main__"},
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}

# Where only some modules may know a library. (What torch itself needs is its own business.)
KNOWN_BY = {
    "PIL": {"images"},
    "av": {"images"},
    "matplotlib": {"plots"},
    "safetensors": {"checkpoints", "containers", "features", "training"},
    "diffusers": {"families", "training"},
    "transformers": {"families", "training"},
    "pyarrow": {"archives"},
    "fsspec": {"remote"},
    "ray": {"runs"},
    "typer": {"cli"},
    "rich": {"cli"},
    "textual_image": {"cli"},
    "gradio": {"page"},
    "fastapi": {"page"},
    "uvicorn": {"page"},
}
NEVER = {"click", "skimage", "scipy", "requests"}
# These are plain Python or array arithmetic.
NO_LIBRARY = {
    "",
    "errors",
    "version",
    "telemetry",
    "files",
    "places",
    "paper",
    "schedule",
    "tuned",
    "multistep",
    "motion",
    "charts",
    "images",
    "images.formats",
}
OTHERS = ("pyarrow", "fsspec", "ray", "datasets", "pandas")  # what only some inputs or machines need
HEAVY = ("torch", "numpy", "PIL", "imageio", "safetensors", *OTHERS)


def name_of(path: Path) -> str:
    """The dotted name inside ddimctl: "" for the package, "cli.train", "checkpoints"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def top(name: str) -> str:
    return name.split(".")[0]


def imports(path: Path, running_only: bool = False) -> Iterator[str]:
    """Absolute names of what a file imports, inside functions too; `running_only` leaves TYPE_CHECKING blocks out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if running_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(n for child in node.body for n in ast.walk(child))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module
            for alias in node.names:  # `from ddimctl import ddim` imports a module, `from x import f` does not
                inner = f"{node.module}.{alias.name}"
                is_module = node.module.startswith("ddimctl") and inner.removeprefix("ddimctl.") in MODULES
                yield inner if is_module else node.module


MODULES = {name_of(p) for p in FILES}


def ours(path: Path, running_only: bool = False) -> set[str]:
    found = {i.removeprefix("ddimctl").removeprefix(".") for i in imports(path, running_only) if top(i) == "ddimctl"}
    return found - {name_of(path)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    me = top(name_of(path))
    assert me in RANK, f"say in LAYERS where ddimctl/{me} belongs"
    # The package itself names its public functions, for type checkers, and imports them when they are asked for.
    wrong = [other for other in ours(path, running_only=me == "") if RANK[top(other)] > RANK[me]]
    assert not wrong, f"{me} must not import {wrong}"


def test_imports_have_no_circle() -> None:
    """Those for type checkers count: a type that is needed on both sides belongs below both."""
    # The package itself names its public functions, for type checkers, and imports them when they are asked for.
    TopologicalSorter({name_of(p): ours(p, running_only=not name_of(p)) - {""} for p in FILES}).prepare()


LIBRARY = [p for p in FILES if not name_of(p).startswith(("cli", "page"))]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_is_too_long(path: Path) -> None:
    if name_of(path) != "unet":
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    yield from (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef))


def positional(f: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*f.args.posonlyargs, *f.args.args) if a.arg not in ("self", "cls")]


# model, images or x_T, way, condition; eps, x̄, path, solver: the library's first lines
FOUR = ("encode", "decode", "sample", "integrate", "of")


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_no_function_takes_too_much(path: Path) -> None:
    for f in functions(path):
        assert len(positional(f)) + len(f.args.kwonlyargs) <= 8, f"{f.name} takes too much"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_follows_the_third_is_given_by_name(path: Path) -> None:
    for f in functions(path):
        if not f.args.vararg and f.name not in FOUR:
            assert len(positional(f)) <= 3, f"{f.name} takes {', '.join(positional(f)[3:])} by position"


@pytest.mark.parametrize("path", [p for p in FILES if p not in LIBRARY], ids=name_of)
def test_a_command_tells_its_story_on_a_page(path: Path) -> None:
    for f in functions(path):
        assert f.end_lineno is not None
        assert f.end_lineno - f.lineno < 80, f"{f.name} takes {f.end_lineno - f.lineno + 1} lines"


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_nothing_stands_in_for_another_type(path: Path) -> None:
    assert not [a for f in functions(path) for a in f.args.args if a.arg in ("like", "net") and a.annotation
                and ast.unparse(a.annotation) == "Any"]  # fmt: skip


def test_the_plan_of_the_house_names_every_module() -> None:
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    said = set(re.findall(r"`(?:ddimctl/)?([\w/]+?)(?:\.py|/)?`", text))
    there = {p.relative_to(PACKAGE).with_suffix("").as_posix() for p in FILES if p.stem not in ("__init__", "__main__")}
    assert not there - said, "modules that ARCHITECTURE.md does not name"
    gone = (
        {s for s in said if "/" in s and not s.startswith(("tests/", "docs/"))}
        - there
        - {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.iterdir()}
    )
    assert not gone, "ARCHITECTURE.md names what is not there"


def test_every_layer_names_modules_that_exist() -> None:
    assert set(RANK) <= {top(m) for m in MODULES}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_libraries_are_known_where_they_belong(path: Path) -> None:
    me, used = top(name_of(path)), {top(i) for i in imports(path)} - {"ddimctl"}
    assert not used & NEVER
    assert all(me in KNOWN_BY[library] for library in used & KNOWN_BY.keys()), used
    if name_of(path) in NO_LIBRARY:
        running = {top(i) for i in imports(path, running_only=True)} - {"ddimctl"}
        assert running <= sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_library_prints_nothing(path: Path) -> None:
    me = name_of(path)
    if top(me) == "cli":
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert "print" not in {ast.unparse(c.func) for c in calls}


def test_levels_are_made_in_one_place() -> None:
    """The number of levels in 1 stands in `images.levels` only."""
    assert [name_of(p) for p in FILES if "127.5" in p.read_text(encoding="utf-8")] == ["images.levels"]


@pytest.mark.parametrize("module", ["levels", "formats"])
def test_levels_and_names_load_nothing_heavy(module: str, tmp_path: Path) -> None:
    code = f"import sys, ddimctl.images.{module}; print('loaded:', *[m for m in {HEAVY} if m in sys.modules])"
    assert run(code, tmp_path).strip() == "loaded:"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def run(code: str, tmp_path: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=isolated(tmp_path, env),
        cwd=tmp_path,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["train", "--help"], ["reconstruct", "--help"], ["models", "list"]]
)
def test_help_and_lists_load_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from ddimctl.cli.app import main
sys.argv = ["ddimctl", *{argv}]
try:
    main()
except SystemExit as e:
    assert e.code == 0, e.code
print("loaded:", *[m for m in {HEAVY} if m in sys.modules])
"""
    assert run(code, tmp_path).splitlines()[-1].strip() == "loaded:"


@pytest.mark.parametrize("name", ["one.pt", "several.safetensors"])
def test_info_of_a_latent_needs_no_torch(name: str, tmp_path: Path) -> None:
    file = Path(__file__).parent / "fixtures/latents" / name
    code = f"""
import sys
from ddimctl.cli.app import main
sys.argv = ["ddimctl", "info", "{file}", "-o", "drawn.png"]
try:
    main()
except SystemExit as e:
    assert e.code == 0, e.code
print("loaded:", *[m for m in {("torch", "openvino", "rich", "imageio", *OTHERS)} if m in sys.modules])
"""
    assert run(code, tmp_path).splitlines()[-1].strip() == "loaded:"
    assert (tmp_path / "drawn.png").is_file()


UNUSED = (
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "openvino",
    "matplotlib",
    "imageio",
    "rich",
    "huggingface_hub",
    "diffusers",
    "transformers",
    *OTHERS,
)


@pytest.mark.slow
def test_encode_loads_only_what_it_uses(model_folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from ddimctl.cli.app import main
sys.argv = ["ddimctl", "encode", "{model_folder}/held-out/000.png", "-m", "{model_folder}", "-o", "a.pt"]
try:
    main()
except SystemExit as e:
    assert e.code == 0, e.code
print("loaded:", *[m for m in {UNUSED} if m in sys.modules], *[m for m in sys.modules if m.startswith("ddimctl.training")])
"""
    assert run(code, tmp_path).splitlines()[-1].strip() == "loaded:"


@pytest.mark.parametrize(
    ("words", "expected"), [("tr", "train"), ("encode --solver a", "ab2mix"), ("info em", "emoji")]
)
def test_completion_loads_nothing_heavy(words: str, expected: str, tmp_path: Path) -> None:
    code = f"""
import sys
from ddimctl.cli.app import main
sys.argv = ["ddimctl"]
try:
    main()
except SystemExit as e:
    print()
print("loaded:", *[m for m in {HEAVY} if m in sys.modules])
"""
    env = {
        "_DDIMCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": f"ddimctl {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    out = run(code, tmp_path, **env).splitlines()
    assert out[-1].strip() == "loaded:"
    assert expected in out


def test_the_version_is_the_packages(ddimctl: Any) -> None:
    from ddimctl import __version__

    assert ddimctl("--version").ok().out == f"ddimctl {__version__}\n"


@pytest.mark.slow
def test_help_is_quick(tmp_path: Path) -> None:
    """0.3 s at the median, in processor time: what else the machine is doing does not count."""
    command = [sys.executable, "-m", "ddimctl", "--help"]

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, env=isolated(tmp_path), cwd=tmp_path, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    once()  # writes the byte code
    assert statistics.median(once() for _ in range(7)) < 0.3


def commands(group: Any = None, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every registered command with the words that call it, inside groups too."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from commands(command, (*prefix, name)) if hasattr(command, "commands") else [((*prefix, name), command)]


@pytest.mark.parametrize(
    ("words", "command"), list(commands()), ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_every_command_is_documented(words: tuple[str, ...], command: Any, invoke: Any) -> None:
    """What it does, an example that names the command, and a sentence for every option and argument."""
    text = invoke(*words, "--help").ok().out
    assert f"Example: ddimctl {' '.join(words)}" in " ".join(text.split())
    silent = [p.name for p in command.params if not getattr(p, "help", None)]
    assert not silent, f"no help for {silent}"
