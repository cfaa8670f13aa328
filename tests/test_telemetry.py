"""The tool calls nobody: every command, both engines, with every look-up, connection and file that is made written down.

Once by Python's own audit, which is there everywhere; once by the kernel's, in a network namespace without interfaces,
which also sees what is not Python.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import record_cli
import typer.main
from conftest import HANGS, isolated
from PIL import Image

import ddimctl
from ddimctl import telemetry
from ddimctl.cli.app import app

ENGINES = ("torch", "openvino")
# Every command at least once: those that evaluate a network, and the others.
COMPUTING = (
    "encode a.png -o new.pt --steps 2",
    "encode photos -o latents2 --steps 2",
    "decode new.pt -o back.png",
    "interpolate a.png b.png --frames 2 --steps 2",
    "translate a.png --to-model grey --steps 2 -o translated.png",
    "reconstruct a.png --steps 2 --report mse --plot plot.png",
    "sample -n 1 --steps 2",
    "evaluate -m fashion-mnist -n 3 --steps 2",
    "bench --seconds 0 --batch-size 1 --steps 2",
)
OTHERS = (
    "info new.pt",
    "latent mean new.pt -o mean.pt",
    "latent add new.pt 0.5 new.pt -o sum.pt",
    "latent sub new.pt new.pt -o less.pt",
    "latent mix new.pt new.pt -o mixed.pt",
    "latent stack new.pt new.pt -o both.pt",
    "latent split both.pt -o parts",
    "latent direction new.pt latents2 -o way.pt",
    "latent nearest new.pt latents2",
    "models list",
    "models show grey",
    "models convert grey -o copy",
    "tune others -m grey --steps 2 --rounds 0 --images 2",
    "train photos -o run --size 8 --channels 4,8 --groups 2 --head-dim 4 --attention none --steps 1 --grey --batch-size 2",
)
ASK_THE_NET = {"models pull"}  # they are asked to
OPEN_A_PORT = {"ui"}  # on this machine alone: tests/test_page.py
DRIVER = """
import shlex, sys

