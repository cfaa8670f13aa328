"""The processors that an engine may use."""

from __future__ import annotations

import os


def threads() -> int:
    """``OMP_NUM_THREADS``, which torch heeds too, or the processors there are."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
