"""The tool calls nobody: what libraries report to their makers is switched off here, before any of them is imported.

Importing the package calls `off`. What the user has set already stands.
"""

from __future__ import annotations

import os
import sys

# Asked by these when they are imported, or when they are first used.
VARIABLES = {
    "DO_NOT_TRACK": "1",  # by several
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface-hub, diffusers, transformers
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# OpenVINO reports its own import, whatever was opted for in a terminal before, unless this package of its own is missing:
# then it takes a stub that comes with it. To Python, None in `sys.modules` is a module that is not there.
REPORTERS = ("openvino_telemetry",)


def off() -> None:
    """No library that is imported from here on reports anything."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    for name in REPORTERS:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
