"""The options that commands share, each written once. Flag beats environment beats default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option("-m", "--model", envvar="DDIMCTL_MODEL", help="A bundled model's name, or a model folder.", metavar="MODEL"),
]
Steps = Annotated[int, typer.Option("--steps", metavar="S", help="Steps along the path, each way.")]
Solver = Annotated[str, typer.Option("--solver", metavar="NAME", help="How the ODE is integrated: ab2, ddim, heun.")]
Spacing = Annotated[
    str, typer.Option("--spacing", metavar="NAME", help="Where the noise levels lie: karras, linear, quadratic.")
]
Device = Annotated[
    str, typer.Option("--device", envvar="DDIMCTL_DEVICE", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images that go through the network at once.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The number that all randomness follows from.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No notices and no progress bar.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist; decode with another model.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where the result goes.")]
