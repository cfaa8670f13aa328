"""``ddimctl encode``: images → x_T."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddimctl.cli import inputs, options
from ddimctl.cli.console import Console
from ddimctl.errors import UsageError


def encode(
    images: Annotated[list[str], typer.Argument(help="Image files, folders of them, or - for standard input.")],
    output: options.Output = None,
    model: options.Model = options.DEFAULT_MODEL,
    steps: options.Steps = options.DEFAULT_STEPS,
    solver: options.Solver = options.DEFAULT_SOLVER,
    spacing: options.Spacing = options.DEFAULT_SPACING,
    tolerance: options.Tolerance = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = options.DEFAULT_BATCH,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:
    """Encode images into latents x_T.

    One image makes IMAGE.pt, or the file that -o names (.pt or .safetensors). Several make one file of them all if -o
    names a file, else one file each, in the folder that -o names. The file knows how to decode itself.

    Example: ddimctl encode img.png -o latent.pt
    """
    from ddimctl import ddim, latent
    from ddimctl.files import make_folder, refuse_existing

    console = Console(quiet, verbose, json)
    names = inputs.expand(images)
    together = output is not None and output.suffix.lower() in latent.SUFFIXES
    if output is not None and output.suffix and not together and not output.is_dir():
        latent.check_suffix(output)
    if together and output is not None:
        targets = [output]
    else:
        folder = output or Path()
        targets = [folder / (Path(n).stem if n != "-" else "latent") for n in names]
        targets = [t.with_name(t.name + ".pt") for t in targets]
        if len(set(targets)) < len(targets):
            raise UsageError("two of the images would write the same latent file", hint="name one output file with -o")
    for target in targets:
        refuse_existing(target, force)

    net = inputs.open_model(model, device, console)
    path = net.schedule.path(steps, spacing)
    x0, records = inputs.read_images(names, net, console)
    batches = -(-len(x0) // batch_size)
    with console.bar(batches * steps, "encoding") as bar:
        solution = ddim.encode(net, x0, path, solver, tolerance, batch_size, bar)
    for i in solution.unconverged:
        residual = solution.residuals[i] if solution.residuals else float("nan")
        console.notice(f"warning: {names[i]} did not converge: residual {residual:.1e} > {solution.tolerance:.1e}")
    if output is not None and not together:
        make_folder(output)
    groups = [range(len(x0))] if together else [range(i, i + 1) for i in range(len(x0))]
    for target, group in zip(targets, groups, strict=True):
        part = solution.select(group)
        about = inputs.provenance(net, model, path, spacing, solver, part, [records[i] for i in group])
        latent.save(target, latent.Latent(part.x.float(), about))
    console.data(
        "\n".join(map(str, targets)),
        {
            "files": [str(t) for t in targets],
            "images": len(x0),
            "steps": steps,
            "solver": solver,
            "spacing": spacing,
            "evaluations": solution.mean_evaluations,
            "unconverged": solution.unconverged,
            "residuals": solution.residuals,
        },
    )
