"""What happens when machines are killed, disks are full, and files are hostile: ``make reliability``.

Every check counts its cases and its failures; all randomness follows from a seed. `main` runs the full counts and writes
RELIABILITY.md; ``tests/test_reliability.py`` runs the same checks with small ones. The processes that are killed are
forks of this one, which has torch loaded already, so that a kill costs milliseconds and falls into the work itself.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import io
import json
import math
import os
import platform
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddimctl import __version__, latent, ode
from ddimctl.checkpoints import Checkpoint, diffusers
from ddimctl.cli import app, info, inputs, options
from ddimctl.cli.console import Console
from ddimctl.cli.sized import OtherTiles
from ddimctl.errors import DDIMError, FileError
from ddimctl.families import load
from ddimctl.files import clean
from ddimctl.images import animation, fitting, formats, preprocessing, reading, writing
from ddimctl.latent import Latent
from ddimctl.model import Model
from ddimctl.ode import Solution
from ddimctl.recipe import Way
from ddimctl.runs import local, outputs, packed, plan
from ddimctl.runs.manifest import Manifest, journal_of, read_manifest
from ddimctl.runs.work import Encoding
from ddimctl.schedule import Schedule
from ddimctl.unet import UNet2DModel, UNetConfig

SEED = 7
HANG = 10  # seconds of the processor that one case may take; 60 times that where it waits
MEMORY = 2048  # MiB that a process may use
CODES = {0, 1, 2, 3, 4, 5, 130, 143}
TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


@dataclass
class Result:
    """One row of the table: what was done how often, what must hold, what went wrong."""

    test: str
    must: str
    cases: int = 0
    failures: list[str] = field(default_factory=list)
    figure: str = ""

    def check(self, right: bool, what: str) -> None:
        self.cases += 1
        if not right:
            self.failures.append(what)


# Processes


@dataclass
class Ended:
    """How a forked process ended."""

    code: int  # −9 if it was killed
    out: str
    err: str
    peak: float  # MiB

    def faults(self) -> str:
        """What no command may ever do."""
        if "Traceback" in self.err:
            return self.err[-600:]
        return "" if self.code in CODES or self.code == -9 else f"exit code {self.code}: {self.err[-300:]}"


def fork(work: Callable[[], object], kill_after: float | None = None, out: int | None = None) -> Ended:
    """Runs `work` in a fork of this process; kills it after a while, counted from its first sign of life."""
    folder = Path(tempfile.mkdtemp())
    ready, tell = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(folder / "out", os.O_WRONLY | os.O_CREAT) if out is None else out, 1)
            os.dup2(os.open(folder / "err", os.O_WRONLY | os.O_CREAT), 2)
            sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
            os.write(tell, b".")
            work()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(bool(e.code))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(tell)
    os.read(ready, 1)
    os.close(ready)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    texts = [(folder / n).read_text(errors="replace") if (folder / n).exists() else "" for n in ("out", "err")]
    shutil.rmtree(folder)
    return Ended(os.waitstatus_to_exitcode(status), *texts, usage.ru_maxrss / 1024)


def command(
    *args: object, kill_after: float | None = None, before: Callable[[], object] = int, out: int | None = None
) -> Ended:
    """Runs the command line in a fork, after `before`."""

    def work() -> None:
        before()
        sys.argv = ["ddimctl", *map(str, args)]
        app.main()

    return fork(work, kill_after, out)


# Material


def tiny_model(folder: Path) -> Path:
    config = UNetConfig.from_dict(TINY)
    torch.manual_seed(0)
    diffusers.write(folder, Checkpoint(config, dict(UNet2DModel(config).state_dict()), Schedule.linear()))
    return folder


def folder_of_images(folder: Path, n: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(n):
        path = folder / f"{i % 7}" / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(writing.to_bytes(rng.integers(0, 256, (8, 8, 1), dtype=np.uint8), ".png"))
    return folder


def encoding(net: Model, steps: int = 2) -> Encoding:
    return Encoding(net, Way(steps=steps), preprocessing.Preprocessing())


def some_latent(net: Model, n: int = 1, value: float = 0.5) -> Latent:
    records: list[dict[str, object]] = [{"name": f"{i}.png", "sha256": "0" * 64, "size": [8, 8]} for i in range(n)]
    about = latent.provenance(net, encoding(net).recipe, Solution(None, [2] * n), records=records)
    return Latent(torch.full((n, *net.state_shape), value), about)


def tree(folder: Path) -> dict[str, bytes]:
    """The outputs in a folder: all but manifests."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".jsonl"
    }


# The checks


