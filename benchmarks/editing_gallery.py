"""The gallery of editing: what a model with text makes of held-out images under other captions. Pictures and tables.

    python benchmarks/editing_gallery.py MODEL             # writes docs/editing-*.png and the tables of docs/editing.md
    python benchmarks/editing_gallery.py MODEL -o FOLDER   # pictures and tables.md there, and the page is left alone

Edits are encoded under the caption of the image at guidance 1 and decoded under another, S = 20, with `ab2` and with the
path kept. The *changed part* of an edit is where the two captions' ε differ (as DiffEdit has it, Couairon et al. 2023):
|ε(a) − ε(b)|, summed over channels, mean over noises at σ = 1, enlarged to the image, above its mean over the picture. It is
known before any edit is made, and the same for all ways and guidances: none of them has a say in what it is judged by.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from guidance import held_out
from pages import put, table
from text_model import SEEN, errors, images_of, noise_levels
from torch import Tensor
from torch.nn.functional import interpolate as resize

import ddimctl
from ddimctl import ode
from ddimctl.files import make_folder, write_bytes
from ddimctl.images import labels, levels, sheets, writing
from ddimctl.interpolate import INTERPOLANTS, along
from ddimctl.keeping import Keep
from ddimctl.model import Condition, Model
from ddimctl.network import Embedded
from ddimctl.recipe import Way
from ddimctl.seeds import noise

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "editing.md"
SWAPS = (  # from, to, and what is preferred
    ("red", "blue", "heart"), ("grey", "red", "heart"), ("face", "cat face", "yellow"), ("woman", "man", ""),
    ("twemoji", "noto", "person"),
)  # fmt: skip
WAYS = (("`ab2`", Way()), ("`ab2`, path kept", Way(keep=Keep())))
GAP = 2


@dataclass(frozen=True)
class Size:
    """How much is shown."""

    guidances: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0)
    each: int = 2  # images of a swap that are shown
    measured: int = 4  # that are measured, at most
    steps: int = 20
    noises: int = 16
    frames: int = 9
    pairs: int = 3
    prompts: int = 10
    xTs: int = 4


@dataclass(frozen=True)
class Edit:
    """An image that becomes something else."""

    name: str
    source: str
    target: str
    swap: str


@dataclass(frozen=True)
class Gallery:
    """The model, its held-out images with captions, and where pictures go."""

    model: Model
    images: dict[str, Tensor]
    captions: dict[str, str]
    folder: Path
    size: Size

    def draw(self, name: str, rows: Sequence[Tensor], *, above: Sequence[str], left: Sequence[str]) -> None:
        """Writes rows of images (N, C, H, W) with words around them."""
        pixels = sheets.enlarge(levels.to_pixels(torch.cat(list(rows))), sheets.factor_to_see(self.model.size, SEEN))
        made = sheets.sheet(pixels, len(rows[0]), GAP)
        words = labels.Labels(above=list(above), left=list(left))
        writing.save_image(self.folder / name, labels.around(made, pixels.shape[1:3], GAP, labels=words))

    def way(self, way: Way) -> Way:
        return replace(way, steps=self.size.steps)


def edits(captions: dict[str, str], swaps: Sequence[tuple[str, str, str]], most: int) -> list[Edit]:
    """For every swap the images whose caption has the word and not yet the other: those with the preferred word first."""
    out = []
    for word, other, preferred in swaps:
        whole, new = re.compile(rf"\b{re.escape(word)}\b"), set(other.split()) - {word}
        able = [(k, c) for k, c in captions.items() if whole.search(c) and not new & set(c.split())]
        able.sort(key=lambda pair: not (preferred and preferred in pair[1].split()))
        out += [Edit(k, c, whole.sub(other, c, count=1), f"{word} → {other}") for k, c in able[:most]]
    return out


def changed_part(model: Model, z: Tensor, edit: Edit, *, noises: int) -> Tensor:
    """Which pixels (H, W) the two captions disagree about."""
    eps = [model.eps(Condition(prompt=p)) for p in (edit.source, edit.target)]
    x = z + noise(z.shape[1:], noises, seed=0).double()
    a, b = (torch.as_tensor(e(x, 1.0)) for e in eps)
    apart = (a - b).abs().sum(1, keepdim=True).mean(0, keepdim=True)
    large = resize(apart, size=model.size, mode="bilinear", align_corners=False)[0, 0]
    return large > large.mean()


def rms(x: Tensor, where: Tensor) -> float:
    """Of the pixels of a difference (C, H, W) of images in [−1, 1], on a scale from 0 to 1."""
    return float((x / 2)[:, where].square().mean().sqrt()) if where.any() else 0.0


def measured(
    g: Gallery, edit: Edit, own: Tensor, *, image: Tensor, part: Tensor, at: Sequence[float]
) -> tuple[float, ...]:
    """(distance outside the changed part, inside it, by how much the new caption fits better than the old)."""
    z = torch.as_tensor(g.model.autoencoder.encode(image)).double()
    old, new = errors(g.model, z, [edit.source, edit.target], at=at, noises=2)[0].tolist()
    return rms((image - own)[0], ~part), rms((image - own)[0], part), (old - new) / (old + new)


def draw_edits(g: Gallery) -> str:
    """The picture of edits, and the table of what stays and what changes."""
    model, size = g.model, g.size
    found = edits(g.captions, SWAPS, size.measured)
    at = noise_levels(model, 4)
    values: dict[tuple[str, str, str], list[tuple[float, ...]]] = {}
    rows, left, shares, shown = [], [], [], dict.fromkeys((e.swap for e in found), 0)
    for e in found:
        x = g.images[e.name]
        z = torch.as_tensor(model.autoencoder.encode(x)).double()
        part = changed_part(model, z, e, noises=size.noises)
        shares.append(float(part.double().mean()))
        own = torch.as_tensor(model.autoencoder.decode(z)).clamp(-1, 1)
        values.setdefault((e.swap, "not edited", ""), []).append(measured(g, e, own, image=own, part=part, at=at))
        is_shown = shown[e.swap] < size.each
        shown[e.swap] += 1
        for name, way in WAYS:
            up = ode.encode(model, x, g.way(way), Condition(prompt=e.source))
            row = [x, own]
            for guidance in size.guidances:
                asked = Condition(prompt=e.target, guidance=guidance)
                y = torch.as_tensor(
                    ode.decode(model, up.x.float(), g.way(way), asked, corrections=up.corrections).x
                ).clamp(-1, 1)
                row.append(y)
                values.setdefault((e.swap, name, f"{guidance:g}"), []).append(
                    measured(g, e, own, image=y, part=part, at=at)
                )
            if is_shown:
                rows.append(torch.cat(row))
                left.append(f"{e.source} to {e.target}" if name == WAYS[0][0] else "the same, path kept")
    if not found:
        return "None of its held-out images has a caption that can be swapped."
    g.draw(
        "editing-edits.png", rows, left=left, above=["held out", "autoencoder", *(f"g = {x:g}" for x in size.guidances)]
    )
    body = []
    for (swap, name, guidance), each in values.items():
        outside, inside = (sum(v[i] for v in each) / len(each) for i in range(2))
        fits = sum(v[2] > 0 for v in each)
        body.append([swap, name, guidance, f"{outside:.3f}", f"{inside:.3f}", f"{fits} of {len(each)}"])
    header = ["edit", "way", "guidance", "outside", "inside", "fits the new caption better"]
    return (
        f"{len(found)} edits of held-out images; the changed part takes {min(shares):.0%} to {max(shares):.0%} of each."
        " *Outside* and *inside* it: root mean square difference from what the autoencoder alone makes of the image,"
        " pixels in 0 … 1, mean over the images. *Fits better*: its noise is predicted better under the new caption than"
        " under the old one, at four levels.\n\n" + table(header, body)
    )


def blends(model: Model, a: str, b: str, how: str) -> Callable[[float], Embedded]:
    """What lies between two prompts' embeddings: a straight line (lerp), or a great circle for each token (slerp)."""
    ends = [model.embed(Condition(prompt=p)) for p in (a, b)]
    mixed = INTERPOLANTS[how]

    def at(w: float) -> Embedded:
        out: dict[str, Any] = {}
        for k, u in ends[0].items():
            flat = zip(u.flatten(0, -2), ends[1][k].flatten(0, -2), strict=True)
            out[k] = torch.stack([mixed(p, q, w) for p, q in flat]).reshape(u.shape)
        return out

    return at


