"""What lies between two to four images or latents: along a path, or inside four corners.

A tab keeps one of these. The browser asks it for the picture at the place where the slider is, and while the hand rests for
those at evenly spaced places, the far apart first, so that soon there is one near wherever the hand goes.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddimctl import arithmetic, latent, origin
from ddimctl.arrays import float32
from ddimctl.dither import Dither
from ddimctl.errors import UsageError
from ddimctl.images import animation, sheets, writing
from ddimctl.interpolate import between, slerp, within
from ddimctl.model import Condition
from ddimctl.ode import Solution
from ddimctl.page.work import Stop, Stopped, Studio
from ddimctl.recipe import Recipe, Way
from ddimctl.report.html import safe
from ddimctl.runs.work import under

Place = tuple[int, int]  # across and down
FINE = 128  # places from each latent to the next
SIDE = 32  # places along each side of four corners
STEP = 4  # every so manieth place is decoded before it is asked for
AHEAD = 4  # at a time
FPS = 15.0
SEEN = 224  # pixels that pictures in files are enlarged to
IN_STRIP = 9
JSON, PNG = "application/json", "image/png"
FILES = {
    "film.gif": "image/gif", "film.mp4": "video/mp4", "sheet.png": PNG, "latents.pt": "application/octet-stream",
}  # fmt: skip


class Between:
    """What lies between terms, each under its condition, and the pictures of it that are decoded already."""

    def __init__(self, studio: Studio, terms: Sequence[arithmetic.Term], *, way: Way, conditions: Sequence[Condition]):
        self.studio, self.terms, self.way = studio, terms, way
        self.keys = [x for t in terms for x in t.latent.xT]
        self.asked = [c for t, c in zip(terms, conditions, strict=True) for _ in t.latent.xT]
        if not 2 <= len(self.keys) <= 4:
            raise UsageError(f"two to four images or latents, not {len(self.keys)}", hint="drop all of them at once")
        arithmetic.check_alike(terms)
        for condition in self.asked[1:]:
            self.asked[0].toward(condition, 0.5)  # refused now, rather than where the hand comes to
        self.dithers = [d for t in terms for d in (t.latent.dithers or [None] * len(t.latent.xT))]
        self.names = [
            t.name if len(t.latent.xT) == 1 else f"{t.name} [{i}]" for t in terms for i in range(len(t.latent.xT))
        ]
        corners = len(self.keys) == 4
        self.across, self.down = (SIDE, SIDE) if corners else (FINE * (len(self.keys) - 1), 0)
        self.pixels: dict[Place, Any] = {}
        self._hands = 0
        self._ahead = Stop()

    @property
    def coarse(self) -> list[Place]:
        """The places that are decoded ahead, row by row."""
        return [(i, j) for j in range(0, self.down + 1, STEP) for i in range(0, self.across + 1, STEP)]

    def latents(self, places: Sequence[Place]) -> Any:
        """x_T (N, C, H, W) at places."""
        import torch

        return torch.stack(self._between(self.keys, places, slerp))

    def conditions(self, places: Sequence[Place]) -> list[Condition]:
        """What each place is decoded under: a blend, where the keys' prompts differ."""
        return self._between(self.asked, places, Condition.toward)

    def _between(self, of: Sequence[Any], places: Sequence[Place], interpolant: Any) -> list[Any]:
        if self.down:
            return [within(of, i / self.across, j / self.down, interpolant=interpolant) for i, j in places]
        legs = len(of) - 1
        on_legs = [(min(i // FINE, legs - 1), i / FINE - min(i // FINE, legs - 1)) for i, _ in places]
        return between(of, on_legs, interpolant=interpolant)

    def dither(self, place: Place) -> Dither | None:
        """What was added to the image that is at a place, if one is."""
        if self.down:
            corner = {(0, 0): 0, (SIDE, 0): 1, (0, SIDE): 2, (SIDE, SIDE): 3}.get(place)
            return None if corner is None else self.dithers[corner]
        return self.dithers[place[0] // FINE] if place[0] % FINE == 0 else None

    def decode(self, places: Sequence[Place], stop: Stop) -> None:
        """Decodes what is not decoded yet. Whoever calls holds the studio's turn."""
        missing = [p for p in places if p not in self.pixels]
        for start in range(0, len(missing), self.studio.batch_size):
            some = missing[start : start + self.studio.batch_size]
            for condition, rows in under(self.conditions(some)).items():
                mine = [some[row] for row in rows]
                found = self.studio.decode(
                    self.latents(mine), self.way, of=self.terms[0].latent.recipe,
                    condition=condition, stop=stop, dithers=map(self.dither, mine),
                )  # fmt: skip
                self.pixels |= dict(zip(mine, found, strict=True))

    def file(self, name: str) -> tuple[bytes, str]:
        """A picture ("12.0.png"), a latent ("12.0.pt"), what is decoded ahead ("ahead"), or one of `FILES`.

        Raises `UsageError` for any other, `Stopped` where what is decoded ahead has to wait.
        """
        if name == "ahead":
            return self.ahead(), JSON
        if name in FILES:
            return (self.film(Path(name).suffix) if name.startswith("film") else self.whole(name)), FILES[name]
        across, _, rest = name.partition(".")
        down, _, kind = rest.partition(".")
        if not (across.isdecimal() and down.isdecimal() and kind in ("png", "pt")):
            raise UsageError(f"there is no {name}")
        place = int(across), int(down)
        if place[0] > self.across or place[1] > self.down:
            raise UsageError(f"there is no place {across}, {down}")
        if kind == "pt":
            return self.latent_file([place]), FILES["latents.pt"]
        return self.at(place), PNG

    def at(self, place: Place) -> bytes:
        """The picture at a place, before anything else."""
        self._hands += 1
        self._ahead.now()
        try:
            with self.studio.turn:
                self.decode([place], Stop())
                pixels = self.pixels[place] if self.is_coarse(place) else self.pixels.pop(place)
        finally:
            self._hands -= 1
        return writing.to_bytes(pixels, ".png")

    def is_coarse(self, place: Place) -> bool:
        return place[0] % STEP == 0 and place[1] % STEP == 0

    def ahead(self) -> bytes:
        """The next pictures in the order of `first`, as JSON: what each place looks like; none if all are there."""
        stop = self._ahead = Stop()
        with self.studio.turn:
            if self._hands:
                raise Stopped
            places = [p for p in sorted(self.coarse, key=first) if p not in self.pixels][:AHEAD]
            self.decode(places, stop)
        told = {f"{i}.{j}": base64.b64encode(writing.to_bytes(self.pixels[i, j], ".png")).decode() for i, j in places}
        return json.dumps(told).encode()

    def all_of(self, places: Sequence[Place]) -> np.ndarray:
        """The pictures at places (N, H, W, C), enlarged to be seen."""
        with self.studio.turn:
            self.decode(places, Stop())
        pixels = np.stack([self.pixels[p] for p in places])
        return sheets.enlarge(pixels, sheets.factor_to_see(pixels.shape[1:3], SEEN))

    def film(self, suffix: str) -> bytes:
        """The path as a film; of four corners, around them. Raises `UsageError` where films need more than is here."""
        animation.check_target(Path(f"film{suffix}"))
        edge = range(0, SIDE, STEP)
        around = [(i, 0) for i in edge] + [(SIDE, j) for j in edge]
        around += [(SIDE - i, SIDE) for i in edge] + [(0, SIDE - j) for j in edge]
        frames = self.all_of(around if self.down else self.coarse)
        with tempfile.TemporaryDirectory(prefix="ddimctl-") as folder:
            target = Path(folder) / f"film{suffix}"
            animation.save_frames(target, frames, FPS, made=self.made(len(frames)))
            return target.read_bytes()

    def whole(self, name: str) -> bytes:
        """All latents, or a sheet of pictures: a strip, or the grid."""
        if name == "latents.pt":
            return self.latent_file(self.coarse)
        places = self.coarse if self.down else self.coarse[:: max(1, (len(self.coarse) - 1) // (IN_STRIP - 1))]
        columns = self.across // STEP + 1 if self.down else len(places)
        sheet = sheets.sheet(self.all_of(places), columns)
        return writing.to_bytes(sheet, ".png", made=self.made(len(places)))

    def latent_file(self, places: Sequence[Place]) -> bytes:
        """The latents at places as a file, which says between what they lie and decodes to what is seen there.

        Raises `UsageError` where they are not all under one condition.
        """
        (condition, *others) = dict.fromkeys(self.conditions(places))
        if others:
            raise UsageError(
                "a file of latents has one prompt for all", hint="download the latent of each place by itself"
            )
        model = self.studio.model
        records = [{"name": f"{self.said(p)} between {', '.join(self.names)}"} for p in places]
        solution = Solution(self.latents(places), [0] * len(places))
        about = latent.provenance(model, Recipe.of(model, self.way, condition), solution, records=records)
        about["made"] = {"operation": "interpolate", "parents": [t.record() for t in self.terms], "difference": False}
        return latent.to_bytes(latent.Latent(float32(solution.x), about), ".pt")

    def made(self, frames: int) -> dict[str, Any]:
        parents = [origin.parent(t.name, t.sha256) for t in self.terms]
        condition, more = origin.under(self.asked)
        more |= {"frames": frames, "interpolant": "slerp"}
        return origin.of("ui", self.studio.model, self.way, condition, parents=parents, more=more)

    def said(self, place: Place) -> str:
        """Where a place is, in words."""
        across = f"{place[0] / self.across:.0%}"
        return f"{across} across, {place[1] / self.down:.0%} down" if self.down else across

    def html(self, key: str) -> str:
        """What `viewer.js` makes a viewer of."""
        ranges = [("From left to right" if self.down else f"From {self.names[0]} to {self.names[-1]}", self.across)]
        ranges += [("From top to bottom", self.down)] if self.down else []
        sliders = "".join(
            f'<label>{safe(label)}<input type="range" min="0" max="{most}" value="0"></label>' for label, most in ranges
        )
        corners = [(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)]
        pad = "".join(
            f'<img class="pixels" data-place="{i}.{j}" alt="{safe(name)}">'
            for (i, j), name in zip(corners, self.names, strict=False)
        )
        pad = (
            f'<div class="pad" title="Drag: the picture follows">{pad}<span class="dot"></span></div>'
            if self.down
            else ""
        )
        loads = {
            "film.gif": "Film (.gif)", "film.mp4": "Film (.mp4)",
            "sheet.png": "Grid (.png)" if self.down else "Strip (.png)", "latents.pt": "All latents (.pt)",
            "PLACE.png": "This picture (.png)", "PLACE.pt": "This latent (.pt)",
        }  # fmt: skip
        buttons = "".join(f'<button type="button" data-load="{n}">{said}</button>' for n, said in loads.items())
        return (
            f'<div class="between" data-kept="{key}" data-step="{STEP}"><div class="look">{pad}'
            f'<img class="pixels now" alt="what lies between {safe(", ".join(self.names))}"></div>{sliders}'
            f'<p class="told" role="status"></p><div class="loads" role="group" aria-label="Download">{buttons}</div></div>'
        )


def first(place: Place) -> tuple[int, Place]:
    """The order in which places are decoded ahead: those that most powers of 2 divide come first."""
    together = place[0] | place[1]
    return -(together & -together or 1 << 30), place
