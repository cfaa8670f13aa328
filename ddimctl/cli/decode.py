"""``ddimctl decode``: x_T → images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddimctl.cli import inputs, options
from ddimctl.cli.console import Console
from ddimctl.errors import UsageError


def decode(
    latents: Annotated[list[str], typer.Argument(help="Latent files (.pt, .safetensors).")],
    output: options.Output = None,
    model: options.OtherModel = None,
    steps: options.OtherSteps = None,
    solver: options.OtherSolver = None,
    spacing: options.OtherSpacing = None,
    tolerance: options.Tolerance = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = options.DEFAULT_BATCH,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:
    """Decode latents into images.

    The model, the noise levels and the solver come from the file; name others only to see what they do. One image makes
    LATENT.png, or the file that -o names; several go into the folder that -o names.

    Example: ddimctl decode latent.pt -o back.png
    """
    from ddimctl import ddim, images, latent
    from ddimctl.files import make_folder, refuse_existing

    console = Console(quiet, verbose, json)
    files = [latent.load(Path(name)) for name in latents]
    total = sum(len(f.xT) for f in files)
    stems = [Path(n).stem + (f"-{i:0{len(str(len(f.xT) - 1))}}" if len(f.xT) > 1 else "")
             for n, f in zip(latents, files, strict=True) for i in range(len(f.xT))]  # fmt: skip
    if output is not None and output.suffix and not output.is_dir():
        if total > 1:
            raise UsageError(f"{total} images do not fit into one file {output}", hint="name a folder with -o")
        images.check_suffix(output)
        targets = [output]
    else:
        targets = [(output or Path()) / f"{stem}.png" for stem in stems]
        if len(set(targets)) < len(targets):
            raise UsageError("two of the latents would write the same image file", hint="decode them one by one")
    for target in targets:
        refuse_existing(target, force)

    written = 0
    for name, file in zip(latents, files, strict=True):
        net = inputs.model_of(file, name, model, device, console, force)
        path, how = inputs.way_back(file, net, steps, spacing, solver)
        batches = -(-len(file.xT) // batch_size)
        with console.bar(batches * (len(path) - 1), "decoding") as bar:
            solution = ddim.decode(net, file.xT, path, how, tolerance, batch_size, bar)
        if output is not None and targets != [output]:
            make_folder(output)
        for pixels in images.to_pixels(solution.x):
            images.save_image(targets[written], pixels)
            written += 1
    console.data("\n".join(map(str, targets)), {"files": [str(t) for t in targets], "images": total})
