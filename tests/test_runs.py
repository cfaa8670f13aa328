"""Folders: planned, resumed, packed, sharded, with a manifest; one bad file never stops the others."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, write_tiny_model
from torch import Tensor

from ddimctl import latent, ode
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.families import load
from ddimctl.images import datasets, formats, levels, reading, writing
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.lossless import TOLERANCES
from ddimctl.recipe import Way
from ddimctl.runs import plan, work
from ddimctl.runs.manifest import Manifest, journal_of, read_manifest
from ddimctl.runs.plan import DONE, FAILED, Item, Outcome
from ddimctl.runs.reading import read_ahead
from ddimctl.runs.work import Decoding, Encoding

Invoke = Callable[..., Result]
N = 7


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images in a folder with folders in it."""
    rng = np.random.default_rng(0)
    for i in range(N):
        path = tmp_path / "photos" / ("deep/er" if i % 2 else ".") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        writing.save_image(path, rng.integers(0, 256, (16, 16, 1), dtype=np.uint8))
    return tmp_path / "photos"


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix != ".jsonl"
    }


@pytest.fixture
def encode(invoke: Invoke, model_folder: Path) -> Invoke:
    def run(*args: object, **more: object) -> Result:
        return invoke("encode", "-m", model_folder, "--steps", 2, "--batch-size", 3, *args, **more)

    return run


# Plans


def test_names_mirror_the_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    names = ["0", "2", "4", "6", "deep/er/1", "deep/er/3", "deep/er/5"]
    assert [i.name for i in plan.gather(["photos"], formats.SUFFIXES)] == names
    assert [i.name for i in plan.gather(["photos/**/*.png"], formats.SUFFIXES)] == names
    assert [i.name for i in plan.gather(["photos/deep/er/1.png"], formats.SUFFIXES)] == ["1"]
    assert plan.gather(["photos/[0-2].png"], formats.SUFFIXES) == [
        Item("photos/0.png", "0"),
        Item("photos/2.png", "2"),
    ]
    (photos / "[x].png").write_bytes(b"")  # a name, not a pattern
    assert [i.name for i in plan.gather(["photos/[x].png"], formats.SUFFIXES)] == ["[x]"]
    for nothing in ("*.jpg", "photos/deep/*.gif"):
        with pytest.raises(UsageError, match="nothing matches"):
            plan.gather([nothing], formats.SUFFIXES)


def test_pipes_are_neither_matched_nor_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.png").touch()
    assert [i.name for i in plan.gather([str(tmp_path / "*.png")], formats.SUFFIXES)] == ["a"]
    with pytest.raises(UsageError, match="a pipe or a device"):
        plan.gather([str(tmp_path / "pipe.png")], formats.SUFFIXES)


def test_lists_lead_nowhere_else() -> None:
    lines = ["a/b.png", "", "../../etc/x.png", "/abs/olute/y.tar.png", "c.png"]
    assert [(i.source, i.name) for i in plan.listed(lines)] == [
        ("a/b.png", "a/b"),
        ("../../etc/x.png", "x"),
        ("/abs/olute/y.tar.png", "y.tar"),
        ("c.png", "c"),
    ]


def test_files_that_share_a_name_keep_their_suffix(encode: Invoke, photos: Path, tmp_path: Path) -> None:
    writing.save_image(photos / "0.jpg", np.zeros((16, 16, 1), np.uint8))
    done = encode(photos, "-o", "out").ok()
    said = "2 files share a name: the suffix becomes a part of it in the output (0.jpg, 0.png)"
    assert said in done.err.splitlines()
    assert sorted(p.name for p in (tmp_path / "out").glob("*.pt")) == ["0.jpg.pt", "0.png.pt", "2.pt", "4.pt", "6.pt"]
    for name in ("0.jpg", "0.png"):
        assert latent.load(tmp_path / "out" / f"{name}.pt").images[0]["name"] == str(photos / name)
    assert "there already: 8" in encode(photos, "-o", "out").ok().err