def kill_while_writing(kind: str, n: int, seed: int, work: Path) -> Result:
    """kill −9 at a random moment while one file is written again and again."""
    result = Result(f"kill −9 while writing, {kind}", "0 corrupt final files")
    rng = random.Random(seed)
    net = load(str(tiny_model(work / "tiny")))
    source = folder_of_images(work / "in", 48, seed)
    path = work / "out" / f"x{kind if kind.startswith('.') else {'manifest': '.jsonl', 'packed': '.safetensors'}[kind]}"
    path.parent.mkdir()
    items = plan.gather([str(source)], formats.SUFFIXES)
    failed = plan.Outcome(items[0], plan.FAILED, failure=FileError("x" * 700))
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 64, 64, 1), dtype=np.uint8)

    def write(i: int) -> None:
        if kind in latent.SUFFIXES:
            latent.save(path, some_latent(net, 64, float(i % 9)))
        elif kind == ".png":
            writing.save_image(path, pixels[i % 12])
        elif kind == ".gif":
            animation.save_frames(path, pixels, 10)
        elif kind == "manifest":
            with Manifest(path, {"number": i}) as log:
                for _ in range(2):
                    log.add([failed] * 16)
        else:
            for _ in packed.encode(items, path, encoding(net), batch_size=8, force=True):
                pass

    def forever() -> None:
        for i in range(10**9):
            write(i)

    def is_whole() -> bool:
        if kind == "manifest":
            data = path.read_bytes()
            return (
                data.endswith(b"\n")
                and all(json.loads(line) for line in data.splitlines())
                and bool(read_manifest(path))
            )
        if kind in latent.SUFFIXES or kind == "packed":
            return len(latent.load(path).xT) == (48 if kind == "packed" else 64)
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) == (12 if kind == ".gif" else 1) and image.load() is not None

    torn = there = struck = 0
    begin = time.perf_counter()
    write(0)
    longest = max(0.02, 3 * (time.perf_counter() - begin))
    path.unlink()
    for i in range(n):
        fork(forever, kill_after=rng.uniform(0, longest))
        try:
            right = not path.exists() or is_whole()
        except Exception as e:
            right = False
            print(f"{kind} {i}: {e}", file=sys.stderr)
        result.check(right, f"kill {i}")
        there += path.exists()
        struck += clean(path.parent) or (kind == "packed" and any(clean(p) for p in path.parent.glob(".*.parts")))
        if i % 4 == 3:
            path.unlink(missing_ok=True)
        if kind == "manifest":
            journal = journal_of(path)
            torn += journal.exists() and not journal.read_bytes().endswith(b"\n")
    left = [p.name for p in path.parent.iterdir() if p.name.startswith(".") and p.suffix not in (".parts", ".journal")]
    result.check(not left, f"temporary files stay: {left}")
    result.cases -= 1
    result.figure = f"file there after {there} of {n}; {struck} kills left a temporary file, so fell into a write"
    if kind == "manifest":
        result.figure += f"; the journal's last line unfinished {torn} times"
    return result


def kill_and_resume(n: int, count: int, seed: int, work: Path) -> Result:
    """kill −9 at a random moment of a run over a folder, then the same command again."""
    result = Result(f"kill −9 in a {count}-image run, then resume", "equal to the uninterrupted run, byte for byte")
    rng = random.Random(seed)
    tiny, source = tiny_model(work / "tiny"), folder_of_images(work / "in", count, seed)
    args = ["encode", source, "-m", tiny, "--steps", 2, "--batch-size", 16, "-q"]
    begin = time.perf_counter()
    whole = command(*args, "-o", work / "whole")
    took = time.perf_counter() - begin
    assert whole.code == 0, whole.err
    wanted = tree(work / "whole")
    assert len(wanted) == count
    found = []
    for i in range(n):
        out = work / f"out{i}"
        command(*args, "-o", out, kill_after=rng.uniform(0.1, 0.95) * took)
        if out.exists():
            found.append(len([p for p in tree(out) if p.endswith(".pt") and "/." not in p]))
        again = command(*args, "-o", out)
        result.check(again.code == 0 and tree(out) == wanted, f"run {i}: exit code {again.code} {again.err[-200:]}")
        shutil.rmtree(out)
    partly = [k for k in found if 0 < k < count]
    result.figure = (
        f"{len(partly)} of the kills left some of the files, {min(partly, default=0)} to {max(partly, default=0)}"
    )
    return result


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A tmpfs at `folder`, where the system allows it."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)


