"""The options that say where the work is done: here, or by workers of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ddimctl.cli import options
from ddimctl.cli.groups import group
from ddimctl.errors import UsageError, choose

if TYPE_CHECKING:
    from ddimctl.model import Model
    from ddimctl.runs.where import Where


@group
class Workers(options.Machine):
    """What the work is done on, which may be many machines."""

    on: Annotated[
        str, Option("--on", metavar="WHERE", help="local; or ray, ray=HOST:PORT, ray=auto: workers of a Ray cluster.")
    ] = "local"
    workers: Annotated[
        int | None, Option("--workers", metavar="N", min=1, help="So many workers; by default what there is room for.")
    ] = None
    worker_cpus: Annotated[
        int | None, Option("--worker-cpus", metavar="C", min=1, help="Processors of each, and its threads.")
    ] = None
    worker_gpus: Annotated[float | None, Option("--worker-gpus", metavar="G", min=0, help="GPUs of each.")] = None

    def __post_init__(self) -> None:
        _ = self.address  # what makes no sense is told before anything is done

    @property
    def address(self) -> str | None:
        """What is said of the cluster's. Raises `UsageError` where there is no such place to work."""
        kind, named, address = self.on.partition("=")
        choose(PLACES, kind, "place to work")
        if named and (kind == "local" or not address):
            raise UsageError(f"--on {self.on} makes no sense", hint="such as ray=HOST:6379")
        asked = {"--workers": self.workers, "--worker-cpus": self.worker_cpus, "--worker-gpus": self.worker_gpus}
        if kind == "local" and (said := [name for name, value in asked.items() if value is not None]):
            raise UsageError(f"{said[0]} is about workers of a cluster", hint="add --on ray")
        return address or None

    def placed(self, model: Model) -> Model:
        """The model on the device that the workers have; here there may be no such device."""
        module = model.network.module
        if self.on == "local":
            return model
        if self.worker_gpus == 0 and module.kind == "cuda":
            raise UsageError("the model is on a GPU, and workers get none", hint="add --device cpu, or --worker-gpus 1")
        if not self.worker_gpus or module.kind == "cuda":
            return model
        if self.device not in ("auto", "cuda"):
            raise UsageError(f"--worker-gpus is about GPUs, and --device {self.device} is none", hint="leave one away")
        return model.with_network(replace(model.network, module=replace(module, device="cuda")))

    @contextmanager
    def elsewhere(self, model: Model | None, *, dry_run: bool = False) -> Iterator[Where | None]:
        """Where the work with that model is done, as long as it is open; None is here."""
        address = self.address
        if self.on == "local" or dry_run:
            yield None
            return
        from ddimctl.engines import processors
        from ddimctl.runs import ray

        cuda = model is not None and model.network.module.kind == "cuda"
        gpus = float(cuda) if self.worker_gpus is None else self.worker_gpus
        share = (self.workers or 1) if address is None else 1
        cpus = self.worker_cpus or (1 if gpus else max(1, processors.threads() // share))
        with ray.cluster(ray.Request(address, self.workers, cpus, gpus)) as where:
            yield where


PLACES = {"local": "this process", "ray": "workers of a Ray cluster"}
