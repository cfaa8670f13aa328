"""``ddimctl bench``: figures that make sense, as tables, JSON and a plot."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddimctl import bench
from ddimctl.families import load
from ddimctl.model import NOTHING, Condition, Model

HERE = ["torch", *(["openvino"] if importlib.util.find_spec("openvino") is not None else [])]


@pytest.fixture
def model(model_folder: Path) -> Model:
    return load(str(model_folder), "cpu")


@pytest.mark.slow
def test_tables_json_and_plot(invoke: Any, model_folder: Path, tmp_path: Path) -> None:
    command = (
        "bench",
        "-m",
        model_folder,
        "--batch-size",
        "1,3",
        "--steps",
        "2,4",
        "--seconds",
        "0",
        "--device",
        "cpu",
    )
    done = invoke(*command, "--json", "--plot", "p.png").ok()
    record = json.loads(done.out)
    assert "GFLOP an evaluation" in done.err
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert [(r["engine"], r["batch"]) for r in record["rates"]] == [(e, b) for e in HERE for b in (1, 3)]
    for r in record["rates"]:
        assert r["images"] == pytest.approx(r["evaluations"] * r["batch"])
        assert r["gflops"] == pytest.approx(r["images"] * record["model"]["flops"] / 1e9)
        assert 0 < r["network"] <= 1
        assert r["matmul"] > 0
    for start in record["starts"]:
        assert start["imports"] > 0
        assert start["loading"] > 0
        assert start["first"] >= 0
    for line in record["lines"]:
        assert [s for s, _ in line["points"]] == [2, 4]
        assert all(line["fixed"] + line["step"] * s == pytest.approx(t) for s, t in line["points"])
    text = invoke(*command, "--engine", "torch").ok().out
    assert [t.splitlines()[0].split()[0] for t in text.split("\n\n")] == ["engine", "start", "time"]
    assert "is there already" in (refused := invoke(*command, "--plot", "p.png").failed(2)) or "exists" in refused


def test_usage(invoke: Any, model_folder: Path) -> None:
    for wrong, said in (
        (("--engine", "onnx"), "unknown engine 'onnx'"),
        (("--batch-size", "big"), "--batch-size takes whole numbers"),
        (("--batch-size", "0"), "--batch-size"),
        (("--steps", "0"), "0 steps are not possible"),
        (("--precision", "int8"), "unknown precision 'int8'"),
        (("--plot", "x.txt"), "has no suffix of a plot"),
    ):
        assert said in invoke("bench", "-m", model_folder, *wrong).failed(2)


@pytest.mark.slow
def test_auto_means_what_is_there(invoke: Any, model_folder: Path) -> None:
    few = ("--batch-size", "1", "--steps", "2", "--seconds", "0", "--device", "cpu", "--json")
    record = json.loads(invoke("bench", "-m", model_folder, "--engine", "auto", *few).ok().out)
    assert [r["engine"] for r in record["rates"]] == HERE


def test_the_share_of_the_network(model: Model) -> None:
    assert 0 < bench.network_share(model, NOTHING, 2, steps=3) < 1


def test_text_models_are_measured_as_what_they_are(
    invoke: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance takes the network twice, and the autoencoder is no part of the share."""
    pytest.importorskip("diffusers")
    from pipelines import folder_of

    model = load(str(folder_of("sd", tmp_path_factory)), "cpu")
    guided = Condition(prompt="a red dog", guidance=3.0)
    assert bench.operations(model, guided) == 2 * bench.operations(model, Condition(prompt="a")) > 0
    monkeypatch.setattr(type(model.autoencoder), "encode", lambda *_: pytest.fail("it is no part of the ODE"))
    assert 0 < bench.network_share(model, guided, 1, steps=3) < 1
    rate = bench.rate(model, guided, 1, seconds=0)
    assert rate.gflops == pytest.approx(rate.images * bench.operations(model, guided) / 1e9)


def test_a_line_through_a_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only evaluations move, time is S times one of them."""
    clock = [0.0]

    def call(x: Any, labels: Any, embedded: Any) -> Any:
        clock[0] += 0.25
        return torch.zeros_like(x)

    model = model.with_network(replace(model.network, call=call))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    line = bench.line(model, NOTHING, 2, steps=[5, 10, 30])
    assert line.points == [(5, 1.25), (10, 2.5), (30, 7.5)]
    assert line.step == pytest.approx(0.25)
    assert line.fixed == pytest.approx(0, abs=1e-9)
    assert line.off == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_a_fresh_process_that_fails_says_why(model: Model) -> None:
    lost = replace(model, about=replace(model.about, reference="nothing"))
    with pytest.raises(bench.DDIMError, match=r"a fresh process failed: .*no model 'nothing'"):
        bench.start(lost, NOTHING, 1)