def disk_full(seed: int, work: Path) -> Result:
    """No room for the output: RLIMIT_FSIZE, and a tmpfs of a few pages."""
    result = Result("disk full (RLIMIT_FSIZE; a small tmpfs)", "exit 1, one line, no partial file, the old file intact")
    tiny, source = tiny_model(work / "tiny"), folder_of_images(work / "in", 32, seed)
    one = source / "0" / "00000.png"
    saved = command("encode", one, "-m", tiny, "--steps", 2, "-o", work / "a.pt")
    assert saved.code == 0, saved.err

    def jobs(folder: Path) -> Iterator[tuple[Path, tuple[object, ...]]]:
        encode = ("-m", tiny, "--steps", 2, "--force")
        for name in ("x.pt", "x.safetensors"):
            yield folder / name, ("encode", one, *encode, "-o", folder / name)
        yield folder / "packed.safetensors", ("encode", source, *encode, "-o", folder / "packed.safetensors")
        yield folder / "many" / "0" / "00000.pt", ("encode", source, *encode, "-o", folder / "many")
        yield folder / "x.png", ("decode", work / "a.pt", "--force", "-o", folder / "x.png")
        yield folder / "x.gif", ("interpolate", one, source / "1" / "00001.png", *encode, "-q", "-o", folder / "x.gif")

    def judge(target: Path, ended: Ended) -> None:
        errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        result.check(
            ended.code == 1 and len(errors) == 1 and not ended.faults() and target.read_bytes() == b"old",
            f"{target.name}: exit code {ended.code}: {ended.err[-300:]}",
        )
        left = [p.name for p in target.parent.iterdir() if p.name.endswith(".tmp")]
        result.check(not left, f"{target.name}: {left} stay")

    def limited(size: int) -> Callable[[], object]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    (work / "limited").mkdir()
    for target, args in jobs(work / "limited"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"old")
        judge(target, command(*args, before=limited(64)))
    with mounted(work / "small", "size=64k") as possible:
        for target, args in jobs(work / "small") if possible else ():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"old")
            filler = work / "small" / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as f:
                while True:
                    f.write(bytes(4096))
            judge(target, command(*args))
            filler.unlink()
            for rest in (work / "small").glob("**/.*.parts"):
                shutil.rmtree(rest)
    if not possible:
        result.figure = "no tmpfs could be mounted here: RLIMIT_FSIZE only"
    return result


def every_byte(seed: int, work: Path) -> Result:
    """Every byte of a latent changed in turn, every length cut off."""
    result = Result("every byte of a latent flipped, every length truncated, both formats", "0 silent")
    net = load(str(tiny_model(work / "tiny")))
    rng = random.Random(seed)
    harmless = detected = 0
    for suffix in latent.SUFFIXES:
        whole = some_latent(net)
        data = latent.to_bytes(whole, suffix)
        cases = [data[:i] for i in range(len(data))]
        for i in range(len(data)):
            for mask in (1 << rng.randrange(8), 0xFF):
                cases.append(data[:i] + bytes([data[i] ^ mask]) + data[i + 1 :])
        for case in cases:
            try:
                found = latent.from_bytes(case, "x")
            except FileError:
                detected += 1
                result.check(True, "")
            else:
                harmless += 1
                same = torch.equal(found.xT, whole.xT) and found.provenance == json.loads(json.dumps(whole.provenance))
                result.check(same, f"{suffix}: silent")
    result.figure = f"{detected} refused, {harmless} harmless (tensor and provenance proved equal)"
    return result


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """`data` with a few random faults: flips, extremes, cuts, repeats, splices."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            break
        i = rng.randrange(len(out))
        n = min(len(out) - i, rng.choice((1, 2, 4, 16, 200)))
        match rng.randrange(8):
            case 0:
                out[i] ^= 1 << rng.randrange(8)
            case 1:
                out[i : i + n] = bytes([rng.choice((0, 255, 127, 128))]) * n
            case 2:
                number = rng.choice((0, 1, -1, 2**31 - 1, -(2**31), 65535, 10**6))
                out[i : i + 4] = struct.pack(rng.choice("<>") + "i", number)
            case 3:
                del out[i : i + n]
            case 4:
                out[i:i] = out[i : i + n] * rng.choice((1, 3))
            case 5:
                out[i:i] = rng.randbytes(n)
            case 6:
                del out[i:]
            case 7:
                other = rng.choice(others)
                j = rng.randrange(max(1, len(other)))
                out[i : i + n] = other[j : j + n]
    return bytes(out)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks' checksums are right again, so that its faults get past them."""
    out, i = data[:8], 8
    while i + 12 <= len(data):
        n = int.from_bytes(data[i : i + 4], "big")
        if i + 12 + n > len(data):
            break
        out += data[i : i + 8 + n] + struct.pack(">I", zlib.crc32(data[i + 4 : i + 8 + n]))
        i += 12 + n
    return out + data[i:]


