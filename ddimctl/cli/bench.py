"""``ddimctl bench``: how fast a model is evaluated here, and where the time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ddimctl.cli import inputs, names, options
from ddimctl.cli.console import figure, table
from ddimctl.cli.groups import flat, group, like
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from ddimctl.bench import Line, Rate, Start
    from ddimctl.charts import Chart


@group
class Measured:
    """What is measured, and for how long."""

    PANEL: ClassVar[str] = "How"

    steps: Annotated[str, like(options.How, "steps", metavar="S,…", help="Steps for the line of time against S.")] = (
        "5,10,20,40"
    )
    seconds: Annotated[float, typer.Option(metavar="X", min=0, help="How long to measure each rate.")] = 1.0


@group
class Machines(options.Device):
    """What is compared."""

    engine: Annotated[
        str | None,
        like(
            options.Machine,
            "engine",
            envvar=None,
            metavar="NAME,…",
            help="Engines to measure; without, all but compile.",
            autocompletion=names.some_of(*names.ENGINES),
        ),
    ] = None
    precision: Annotated[str, like(options.Machine, "precision")] = "float32"
    batch_size: Annotated[
        str, like(options.Machine, "batch_size", metavar="N,…", min=None, help="Batch sizes to measure.")
    ] = "1,4,16,64"


@flat
def bench(*, what: options.What, how: Measured, files: options.Plotted, machine: Machines, said: options.Said) -> None:
    """Measure how fast a model is evaluated here.

    For every engine (torch: PyTorch as it is; compile: PyTorch's compiler; openvino: for CPUs, extra openvino) and batch
    size: evaluations of single images a second, GFLOP/s beside what a matrix multiplication reaches, and how much of an
    encoding's time the network takes. Then how long a fresh process needs to its first evaluation and how much memory,
    and the time to decode against the number of steps S, which is a line. An evaluation under --guidance is two of the
    network; what an autoencoder takes is in the line's fixed part.

    Example: ddimctl bench --batch-size 1,64
    """
    import importlib.util
    from dataclasses import asdict

    from ddimctl import bench as measuring
    from ddimctl import origin, plots
    from ddimctl.engines import processors
    from ddimctl.files import refuse_existing

    console = said.console()
    batches = options.parse_integers(machine.batch_size, "--batch-size")
    if min(batches) < 1:
        raise UsageError(f"--batch-size {machine.batch_size} makes no sense", hint="such as 1,64")
    path_steps = options.parse_integers(how.steps, "--steps")
    if files.plot is not None:
        plots.check_target(files.plot)
        refuse_existing(files.plot, files.force)
    net, condition = inputs.open_model(what, machine, console), what.condition()
    module = net.network.module
    for s in path_steps:
        net.schedule.path(s)
    if machine.engine is not None and machine.engine != "auto":
        wanted = options.parse_list(machine.engine)
    else:
        there = module.kind == "cpu" and importlib.util.find_spec("openvino") is not None
        wanted = ["torch", *(["openvino"] if there else [])]
    # What is not there is told before anything is measured.
    nets = [inputs.evaluated_by(net, name, machine.precision) for name in wanted]
    flops = measuring.operations(net, condition)
    console.notice(f"{net.name}: {flops / 1e9:.3g} GFLOP an evaluation; {measuring.processor()}")
    before = processors.times()
    with console.bar(len(wanted) * len(batches), "measuring") as bar:
        cells = [(made, batch) for made in nets for batch in batches]
        rates = [measuring.rate(made, condition, batch, seconds=how.seconds) for made, batch in bar(cells)]
    starts = [measuring.start(made, condition, max(batches)) for made in nets]
    lines = [measuring.line(made, condition, max(batches), steps=path_steps) for made in nets]
    record: dict[str, Any] = {
        "model": {**origin.named(net), "flops": flops},
        "processor": measuring.processor(),
        "threads": processors.threads(),
        "starving": processors.times().since(before).starving,
        "rates": [{**asdict(r), "images": r.images} for r in rates],
        "starts": [asdict(s) for s in starts],
        "lines": [asdict(x) for x in lines],
    }
    console.data(as_text(rates, starts, lines), record)
    if files.plot is not None:
        title = f"{net.name}, {measuring.processor()}"
        plots.draw(files.plot, as_charts(rates, lines), title=title, dark=files.dark)
        console.notice(f"{files.plot}: images a second by batch size, and time against steps")


def as_text(rates: list[Rate], starts: list[Start], lines: list[Line]) -> str:
    """Three tables for people."""
    first = [
        [r.engine, r.precision, str(r.batch), figure(r.evaluations), figure(r.images), figure(r.gflops),
         f"{100 * r.gflops / r.matmul:.0f} %", f"{100 * r.network:.1f} %"]
        for r in rates
    ]  # fmt: skip
    second = [
        [s.engine, *(f"{v:.2f} s" for v in (s.interpreter, s.imports, s.loading, s.first)),
         f"{s.peak / 2**20:.0f} MiB" if s.peak is not None else "-"]
        for s in starts
    ]  # fmt: skip
    third = [
        [x.engine, str(x.batch), f"{x.fixed:.3f} s", f"{1000 * x.step:.2f} ms", f"{100 * x.off:.1f} %"] for x in lines
    ]
    return "\n\n".join(
        (
            table(
                ["engine", "precision", "batch", "evaluations/s", "images/s", "GFLOP/s", "of matmul", "network"], first
            ),
            table(["start", "interpreter", "imports", "loading", "first evaluation", "peak memory"], second),
            table(["time against S", "batch", "fixed", "a step", "off the line"], third),
        )
    )


def as_charts(rates: list[Rate], lines: list[Line]) -> list[Chart]:
    """Images a second by batch size, and time against S."""
    from ddimctl.report import runs

    by_batch: dict[str, list[tuple[float, float]]] = {}
    for r in rates:
        by_batch.setdefault(r.engine, []).append((r.batch, r.images))
    timed = {x.engine: (x.points, x.fixed, x.step) for x in lines}
    return [runs.rates_against_batches(by_batch), runs.times_against_steps(timed, lines[0].batch)]