def audit(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        print(f"AUDIT {event} {args!r}", file=sys.stderr)
    if event == "open" and args[2] & 0o3 or event == "os.mkdir":  # for writing
        print(f"AUDIT file {args[0]!r}", file=sys.stderr)

sys.addaudithook(audit)
from ddimctl.cli.app import main
for line in sys.argv[1:]:
    sys.argv = ["ddimctl", *shlex.split(line)]
    try:
        main()
    except SystemExit as e:
        if e.code:
            sys.exit(f"{line}: {e.code}")
# A reporter may work in a thread or a process of its own.
import threading
for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
        thread.join()
"""


def lines_of(engine: str) -> list[str]:
    return [*(f"{line} --engine {engine}" for line in COMPUTING), *OTHERS]


def commands(group: Any = None, before: str = "") -> set[str]:
    """Every command's name."""
    found: set[str] = set()
    for name, command in (group or typer.main.get_command(app)).commands.items():
        found |= commands(command, f"{before}{name} ") if hasattr(command, "commands") else {before + name}
    return found


def test_no_command_is_forgotten() -> None:
    tried = {line.split()[0] for line in (*COMPUTING, *OTHERS)}
    tried |= {" ".join(line.split()[:2]) for line in OTHERS}
    assert len(commands()) > 10
    assert not commands() - tried - ASK_THE_NET - OPEN_A_PORT


def run(root: Path, engine: str, *before: str) -> str:
    """stderr of one process that runs everything, in `root`/work with a new home."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    for name in ("work", "home", "tmp"):
        (root / name).mkdir()
    record_cli.prepare(root / "work")
    (root / "work" / "others").mkdir()
    for grey in (40, 200):
        Image.new("L", (16, 16), grey).save(root / "work" / "others" / f"{grey}.png")
    env = isolated(root / "home", {"DDIMCTL_MODEL": "grey", "DDIMCTL_DEVICE": "cpu", "TMPDIR": str(root / "tmp")})
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(ddimctl.__file__).parent.parent)}
    done = subprocess.run(
        [*before, sys.executable, "-c", DRIVER, *lines_of(engine)],
        cwd=root / "work", env=env, capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def stray(path: str, root: Path) -> bool:
    """Whether a file is none of the outputs, the cache, temporary ones and the system's devices."""
    allowed = (root / "work", root / "home/.cache", root / "home-cache", root / "tmp", Path("/dev"), Path("/proc"))
    absolute = Path(root / "work", path).resolve()
    return not any(absolute.is_relative_to(a.resolve()) for a in allowed)


def check_home(root: Path) -> None:
    assert [p.name for p in (root / "home").iterdir()] in ([], [".cache"])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_is_called_says_python(engine: str, tmp_path: Path) -> None:
    said = [line.removeprefix("AUDIT ") for line in run(tmp_path, engine).splitlines() if line.startswith("AUDIT ")]
    assert not [line for line in said if line.startswith("socket")]
    files = [line.removeprefix("file ").strip("'") for line in said if line.startswith("file '")]
    assert files, "the audit saw nothing at all"
    assert not [f for f in files if stray(f, tmp_path)]
    check_home(tmp_path)


@cache
def why_not() -> str:
    """Why the kernel can't be asked here; empty where it can."""
    if not (shutil.which("unshare") and shutil.which("strace")):
        return "needs unshare and strace"
    tried = subprocess.run(["unshare", "-rn", "strace", "-f", "-e", "trace=connect", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "network namespaces or tracing are not allowed here"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_is_called_says_the_kernel(engine: str, tmp_path: Path) -> None:
    if why_not():
        pytest.skip(why_not())
    trace = tmp_path / "trace"
    calls = "connect,sendto,sendmsg,open,openat,creat,mkdir,mkdirat"
    run(
        tmp_path,
        engine,
        "unshare",
        "-rn",
        "strace",
        "-f",
        "-qq",
        "-y",
        "-s",
        "4096",
        "-e",
        f"trace={calls}",
        "-o",
        str(trace),
    )
    lines = trace.read_text(errors="replace").splitlines()
    assert len(lines) > 100, "the trace saw nothing at all"
    assert not [line for line in lines if "AF_INET" in line or "resolv.conf" in line]
    made = re.compile(r'\b(?:openat\([^,]*, |open\(|creat\(|mkdirat\([^,]*, |mkdir\()"([^"]*)"(.*)')
    found = [
        m for line in lines if (m := made.search(line)) and re.search(r"O_WRONLY|O_RDWR|O_CREAT|^, 0[0-7]+\)", m[2])
    ]
    assert found
    assert not [m[0] for m in found if stray(m[1], tmp_path) and "= -1" not in m[2]]
    check_home(tmp_path)


def test_openvino_does_not_report_itself(tmp_path: Path) -> None:
    """The fault as it was: at its import it wrote an identity into the home, and asked for its makers' host."""
    pytest.importorskip("openvino")
    code = DRIVER.replace("from ddimctl.cli.app import main", "from ddimctl.engines.openvino import import_openvino")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("for line in", "import_openvino()\nfor line in")],
        env={**isolated(tmp_path), "PYTHONPATH": str(Path(ddimctl.__file__).parent.parent)},
        capture_output=True, text=True, check=True, timeout=HANGS,
    )  # fmt: skip
    assert "socket" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_it_is_off_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys, ddimctl; assert sys.modules['openvino_telemetry'] is None;"
        f"assert all(os.environ[n] for n in {list(telemetry.VARIABLES)}); assert os.environ['DO_NOT_TRACK'] == '0'"
    )
    monkeypatch.setenv("DO_NOT_TRACK", "0")  # what the user says stands
    subprocess.run([sys.executable, "-c", code], check=True)