def told(embedded: Embedded, condition: Condition) -> Embedded:
    """That, whatever is asked for."""
    return embedded


def draw_between(g: Gallery) -> str:
    """Slerp of x_T between two images with two prompts, the embeddings mixed in both ways; and what each comes to."""
    model, size, way = g.model, g.size, g.way(Way())
    names = list(g.images)
    half, n = len(names) // 2, min(size.pairs, len(names) // 2)
    pairs = [(names[i * half // n], names[half + i * half // n]) for i in range(n)]
    rows, left = [], []
    found: dict[str, list[tuple[float, float]]] = {"lerp": [], "slerp": []}
    between = []
    for a, b in pairs:
        asked = [Condition(prompt=g.captions[n]) for n in (a, b)]
        ends = [ode.encode(model, g.images[n], way, c).x[0].float() for n, c in zip((a, b), asked, strict=True)]
        places = [(0, i / (size.frames - 1)) for i in range(size.frames)]
        xT, strips = along(ends, places), {}
        for how in found:
            embedded = blends(model, g.captions[a], g.captions[b], how)
            frames = []
            for (_, w), x in zip(places, xT, strict=True):
                listening = replace(model, embed=partial(told, embedded(w)))
                frames.append(torch.as_tensor(ode.decode(listening, x[None], way).x).clamp(-1, 1))
            strips[how] = torch.cat(frames)
            steps = ((strips[how][1:] - strips[how][:-1]) / 2).flatten(1).square().mean(1).sqrt()
            found[how].append((float(steps.sum()), float(steps.max() / steps.mean())))
        between.append(float(((strips["lerp"] - strips["slerp"]) / 2).square().mean().sqrt()))
        rows += list(strips.values())
        left += [f"{g.captions[a]} to {g.captions[b]}", "embeddings by slerp"]
    above = [f"{i / (size.frames - 1):.2g}" for i in range(size.frames)]
    g.draw("editing-between.png", rows, above=above, left=left)
    body = [
        [f"`{how}`", *(f"{sum(v[i] for v in values) / len(values):.3f}" for i in range(2))]
        for how, values in found.items()
    ]
    return (
        f"{len(pairs)} pairs of held-out images, {size.frames} frames, x_T by slerp, guidance 1. *Way*: the sum of the root"
        " mean square differences of neighbouring frames, pixels in 0 … 1; *unevenness*: the largest of them over their"
        f" mean. The frames of the two ways to mix the embeddings are {sum(between) / len(between):.4f} apart, root mean"
        " square.\n\n" + table(["embeddings", "way", "unevenness"], body)
    )


def draw_prompts(g: Gallery) -> str:
    """The same x_T under ten prompts: pictures, and how near those of one x_T and those of one prompt are to each other."""
    model, size, way = g.model, g.size, g.way(Way())
    prompts = list(dict.fromkeys(g.captions.values()))
    prompts = [prompts[i * len(prompts) // size.prompts] for i in range(min(size.prompts, len(prompts)))]
    xT = noise(model.state_shape, size.xTs, seed=1)
    by_prompt = [torch.as_tensor(ode.decode(model, xT, way, Condition(prompt=p, guidance=3.0)).x) for p in prompts]
    images = torch.stack(by_prompt, 1).clamp(-1, 1)  # (x_T, prompt, C, H, W)
    g.draw("editing-prompts.png", list(images), above=prompts, left=[f"x_T {i}" for i in range(size.xTs)])

    def apart(pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
        each = [float(((a - b) / 2).square().mean().sqrt()) for a, b in pairs]
        return sum(each) / max(len(each), 1)

    n, m = images.shape[:2]
    one_xT = apart((images[i, j], images[i, k]) for i in range(n) for j in range(m) for k in range(j))
    one_prompt = apart((images[i, j], images[k, j]) for j in range(m) for i in range(n) for k in range(i))
    places = [(i, j) for i in range(n) for j in range(m)]
    neither = apart((images[p], images[q]) for p in places for q in places if p[0] < q[0] and p[1] != q[1])
    rows = [["the same x_T, other prompts", f"{one_xT:.3f}"], ["the same prompt, other x_T", f"{one_prompt:.3f}"],
            ["neither", f"{neither:.3f}"]]  # fmt: skip
    return (
        f"{n} x_T of noise under {m} captions at guidance 3; root mean square distances between the images, pixels in"
        " 0 … 1:\n\n" + table(["what two images share", "distance"], rows)
    )


def made(model: Model, folder: Path, size: Size) -> str:
    """Writes the pictures; what the page says."""
    pairs = held_out(model, 1 << 20)
    x = images_of(model, [f for f, _ in pairs])
    names = [f.stem for f, _ in pairs]
    images, captions = (
        dict(zip(names, x.split(1), strict=True)),
        {n: text for n, (_, text) in zip(names, pairs, strict=True)},
    )
    g = Gallery(model, images, captions, folder, size)
    parts = [f"Model {model.name} (digest {model.digest[:12]}…), S = {size.steps}, `ab2`, `karras`."]
    for title, name, draw in (
        ("Another caption", "editing-edits.png", draw_edits),
        ("From one image and prompt to another", "editing-between.png", draw_between),
        ("The same x_T under ten prompts", "editing-prompts.png", draw_prompts),
    ):
        said = draw(g)
        shown = [f"![{title}]({name})"] if (folder / name).is_file() else []
        parts += [f"### {title}", *shown, said]
        print(title, said, sep="\n\n", flush=True)
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None, size: Size = Size()) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model")
    asked.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="instead of docs/")
    args = asked.parse_args(arguments)
    model = ddimctl.load(args.model)
    if args.output is not None:
        make_folder(args.output)
    body = made(model, args.output or PAGE.parent, size)
    if args.output is None:
        put(PAGE, __file__, body)
    else:
        write_bytes(args.output / "tables.md", (body + "\n").encode())


if __name__ == "__main__":
    main()