def guarded(cases: int, one: Callable[[int], str], result: Result) -> None:
    """Runs `one(i)` for every case in a fork, each under an alarm; what it returns is counted."""

    def work() -> None:
        outcomes: Counter[str] = Counter()
        longest = 0.0

        def ring(*_: object) -> None:
            raise TimeoutError(f"more than {HANG} s")

        for s in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(s, ring)
        for i in range(cases):
            begin = time.perf_counter()
            signal.setitimer(signal.ITIMER_PROF, HANG)
            signal.alarm(60 * HANG)
            try:
                outcomes[one(i)] += 1
            except DDIMError as e:
                outcomes[f"exit {e.exit_code}"] += 1
                if "\n" in str(e) or e.exit_code not in CODES:
                    print(json.dumps(["failure", i, repr(e)]))
            except BaseException:
                print(json.dumps(["failure", i, traceback.format_exc()[-700:]]))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            longest = max(longest, time.perf_counter() - begin)
        print(json.dumps(["end", dict(outcomes), longest]))

    ended = fork(work)
    lines = [json.loads(line) for line in ended.out.splitlines()]
    result.cases += cases
    result.failures += [f"case {i}: {what}" for kind, i, what in lines if kind == "failure"]
    if ended.code or not lines or lines[-1][0] != "end":
        result.failures.append(f"the process ended with {ended.code}: {ended.err[-500:]}")
        return
    said = ", ".join(f"{k} {v}" for k, v in sorted(lines[-1][1].items()))
    result.figure = f"{said}; longest {lines[-1][2]:.1f} s, peak {ended.peak:.0f} MiB"
    if ended.peak > MEMORY:
        result.failures.append(f"peak memory {ended.peak:.0f} MiB")


def base_images(seed: int) -> list[bytes]:
    """A small image in every format and mode that is opened, some with profiles and EXIF."""
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.arange(20) * 6, np.arange(24) * 5).astype(np.uint8)
    colour = np.dstack(
        [smooth, smooth.T[:20, :20].repeat(2, 1)[:, :24], rng.integers(0, 256, (20, 24), dtype=np.uint8)]
    )
    grey, rgb = Image.fromarray(smooth), Image.fromarray(colour)
    rgba = Image.merge("RGBA", [*rgb.split(), grey])
    exif = Image.Exif()
    exif[0x0112] = 6
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = Image.fromarray(smooth.astype(np.uint16) * 257)
    wanted: list[tuple[Image.Image, str, dict[str, object]]] = [
        (grey, "PNG", {}), (rgb, "PNG", {"exif": exif}), (rgba, "PNG", {}), (deep, "PNG", {}),
        (rgb.quantize(16), "PNG", {"transparency": 3}), (grey.convert("1"), "PNG", {}), (rgb, "PNG", {"icc_profile": icc}),
        (grey, "JPEG", {}), (rgb, "JPEG", {"exif": exif, "icc_profile": icc}), (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}), (rgb, "WEBP", {}), (rgba, "WEBP", {"lossless": True, "exif": exif}),
        (rgb.quantize(16), "GIF", {}), (rgb, "GIF", {"save_all": True, "append_images": [rgba]}), (rgb, "BMP", {}),
        (grey, "BMP", {}), (rgb, "TIFF", {}), (deep, "TIFF", {}), (rgba, "TIFF", {"compression": "tiff_deflate"}),
        (rgb.convert("CMYK"), "TIFF", {"compression": "tiff_lzw"}), (grey, "TIFF", {"compression": "jpeg"}),
        (Image.fromarray(smooth.astype(np.float32)), "TIFF", {}), (rgb, "PPM", {}), (grey, "PPM", {}), (deep, "PPM", {}),
        (rgb, "MPO", {"save_all": True, "append_images": [rgb]}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgba]}),
    ]  # fmt: skip
    out = []
    for picture, format_, how in wanted:
        buffer = io.BytesIO()
        picture.save(buffer, format_, **how)
        out.append(buffer.getvalue())
    return out


