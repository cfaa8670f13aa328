"""What a command did, and the environment that it is run in; without pytest, as ``make reliability`` runs commands, too."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# One thread, unless asked for another number: the models are tiny, and more only get in each other's way.
THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1")
HANGS = 3600  # seconds: what takes so long will never end, however busy the machine is


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def err(self) -> str:
        return self.stderr.decode()

    def ok(self) -> Result:
        """Itself; fails the test, showing stderr, unless the exit code is 0."""
        assert self.code == 0, f"exit code {self.code}\n{self.err}"
        return self

    def failed(self, code: int) -> str:
        """The error message; fails the test unless it is one line, a hint at most, with that exit code."""
        assert self.code == code, f"exit code {self.code}, not {code}\n{self.err}"
        if told := [line for line in self.err.splitlines() if line.startswith('{"error": ')]:  # --json
            assert len(told) == 1, self.err
            assert self.err.splitlines()[-1] == told[0], self.err
            assert json.loads(told[0])["exit_code"] == code
            return str(json.loads(told[0])["error"])
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        assert "Traceback" not in self.err
        after = self.err[self.err.index(errors[0]) :].splitlines()
        assert len(after) <= 2, self.err
        assert all(line.startswith("hint: ") for line in after[1:]), self.err
        return errors[0].removeprefix("error: ")


def isolated(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment that the user's own settings do not reach, but for those that the tests run under."""
    processor = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
    system = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LD_LIBRARY_PATH")
    kept = {k: v for k, v in os.environ.items() if k in (*system, *processor)}
    fixed = {"HOME": str(home), "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "COLUMNS": "120", "OMP_NUM_THREADS": THREADS}
    cache = {"XDG_CACHE_HOME": str(home.with_name(f"{home.name}-cache"))}  # not among what a command makes
    return {**kept, **fixed, **cache, "HF_HUB_OFFLINE": "1", **(extra or {})}