def test_latents_that_share_a_name_keep_their_suffix(
    encode: Invoke, invoke: Invoke, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/x.pt", "in/x.safetensors"):
        encode(photos / "0.png", "-o", name).ok()
    invoke("decode", "in", "-o", "back").ok()
    assert sorted(p.name for p in (tmp_path / "back").glob("*.png")) == ["x.pt.png", "x.safetensors.png"]


def test_name_apart() -> None:
    def apart(*sources: str) -> list[str]:
        return [i.name for i in plan.name_apart([Item(s, Path(s).with_suffix("").as_posix()) for s in sources])[0]]

    assert apart("a.jpg", "b.png") == ["a", "b"]
    assert apart("a.jpg", "c.png", "a.png", "d/a.png") == ["a.jpg", "c", "a.png", "d/a"]
    assert apart("x.png.jpg", "x.jpg", "x.png") == ["x.png.jpg", "x.jpg", "x.png"]  # what is renamed meets no other
    assert apart() == []


def test_collisions_that_stay_are_refused_together(encode: Invoke, photos: Path) -> None:
    items = [Item(f"{place}/{i}.png", str(i)) for place in "ab" for i in range(5)]
    with pytest.raises(UsageError) as refused:
        plan.name_apart(items)
    three = ", ".join(f"a/{i}.png and b/{i}.png" for i in range(3))
    assert str(refused.value) == f"{three} and 2 more pairs would write the same file"
    assert "rename one of each" in refused.value.hint
    assert encode(photos / "0.png", photos / "0.png", "-o", "out").failed(2).endswith("would write the same file")
    assert not (photos.parent / "out").exists()


def test_shards_are_a_partition() -> None:
    items = [Item(f"{i}.png", str(i)) for i in range(200)]
    shards = [plan.shard(items, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(x.name for s in shards for x in s) == sorted(x.name for x in items)
    assert all(40 < len(s) < 95 for s in shards)
    assert plan.shard(items[50:], "2/3") == [x for x in shards[1] if x in items[50:]]  # whatever else there is
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3"):
        with pytest.raises(UsageError, match="--shard"):
            plan.shard(items, wrong)


# Runs


def test_a_folder_becomes_a_folder(encode: Invoke, photos: Path, tmp_path: Path) -> None:
    done = encode(photos, "-o", "out").ok()
    made = outputs(tmp_path / "out")
    assert sorted(made) == ["0.pt", "2.pt", "4.pt", "6.pt", "deep/er/1.pt", "deep/er/3.pt", "deep/er/5.pt"]
    assert sorted(done.out.split()) == sorted(f"out/{name}" for name in made)
    assert "encoded: 7, there already: 0, failed: 0" in done.err
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert lines[0]["run"]["command"] == "encode"
    assert [line["status"] for line in lines[1:]] == ["done"] * N
    assert lines[1]["image"]["sha256"] == reading.digest(photos / "0.png")


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_pipes_in_a_list_or_among_the_outputs_stop_nothing(
    command: str, encode: Invoke, invoke: Invoke, photos: Path, tmp_path: Path
) -> None:
    encode(photos, "-o", "latents").ok()
    source, suffixes = ("photos", (".png", ".pt")) if command == "encode" else ("latents", (".pt", ".png"))
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / f"pipe{suffixes[0]}")
    os.mkfifo(tmp_path / "out" / f"0{suffixes[1]}")
    (tmp_path / "list").write_text(f"{source}/2{suffixes[0]}\npipe{suffixes[0]}\n")
    run = encode if command == "encode" else lambda *args: invoke("decode", *args)
    assert run("--from-file", "list", "-o", "listed").failed(4) == "1 of 2 failed"
    done = run(source, "-o", "out", "--force")
    assert done.failed(4) == "1 of 7 failed"
    assert "a pipe or a device and is left alone" in done.err


def test_the_same_command_again_does_only_what_is_missing(encode: Invoke, photos: Path, tmp_path: Path) -> None:
    encode(photos, "-o", "out").ok()
    made = outputs(tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.pt")}
    assert "there already: 7" in encode(photos, "-o", "out").ok().err
    for name in ("2.pt", "deep/er/3.pt"):
        (tmp_path / "out" / name).unlink()
    assert "encoded: 2, there already: 5" in encode(photos, "-o", "out").ok().err
    assert outputs(tmp_path / "out") == made  # byte for byte, though the batches were half done
    same = [p for p, stamp in stamps.items() if p.stat().st_mtime_ns == stamp]
    assert len(same) == 5


def test_an_output_that_is_not_the_same_is_not_taken_for_it(encode: Invoke, photos: Path, tmp_path: Path) -> None:
    encode(photos, "-o", "out").ok()
    made = outputs(tmp_path / "out")
    changed = tmp_path / "out" / "0.pt"
    data = changed.read_bytes()[:-10]
    changed.write_bytes(data)  # no longer whole
    writing.save_image(photos / "2.png", np.zeros((16, 16, 1), np.uint8))  # another source
    said = encode(photos, "-o", "out")
    assert said.failed(4) == "2 of 7 failed"
    assert said.err.count("exists already and is not what this would make") == 2
    assert said.err.count("hint: name another place with -o; --force writes over it") == 1
    assert changed.read_bytes() == data  # nothing is overwritten without --force
    assert "encoded: 2, there already: 5" in encode(photos, "-o", "out", "--force").ok().err
    assert changed.read_bytes() == made["0.pt"]
    for other in (
        ("--steps", 3),
        ("--solver", "ddim"),
        ("--spacing", "linear"),
        ("--fit", "pad"),
        ("--background", "red"),
    ):
        assert encode(photos, "-o", "out", *other).failed(4) == "7 of 7 failed"


def test_one_bad_file_does_not_stop_the_others(encode: Invoke, photos: Path, tmp_path: Path) -> None:
    (photos / "1-text.png").write_text("no image")
    (photos / "3-cut.png").write_bytes((photos / "0.png").read_bytes()[:60])
    (photos / "5-link.png").symlink_to("nowhere")
    said = encode(photos, "-o", "out")
    assert said.failed(4) == "3 of 10 failed"
    assert len(outputs(tmp_path / "out")) == N
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    reasons = {line["name"]: line["reason"] for line in lines if line.get("status") == "failed"}
    assert sorted(reasons) == ["1-text", "3-cut", "5-link"]
    assert "not an image" in reasons["1-text"]
    assert "there is no file" in reasons["5-link"]


def test_dry_run_writes_nothing(encode: Invoke, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_text("no image")
    said = encode(photos, "-o", "out", "--dry-run")
    assert said.code == 4
    assert not (tmp_path / "out").exists()
    assert said.out.count("encode\t") == N
    assert said.out.count("fail\t") == 1
    encode(photos, "-o", "out")
    assert encode(photos, "-o", "out", "--dry-run").out.count("skip\t") == N


def test_shards_make_what_one_run_makes(encode: Invoke, photos: Path, tmp_path: Path) -> None:
    for i in (1, 2):
        encode(photos, "-o", "out", "--shard", f"{i}/2").ok()
    assert len(outputs(tmp_path / "out")) == N
    assert sorted(p.name for p in (tmp_path / "out").glob("*.jsonl")) == [
        "manifest-1-of-2.jsonl",
        "manifest-2-of-2.jsonl",
    ]


def test_a_list_from_a_file_and_from_standard_input(encode: Invoke, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("photos/0.png\nphotos/deep/er/1.png\n")
    encode("--from-file", "list", "-o", "out").ok()
    assert sorted(outputs(tmp_path / "out")) == ["photos/0.pt", "photos/deep/er/1.pt"]
    encode("--from-file", "-", "-o", "out2", input=(tmp_path / "list").read_bytes()).ok()
    assert outputs(tmp_path / "out2") == outputs(tmp_path / "out")
    assert "nothing to work on" in encode("-o", "out").failed(2)
    assert "standard input is one file" in encode("-", "photos/0.png", "-o", "out").failed(2)


def test_links_in_the_output_folder_are_left_alone(encode: Invoke, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.pt").symlink_to(tmp_path / "victim")
    assert encode(photos, "-o", "out", "--force").failed(4) == "1 of 7 failed"
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("suffix", latent.SUFFIXES)
def test_a_pack_is_one_file_of_all(suffix: str, encode: Invoke, invoke: Invoke, photos: Path, tmp_path: Path) -> None:
    (photos / "1-text.png").write_text("no image")
    target = tmp_path / f"all{suffix}"
    assert encode(photos, "-o", target).failed(4) == "1 of 8 failed"
    found = latent.load(target)
    assert [i["name"] for i in found.images] == [str(p) for p in datasets.find_images(photos) if p.name != "1-text.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [target.name, f"{target.name}.manifest.jsonl", "photos"]
    again = encode(photos, "-o", target)
    assert again.code == 4
    assert "encoded: 0, there already: 7" in again.err
    (photos / "1-text.png").unlink()
    encode(photos, "-o", target).ok()
    assert "is not what this would make" in encode(photos, "-o", target, "--steps", 3).failed(2)
    writing.save_image(photos / "9.png", np.zeros((16, 16, 1), np.uint8))
    assert "is not what this would make" in encode(photos, "-o", target).failed(2)
    encode(photos, "-o", target, "--force").ok()
    assert len(latent.load(target).xT) == N + 1
    # Every command takes it: decoded together or one by one, the images are the same.
    invoke("decode", target, "-o", "together").ok()
    encode(photos, "-o", "apart").ok()
    invoke("decode", "apart", "-o", "decoded").ok()
    for path in datasets.find_images(photos):  # what they say of themselves differs
        alone = tmp_path / "decoded" / path.relative_to(photos)
        assert writing.is_same(tmp_path / "together" / f"{path.stem}.png", alone.read_bytes())


def test_a_pack_goes_on_where_it_was_killed(
    encode: Invoke, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(photos, "-o", "whole.safetensors").ok()
    solve, calls = work.encode, []

    def dies(*args: object, **more: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise DDIMError("the machine is gone")
        return solve(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "encode", dies)
    encode(photos, "-o", "all.safetensors").failed(1)
    assert not (tmp_path / "all.safetensors").exists()
    encode(photos, "-o", "all.safetensors").ok()
    assert len(calls) == 4  # two parts were there
    assert (tmp_path / "all.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_decoding_a_folder(encode: Invoke, invoke: Invoke, photos: Path, tmp_path: Path) -> None:
    encode(photos, "-o", "out").ok()
    (tmp_path / "out" / "bad.pt").write_text("no latent")
    assert invoke("decode", "out", "-o", "back").failed(4) == "1 of 8 failed"
    made = outputs(tmp_path / "back")
    assert sorted(made) == ["0.png", "2.png", "4.png", "6.png", "deep/er/1.png", "deep/er/3.png", "deep/er/5.png"]
    assert "decoded: 0, there already: 7" in invoke("decode", "out", "-o", "back").err
    (tmp_path / "back" / "manifest.jsonl").unlink()  # then the outputs are compared
    assert "decoded: 7, there already: 0, failed: 1" in invoke("decode", "out", "-o", "back").err
    assert outputs(tmp_path / "back") == made
    (tmp_path / "back" / "0.png").write_bytes(b"mine")
    assert invoke("decode", "out", "-o", "back").failed(4) == "2 of 8 failed"
    assert (tmp_path / "back" / "0.png").read_bytes() == b"mine"
    invoke("decode", "out", "-o", "back", "--force").failed(4)
    assert outputs(tmp_path / "back") == made


def test_latents_of_another_model_than_the_one_named_fail_one_by_one(
    encode: Invoke, invoke: Invoke, photos: Path, tmp_path: Path, model_folder: Path
) -> None:
    """Each is decoded by the model it names; where the command line names one, those of others are refused."""
    write_tiny_model(tmp_path / "other", seed=1)
    encode(photos, "-o", "out").ok()
    invoke("encode", photos / "0.png", "-m", "other", "--steps", 2, "-o", "out/x.pt").ok()
    assert "decoded: 8" in invoke("decode", "out", "-o", "each").ok().err
    said = invoke("decode", "out", "-o", "back", "-m", model_folder)
    assert said.failed(4) == "1 of 8 failed"
    assert "was encoded with another model" in said.err


def test_latents_of_several_classes_are_decoded_class_by_class(
    invoke: Invoke, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One integration has one condition: a batch of files is decoded in as many parts as it has ways and conditions."""
    model = write_tiny_model(tmp_path / "classes", num_class_embeds=3)
    for i in range(4):
        name = photos / ("deep/er" if i % 2 else ".") / f"{i}.png"
        how = ("-m", model, "--class", i % 2, "--steps", 3 if i == 3 else 2)
        invoke("encode", name, *how, "-o", tmp_path / f"{i}.pt").ok()
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / f"{i}.pt").rename(tmp_path / "all" / f"{i}.pt")
        invoke("decode", f"all/{i}.pt", "-o", f"alone-{i}.png").ok()
    parts = []
    real = work.decode

    def decode(xT: Tensor, decoding: work.Decoding, **more: object) -> object:
        parts.append((len(xT), decoding.condition.class_label, decoding.way.steps))
        return real(xT, decoding, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "decode", decode)
    invoke("decode", "all", "-o", "back").ok()
    assert sorted(parts) == [(1, 1, 2), (1, 1, 3), (2, 0, 2)]
    for i in range(4):
        assert (tmp_path / "back" / f"{i}.png").read_bytes() == (tmp_path / f"alone-{i}.png").read_bytes()


# The work itself, which knows no files


@pytest.mark.slow
@pytest.mark.parametrize("lossless", [False, True])
def test_pixels_become_latents_that_say_how_and_go_back(lossless: bool, model_folder: Path) -> None:
    model = load(str(model_folder), "cpu")
    encoding = Encoding(model, Way("exact", steps=3), Preprocessing(), lossless=lossless)
    pixels = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8))
    solution = work.encode(pixels, encoding)
    assert (solution.checks is not None) == lossless
    made = work.latent_of(solution, encoding, [{"name": f"{i}.png"} for i in range(3)])
    latent.check_provenance(made.provenance, 3)
    assert made.recipe == encoding.recipe
    assert made.recipe.way.tolerance == (TOLERANCES[0] if lossless else 1e-5)  # the first that is tried
    assert made.recipe.lossless == lossless
    x0 = levels.to_tensor(np.stack(pixels))
    if not lossless:
        assert torch.equal(made.xT, ode.encode(model, x0, encoding.way).x.float())
    decoding = Decoding(model, Way("ddim", steps=3))
    assert torch.equal(work.decode(made.xT, decoding), ode.decode(model, made.xT, decoding.way).x)


def test_the_work_needs_no_torch_where_the_network_does_not(model_folder: Path) -> None:
    """Tensors for torch and for lossless encoding, whose checks they are; arrays else."""
    model = load(str(model_folder), "cpu")
    arrays = model.with_network(replace(model.network, engine="openvino", call=lambda x, labels, embedded: x))
    pixels = [np.zeros((16, 16, 1), np.uint8)]
    for net, lossless, tensors in ((model, False, True), (arrays, False, False), (arrays, True, True)):
        encoding = Encoding(net, Way("exact", steps=2), Preprocessing(), lossless=lossless)
        assert encoding.tensors == tensors
        assert isinstance(work.encode(pixels, encoding).x, torch.Tensor) == tensors


# The manifest


def test_an_unfinished_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    with Manifest(path, {}) as log:
        log.add([Outcome(Item("a.png", "a"), DONE), Outcome(Item("b.png", "b"), FAILED)])
    whole = path.read_bytes()
    path.unlink()
    journal_of(path).write_bytes(whole[:-7])  # as a killed run leaves it
    assert list(read_manifest(path)) == ["a"]
    with Manifest(path, {}):
        assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    assert list(read_manifest(path)) == ["a"]
    assert read_manifest(tmp_path / "none") == {}


@pytest.mark.parametrize(
    "line",
    [
        '{"name": "../x"}',
        '{"name": "/etc/x"}',
        '{"name": 3}',
        "[]",
        "{}",
        "no JSON",
        "[" * 10**5,
        '{"name": "a\\u0000"}{',
    ],
)
def test_hostile_manifests_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(FileError, match="not a manifest"):
        read_manifest(path)


def test_a_manifest_is_no_way_out_of_the_folder(encode: Invoke, invoke: Invoke, photos: Path, tmp_path: Path) -> None:
    encode(photos, "-o", "out").ok()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "manifest.jsonl").write_text('{"name": "../../x", "key": "", "sha256": []}\n')
    assert "not a manifest" in invoke("decode", "out", "-o", "back").failed(3)
    (tmp_path / "back" / "manifest.jsonl").unlink()
    (tmp_path / "back" / "manifest.jsonl").symlink_to(tmp_path / "victim")
    assert "cannot write" in invoke("decode", "out", "-o", "back").failed(1)
    assert not (tmp_path / "victim").exists()


# Reading ahead


def test_reading_ahead_keeps_order_and_is_bounded() -> None:
    started: list[str] = []
    lock = threading.Lock()

    def load(item: Item) -> str:
        with lock:
            started.append(item.name)
        if item.name == "5":
            raise FileError("bad")
        return item.name

    items = [Item(str(i), str(i)) for i in range(40)]
    seen = []
    for group in read_ahead(items, load, 4):
        seen += [loaded.item.name for loaded in group]
        assert len(started) <= len(seen) + 8
        for loaded in group:
            assert (loaded.value is None) == (loaded.failure is not None) == (loaded.item.name == "5")
    assert seen == [str(i) for i in range(40)]


def test_what_is_not_an_items_own_fault_is_raised() -> None:
    def load(item: Item) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(read_ahead([Item("a", "a")], load, 4))


def test_names_that_are_no_unicode(encode: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"\xff\xfe.png", b"two\nlines.png", b"\x1b[31mred.png"):
        writing.save_image(folder / os.fsdecode(name), np.zeros((16, 16, 1), np.uint8))
    done = encode("odd", "-o", "out")
    assert done.code == 0, done.stderr
    assert sorted(os.fsencode(p.name) for p in (tmp_path / "out").glob("*.pt")) == sorted(
        [b"\xff\xfe.pt", b"two\nlines.pt", b"\x1b[31mred.pt"]
    )


def test_reconstructing_a_folder_with_a_bad_file(
    invoke: Invoke, model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    writing.save_image(photos / "0.jpg", np.zeros((16, 16, 1), np.uint8))  # nothing is written, so names may collide
    args = ("reconstruct", "-m", model_folder, "--steps", 2, "--batch-size", 3, "--json")
    assert json.loads(invoke(*args, photos).ok().out)["images"] == N + 1
    (photos / "bad.png").write_text("no image")
    said = invoke(*args, photos)
    assert said.failed(4) == "1 of 9 images could not be read"
    assert json.loads(said.out)["images"] == N + 1
    assert "not an image" in invoke(*args, photos / "bad.png").failed(3)
    (tmp_path / "list").write_text("photos/0.png\nphotos/2.png\n")
    assert json.loads(invoke(*args, "--from-file", "list").ok().out)["images"] == 2
    for bad in ("photos/bad.png", "photos/none.png"):
        (tmp_path / "list").write_text(f"{bad}\n")
        assert invoke(*args, "--from-file", "list").failed(4) == "none of 1 images could be read"