def mutated_images(n: int, seed: int, work: Path) -> Result:
    result = Result("mutated images", "0 tracebacks, 0 hangs over 10 s, exit codes from the table, below 2 GB")
    bases = base_images(seed)

    def one(i: int) -> str:
        rng = random.Random(seed * 10**9 + i)
        data = mutate(rng.choice(bases), bases, rng)
        if data[:4] == b"\x89PNG" and rng.random() < 0.8:
            data = with_checksums(data)
        frame = rng.choice((None, None, 0, 1))
        how = preprocessing.Preprocessing(rng.choice([*fitting.FITS]), "grey", frame, rng.choice((None, (0.0, 200.0))))
        pixels, record = reading.read(data, rng.choice((1, 3)), (8, 8), how=how)
        assert pixels.shape[:2] == (8, 8)
        json.dumps(record, allow_nan=False)
        preprocessing.describe(record)
        return "read"

    guarded(n, one, result)
    return result


def mutated_models(n: int, seed: int, work: Path) -> Result:
    """Latents, half of them with faults in their own terms and a right checksum, and checkpoints."""
    result = Result("mutated checkpoints and latents", "0 tracebacks, 0 hangs over 10 s, exit codes from the table")
    tiny = tiny_model(work / "tiny")
    net = load(str(tiny))
    whole = some_latent(net, 2)
    files = [latent.to_bytes(whole, s) for s in latent.SUFFIXES]
    parts = [p for p in tiny.rglob("*") if p.suffix in (".json", ".safetensors")]
    quiet = Console(quiet=True)

    def decode(found: Latent) -> str:
        info.about_latent(found)
        asked = OtherTiles()
        where = inputs.model_of(found, "x", asked, machine=options.Machine(device="cpu"), console=quiet, force=False)
        way = inputs.way_back(found, where, options.OtherHow())
        if way.steps < 50:
            ode.decode(where, found.xT[:1], way, inputs.condition_of(found, asked))
        return "decoded"

    def meaning(rng: random.Random) -> bytes:
        """A latent that says something wrong and is signed."""
        about = json.loads(json.dumps(whole.provenance))
        values = [
            None,
            0,
            -1,
            1e308,
            2**70,
            "",
            "\x1b[2J",
            "../../etc/passwd",
            "x" * 10**5,
            [],
            {},
            [[]],
            True,
            [1.0] * 10**4,
        ]
        where: object = about
        while isinstance(where, dict | list) and where:
            key = rng.choice([*where] if isinstance(where, dict) else range(len(where)))
            if rng.random() < 0.5 or not isinstance(where[key], dict | list):
                if rng.random() < 0.2:
                    del where[key]
                else:
                    where[key] = rng.choice(values)
                break
            where = where[key]
        text = json.dumps(about, sort_keys=True)
        shape = rng.choice([(2, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8), (2, 3, 8, 8), (0, 1, 8, 8), (128,), (2, 1, 8, 0)])
        dtype = rng.choice([torch.float32] * 6 + [torch.float64, torch.int64, torch.bfloat16])
        xT = torch.full(
            shape, rng.choice((0.5, 0.5, 0.5, math.nan, math.inf)) if dtype.is_floating_point else 1, dtype=dtype
        )
        if rng.random() < 0.1:
            xT = torch.zeros(1, dtype=dtype).expand(10**6, 1, 10**3, 10**3)
        signed = latent.digest(xT, text) if xT.dtype == torch.float32 and xT.numel() < 10**6 else "0" * 64
        content = {"format": latent.FORMAT, "version": "1", "provenance": text, "sha256": signed, "xT": xT}
        out = io.BytesIO()
        torch.save(content, out)
        return out.getvalue()

    def rezipped(rng: random.Random) -> bytes:
        """A latent with a fault inside its zip, whose checksums are right."""
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(files[0])) as z, zipfile.ZipFile(out, "w", rng.choice((0, 8))) as to:
            for m in z.infolist():
                content = z.read(m)
                if rng.random() < 0.4:
                    content = mutate(content, files, rng)
                to.writestr(m.filename, content)
        return out.getvalue()

    def one(i: int) -> str:
        rng = random.Random(seed * 10**9 + i)
        kind = i % 4
        if kind == 3:
            folder = work / "mutant"
            shutil.copytree(tiny, folder, dirs_exist_ok=True)
            part = rng.choice(parts)
            data = part.read_bytes()
            if part.suffix == ".json" and rng.random() < 0.5:
                config = json.loads(data)
                config[rng.choice([*config])] = rng.choice(
                    [None, 0, -1, 10**9, 1e308, "x", [], [0], [10**6] * 4, {}, True, ["DownBlock2D"] * 50, [8, 8]]
                )
                data = json.dumps(config).encode()
            else:
                data = mutate(data, files, rng)
            (folder / part.relative_to(tiny)).write_bytes(data)
            loaded = load(str(folder), "cpu")
            _ = loaded.digest
            if loaded.state_shape == net.state_shape:
                ode.decode(loaded, whole.xT[:1], Way(steps=1))
            return "loaded"
        data = (mutate(rng.choice(files), files, rng), meaning(rng), rezipped(rng))[kind]
        path = work / f"x{rng.choice(latent.SUFFIXES)}"
        path.write_bytes(data)
        return decode(latent.load(path))

    guarded(n, one, result)
    return result


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *args: object):
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.args


def hostile(seed: int, work: Path) -> Result:
    """Files that were made to do harm, each through the command that a user would open it with."""
    result = Result(
        "hostile files (code, bombs, absurd shapes, links, traversal)", "exit 3 (4 in a batch), one line, no code run"
    )
    tiny = tiny_model(work / "tiny")
    net = load(str(tiny))
    flag = work / "executed"
    whole = some_latent(net)
    text = {"format": latent.FORMAT, "version": "1", "provenance": json.dumps(whole.provenance)}
    torch.save({**text, "xT": Call(os.system, f"touch {flag}")}, work / "code.pt")
    torch.save(Call(os.system, f"touch {flag}"), work / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({**text, "sha256": "", "xT": torch.zeros(1).expand(10**5, 10**3, 10**3, 10)}, work / "absurd.pt")
    torch.save({**text, "sha256": "", "xT": torch.zeros(1, 1, 8, 8, dtype=torch.float64)}, work / "float64.pt")
    nan = torch.full((1, *net.state_shape), math.nan)
    torch.save({**text, "sha256": latent.digest(nan, text["provenance"]), "xT": nan}, work / "nan.pt")
    with zipfile.ZipFile(work / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x/data.pkl", bytes(1 << 28))
    header = json.dumps({"xT": {"dtype": "F32", "shape": [2**40, 1, 8, 8], "data_offsets": [0, 2**48]}}).encode()
    (work / "absurd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (work / "long.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with (work / "sparse.safetensors").open("wb") as f:
        f.truncate(3 << 30)
    for path in sorted(work.glob("*.pt")) + sorted(work.glob("*.safetensors")):
        for args in (("decode", path, "-o", work / "x.png"), ("info", path)):
            ended = command(*args)
            one_line = sum(line.startswith("error: ") for line in ended.err.splitlines()) == 1
            right = ended.code == 3 and one_line and not ended.faults() and ended.peak < MEMORY and not flag.exists()
            result.check(right, f"{path.name}: exit code {ended.code}, {ended.peak:.0f} MiB: {ended.err[-300:]}")
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"):
        folder = work / f"model{len(name)}"
        shutil.copytree(tiny, folder)
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        shutil.copy(work / ("code.pt" if name.endswith("bin") else "absurd.safetensors"), folder / name)
        ended = command("info", folder)
        result.check(
            ended.code == 3 and not ended.faults() and not flag.exists(), f"{name}: {ended.code} {ended.err[-300:]}"
        )
    source = folder_of_images(work / "in", 2, seed)
    out = work / "out"
    (out / "0").mkdir(parents=True)
    (out / "0" / "00000.pt").symlink_to(work / "victim")
    ended = command("encode", source, "-m", tiny, "--steps", 1, "-o", out, "--force")
    result.check(ended.code == 4 and not (work / "victim").exists(), f"link: {ended.code} {ended.err[-300:]}")
    latent.save(work / "lat" / "a.pt", whole) if (work / "lat").mkdir() is None else None
    (work / "dec").mkdir()
    (work / "dec" / "manifest.jsonl").write_text(json.dumps({"name": "../../etc/x", "sha256": [], "key": ""}) + "\n")
    ended = command("decode", work / "lat", "-o", work / "dec")
    result.check(ended.code == 3 and not ended.faults(), f"traversal: {ended.code} {ended.err[-300:]}")
    (work / "list.txt").write_text(f"{os.path.relpath(source)}/0/00000.png\n{work}/in/1/00001.png\n")
    ended = command("encode", "--from-file", work / "list.txt", "-m", tiny, "--steps", 1, "-o", work / "listed")
    inside = sorted(p.name for p in (work / "listed").iterdir())
    result.check(
        ended.code == 0 and inside == ["00000.pt", "00001.pt", "manifest.jsonl"], f"list: {ended.code} {inside}"
    )
    result.figure = "code executed: never"
    return result


def eight_writers(n: int, seed: int, work: Path) -> Result:
    """Eight processes write one target at the same time."""
    result = Result("eight writers to one target", "one valid winner")
    net = load(str(tiny_model(work / "tiny")))
    for i in range(n):
        suffix = latent.SUFFIXES[i % 2]
        path = work / f"x{suffix}"
        go = time.time() + 0.05
        pids = []
        for k in range(8):
            pid = os.fork()
            if pid == 0:
                try:
                    time.sleep(max(0.0, go - time.time()))
                    latent.save(path, some_latent(net, 16, float(k)))
                    os._exit(0)
                finally:
                    os._exit(1)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        values = latent.load(path).xT.unique().tolist()
        left = [p.name for p in work.iterdir() if p.name.endswith(".tmp")]
        result.check(codes == [0] * 8 and len(values) == 1 and not left, f"round {i}: {codes} {values} {left}")
    return result


def soak(n: int, seed: int, work: Path) -> Result:
    """One run over many images: memory after 500 and at the end."""
    result = Result(f"{n}-image soak", "memory grows by less than 5 % after the first 500")
    net = load(str(tiny_model(work / "tiny")))
    source = folder_of_images(work / "in", n, seed)

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def run() -> None:
        items = plan.gather([str(source)], formats.SUFFIXES)
        early, late, done = 0.0, 0.0, 0
        with Manifest(work / "manifest.jsonl", {}) as log:
            targets = local.Targets(work / "out", ".pt")
            for outcome in local.encode(items, targets, encoding(net, steps=1), batch_size=64, before={}):
                log.add([outcome])
                done += outcome.status == plan.DONE
                if done == 500:
                    early = resident()
                if done % 100 == 0:
                    late = max(late, resident()) if done > 500 else 0.0
        print(json.dumps([done, early, late]))

    ended = fork(run)
    if ended.code:
        result.check(False, ended.err[-500:])
        return result
    done, early, late = json.loads(ended.out)
    result.check(done == n and late < 1.05 * early, f"{done} done, {early:.1f} MiB, then {late:.1f} MiB")
    result.cases = n
    result.figure = f"{early:.1f} MiB after 500, at most {late:.1f} MiB later ({100 * (late / early - 1):+.1f} %)"
    return result


def streams(seed: int, work: Path) -> Result:
    """Outputs that nobody reads, or that cannot be written."""
    result = Result("broken pipe, closed stdout, read-only folder, --json piped", "no traceback, right exit code")
    tiny, source = tiny_model(work / "tiny"), folder_of_images(work / "in", 40, seed)
    one = source / "0" / "00000.png"
    encode = ("encode", source, "-m", tiny, "--steps", 1, "--force")

    def judge(name: str, ended: Ended, *codes: int) -> None:
        result.check(ended.code in codes and not ended.faults(), f"{name}: exit code {ended.code}: {ended.err[-300:]}")

    for i, args in enumerate(
        ((*encode, "-o", work / "a"), (*encode, "-o", work / "b", "--json"), ("--help",), ("info", tiny))
    ):
        reader, writer = os.pipe()
        os.close(reader)
        judge(f"broken pipe {i}", command(*args, out=writer), 1)
        os.close(writer)
        judge(f"closed stdout {i}", command(*args, before=lambda: os.close(1)), 0, 1)
    with Path("/dev/full").open("wb") as full:
        judge("full device", command("info", tiny, out=full.fileno()), 1)
    judge("no such folder", command("encode", one, "-m", tiny, "--steps", 1, "-o", work / "none" / "a.pt"), 2)
    with mounted(work / "readonly", "ro,size=64k") as possible:
        if possible:
            judge(
                "read-only file", command("encode", one, "-m", tiny, "--steps", 1, "-o", work / "readonly" / "a.pt"), 1
            )
            judge("read-only folder", command(*encode, "-o", work / "readonly" / "out"), 1)
            judge("read-only pack", command(*encode, "-o", work / "readonly" / "all.safetensors"), 1)
    ended = command(*encode, "-o", work / "c", "--json", "-q")
    judge("json", ended, 0)
    result.check(json.loads(ended.out)["encoded"] == 40 and ended.out.count("\n") == 1, f"json: {ended.out[:200]}")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = work / f"signal{number}"
        args = ("encode", source, "-m", tiny, "--steps", 2, "--batch-size", 2, "-o", out)

        def struck(number: int = number) -> None:
            save = outputs.save

            def saving(target: Path, value: Latent) -> None:
                save(target, value)
                os.kill(os.getpid(), number)

            outputs.save = saving  # in the fork alone

        judge(f"signal {number}", command(*args, before=struck), code)
        result.check(len(list(out.rglob("*.pt"))) == 1, f"signal {number}: it went on")
        left = [str(p) for p in out.rglob(".*")]
        result.check(not left, f"signal {number}: {left} stay")
    return result


LOSSES = {"actor": "one of two actors", "raylet": "one of two raylets", "driver": "the driver, then run again"}


def losing(what: str, n: int, seed: int, work: Path) -> Result:
    """A run on a Ray cluster of which something is killed −9, once a random number of latents is there: see `LOSSES`."""
    images = 80
    result = Result(
        f"{images} images on Ray, kill −9 of {LOSSES[what]}", "nothing lost, nothing twice, the bytes of a plain run"
    )
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    clusters = importlib.import_module("cluster")
    lose = {
        "actor": clusters.losing_a_worker,
        "raylet": clusters.losing_a_machine,
        "driver": clusters.losing_the_run,
    }[what]
    tiny, source = tiny_model(work / "tiny"), folder_of_images(work / "in", images, seed)
    args = ("encode", source, "-m", tiny, "--engine", "torch", "--steps", 60, "--batch-size", 4)
    plain = command(*args, "-o", work / "plain")
    assert plain.code == 0, plain.err
    rng = random.Random(seed)
    after = [rng.randrange(1, images // 2) for _ in range(n)]
    with clusters.up(work, 2) as two:
        on = ("--on", f"ray={two.address}", "--workers", 3 if what == "raylet" else 2, "--worker-cpus", 1)
        for i, made in enumerate(after):
            into = work / f"rayed{i}"
            found = lose(two, (*args, "-o", into.name, *on), into, made)
            wrong = clusters.difference(found, into, work / "plain")
            result.check(not wrong, f"run {i}, killed after {made}: {wrong}")
            shutil.rmtree(into, ignore_errors=True)
    result.figure = f"killed once {', '.join(map(str, sorted(after)))} latents were there"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the full counts")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", default="", help="checks whose name contains this")
    parser.add_argument("--keep", type=Path, help="a JSON file of results; what is in it is not run again")
    parser.add_argument("-o", "--output", type=Path, help="where the table goes; without it, to standard output only")
    args = parser.parse_args()

    def count(n: int) -> int:
        return max(1, round(n * args.scale))

    kinds = (".pt", ".safetensors", ".png", ".gif", "manifest", "packed")
    checks: dict[str, Callable[[Path], Result]] = {
        **{f"kill {k}": lambda w, k=k: kill_while_writing(k, count(200), args.seed, w) for k in kinds},
        "resume": lambda w: kill_and_resume(count(20), 200, args.seed, w),
        "disk": lambda w: disk_full(args.seed, w),
        "bytes": lambda w: every_byte(args.seed, w),
        "images": lambda w: mutated_images(count(10_000), args.seed, w),
        "models": lambda w: mutated_models(count(2_000), args.seed, w),
        "hostile": lambda w: hostile(args.seed, w),
        "writers": lambda w: eight_writers(count(50), args.seed, w),
        "soak": lambda w: soak(max(1_000, count(10_000)), args.seed, w),
        "streams": lambda w: streams(args.seed, w),
        **{f"ray {k}": lambda w, k=k: losing(k, count(10), args.seed, w) for k in LOSSES},
    }
    torch.set_num_threads(1)
    kept = json.loads(args.keep.read_text()) if args.keep and args.keep.exists() else {}
    results = []
    for name, check in checks.items():
        if name in kept:
            results.append(Result(**kept[name]))
        elif args.only in name:
            begin = time.perf_counter()
            with tempfile.TemporaryDirectory() as work:
                result = check(Path(work))
            results.append(result)
            if args.keep and not result.failures:
                kept = json.loads(args.keep.read_text()) if args.keep.exists() else {}
                args.keep.write_text(json.dumps({**kept, name: asdict(result)}))
            print(
                f"{name}: {result.cases} cases, {len(result.failures)} failures, {time.perf_counter() - begin:.0f} s",
                flush=True,
            )
            for failure in result.failures[:10]:
                print(f"    {failure}", flush=True)
    if args.output is not None:
        args.output.write_text(report(results, args.seed), encoding="utf-8")
    sys.exit(any(r.failures for r in results))


def report(results: list[Result], seed: int) -> str:
    """RELIABILITY.md."""
    rows = [f"| {r.test} | {r.must} | {r.cases:,} | {len(r.failures)} | {r.figure} |" for r in results]
    versions = f"ddimctl {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    return "\n".join(
        [
            "# Reliability",
            "",
            "What happens when processes are killed, disks are full, and files are damaged or hostile. `make reliability`",
            "runs this again and rewrites this page; a smaller version is part of the tests (`tests/test_reliability.py`).",
            "",
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, seed {seed}, {versions}, {platform.system()}.",
            "",
            "| test | must hold | cases | failures | measured |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Golden pixels (modes × formats, EXIF 1 to 8, profiles) are exact tests: `tests/test_images.py`.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
