"""``ddimctl ui``: who may ask, and what it asks of the library. What needs gradio and a browser: test_page_browser.py."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image

from ddimctl import latent, ode, roundtrip
from ddimctl.cli import ui
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.families import load
from ddimctl.images import animation, levels, reading, writing
from ddimctl.interpolate import grid, keyframes
from ddimctl.keeping import Keep
from ddimctl.model import NOTHING, Condition
from ddimctl.page import guard
from ddimctl.page.between import FILES, FINE, SIDE, STEP, Between
from ddimctl.page.shelf import Shelf
from ddimctl.page.sums import OPERATIONS, Asked, Made, Sums
from ddimctl.page.work import CURVE, Stop, Stopped, Studio, said
from ddimctl.recipe import Way
from ddimctl.sampling import Noising
from ddimctl.translation import Side, translate

Invoke = Callable[..., Result]
ROOT = Path(__file__).parent.parent
GOOD = {"host": "127.0.0.1:7860"}


# Who may ask


def ask(headers: dict[str, str], body: list[bytes] = [b""], kind: str = "http") -> list[dict[str, Any]]:  # noqa: B006
    """What the guard sends for a request, whose body comes in these pieces."""
    sent: list[dict[str, Any]] = []
    left = [{"type": "http.request", "body": b, "more_body": i < len(body) - 1} for i, b in enumerate(body)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        while (await receive()).get("more_body"):
            pass
        own = [(b"content-type", b"text/html"), (b"content-security-policy", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": own})
        await send({"type": "http.response.body", "body": b"page"})

    async def receive() -> Any:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    asyncio.run(guard.guarded(app, 7860)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (GOOD, 200),
        ({"host": "localhost:7860"}, 200),
        ({**GOOD, "origin": "http://127.0.0.1:7860"}, 200),
        ({**GOOD, "sec-fetch-site": "same-origin"}, 200),
        ({"host": "evil.example"}, 400),
        ({"host": "127.0.0.1:7861"}, 400),
        ({"host": "127.0.0.1.evil.example:7860"}, 400),
        ({}, 400),
        ({**GOOD, "origin": "http://evil.example"}, 403),
        ({**GOOD, "origin": "null"}, 403),
        ({**GOOD, "origin": "https://127.0.0.1:7860"}, 403),
        ({**GOOD, "sec-fetch-site": "cross-site"}, 403),
        ({**GOOD, "content-length": str(20 << 20)}, 413),
        ({**GOOD, "content-length": "-1"}, 413),
    ],
)
def test_foreign_requests_are_refused(headers: dict[str, str], status: int) -> None:
    start, body = ask(headers)
    assert start["status"] == status
    assert (body["body"] == b"page") == (status == 200)


def test_what_tells_no_length_is_counted() -> None:
    assert ask(GOOD, [b"x" * (1 << 20)] * 15)[0]["status"] == 200
    assert ask(GOOD, [b"x" * (1 << 20)] * 20)[0]["status"] == 413


def test_a_policy_goes_with_every_answer() -> None:
    headers = ask(GOOD)[0]["headers"]
    policies = [v.decode() for k, v in headers if k == b"content-security-policy"]
    assert policies == [guard.POLICY]
    assert "http" not in guard.POLICY


def test_sockets_are_refused_too() -> None:
    assert ask(GOOD, kind="websocket") == [{"type": "websocket.accept"}]
    assert ask({**GOOD, "origin": "http://evil.example"}, kind="websocket") == [
        {"type": "websocket.close", "code": 1008}
    ]


# What it asks of the library


@pytest.fixture
def studio(model_folder: Path) -> Studio:
    return Studio(load(str(model_folder), "cpu"))


@pytest.fixture
def images(model_folder: Path) -> list[str]:
    return [str(model_folder / "held-out" / f"00{i}.png") for i in range(4)]


WAY = Way(steps=3)


def between(studio: Studio, paths: list[str], way: Way = WAY) -> Between:
    terms = [studio.term(p, way, condition=NOTHING, stop=Stop(), dither=True) for p in paths]
    return Between(studio, terms, way=way, conditions=[NOTHING] * len(terms))


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_a_round_trip_is_the_librarys(studio: Studio, images: list[str]) -> None:
    told: list[tuple[int, int]] = []
    stop = Stop(lambda done, total: told.append((done, total)))
    parts = list(studio.reconstruct(images[0], WAY, condition=NOTHING, stop=stop))
    assert len(parts) == 1 + len(CURVE)
    x0 = levels.to_tensor(reading.read(images[0], 1, (16, 16))[0][None])
    (trip,) = roundtrip.measure(studio.model, [x0], [WAY])
    assert f"mse {trip.total('mse'):.4g}," in parts[0]
    assert parts[0].count("<img ") == 3
    assert all(p.startswith(parts[0]) and p.count("<svg ") == 1 for p in parts[1:])
    assert [p.count("<circle ") for p in parts[1:]] == [2, 3, 4, 5]
    assert told == [(i + 1, len(told)) for i in range(len(told))]  # what was expected is what was done


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_ends_between_images_are_the_images(tame_folder: Path, images: list[str], n: int) -> None:
    found = between(Studio(load(str(tame_folder), "cpu")), images[:n], Way("exact", steps=20))
    ends = [(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)] if n == 4 else [(i * FINE, 0) for i in range(n)]
    for place, path in zip(ends, images, strict=False):
        assert found.dither(place) is not None
        shown = pixels_of(found.file(f"{place[0]}.{place[1]}.png")[0])
        away = abs(shown - reading.read(path, 1, (16, 16))[0][..., 0].astype(int))
        assert np.median(away) == 0  # with the noise it was 1
    assert found.dither((1, 0)) is None
    assert found.html("k").count('type="range"') == (2 if n == 4 else 1)


def test_a_place_is_that_of_the_command_line(studio: Studio, images: list[str]) -> None:
    """Keyframes along a path, and a grid of four corners."""
    path, corners = between(studio, images[:3]), between(studio, images)
    torch.testing.assert_close(path.latents(path.coarse), keyframes(path.keys, len(path.coarse)), rtol=0, atol=1e-6)
    n = SIDE // STEP + 1
    torch.testing.assert_close(corners.latents(corners.coarse), grid(corners.keys, n, n), rtol=0, atol=1e-6)


def test_what_is_ahead_comes_far_apart_first(studio: Studio, images: list[str]) -> None:
    found, seen = between(studio, images[:2], Way(steps=1)), []
    for _ in range(100):
        made = json.loads(found.file("ahead")[0])
        if not made:
            break
        seen += list(made)
    assert sorted(int(name.split(".")[0]) for name in seen) == list(range(0, FINE + 1, STEP))
    assert set(seen[:3]) == {"0.0", f"{FINE}.0", f"{FINE // 2}.0"}
    assert set(seen) == {f"{i}.{j}" for i, j in found.pixels}
    found.file("3.0.png")  # a place of the hand's is not kept
    assert (3, 0) not in found.pixels


def test_the_hand_comes_first(studio: Studio, images: list[str]) -> None:
    found = between(studio, images[:2], Way(steps=1))
    ahead = found._ahead
    found.at((0, 0))
    with pytest.raises(Stopped):  # what was being made ahead is not gone on with
        found.decode([(STEP, 0)], ahead)
    found._hands = 1
    with pytest.raises(Stopped):  # and nothing is begun while a hand waits
        found.file("ahead")
    assert list(found.pixels) == [(0, 0)]


@pytest.mark.parametrize("n", [2, 4])
def test_what_lies_between_is_downloaded(studio: Studio, images: list[str], tmp_path: Path, n: int) -> None:
    found = between(studio, images[:n], Way(steps=1))
    files = {name: found.file(name) for name in FILES}
    assert {name: kind for name, (_, kind) in files.items()} == FILES
    (tmp_path / "f.gif").write_bytes(files["film.gif"][0])
    frames, _ = animation.count_frames(tmp_path / "f.gif")
    assert frames == (4 * SIDE // STEP if n == 4 else len(found.coarse))
    assert files["film.mp4"][0][4:8] == b"ftyp"
    assert json.loads(Image.open(io.BytesIO(files["sheet.png"][0])).info["ddimctl"])["command"] == "ui"
    whole = latent.from_bytes(files["latents.pt"][0], "latents.pt")
    assert len(whole.xT) == len(found.coarse)
    (tmp_path / "one.pt").write_bytes(found.file("12.0.pt")[0])
    one = latent.load(tmp_path / "one.pt")
    torch.testing.assert_close(one.xT, whole.xT[12 // STEP : 12 // STEP + 1])
    term = studio.term(str(tmp_path / "one.pt"), WAY, condition=NOTHING, stop=Stop())
    torch.testing.assert_close(term.latent.xT, one.xT)
    assert [p["name"] for p in one.provenance["made"]["parents"]] == [Path(p).name for p in images[:n]]


def test_without_the_extra_a_film_is_a_sentence(
    studio: Studio, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "av" else real(n, *a))
    with pytest.raises(UsageError, match="need the extra 'video'") as raised:
        between(studio, images[:2]).file("film.mp4")
    assert raised.value.hint == "install it with: pip install 'ddimctl[video]'"


@pytest.mark.parametrize("name", ["x", "1.png", "1.1.png", "999.0.png", "-1.0.png", "0.0.exe", "film.exe", "../a.png"])
def test_nothing_else_is_kept(studio: Studio, images: list[str], name: str) -> None:
    with pytest.raises(UsageError, match="there is no"):
        between(studio, images[:2]).file(name)


def test_another_models_latents_are_refused(studio: Studio) -> None:
    other = ROOT / "tests/fixtures/latents/one.pt"
    with pytest.raises(FileError, match=r"one\.pt was encoded with another model"):
        studio.term(str(other), WAY, condition=NOTHING, stop=Stop())


def test_samples_are_those_of_the_seed(studio: Studio) -> None:
    first = studio.sample(7, 3, Noising(WAY), condition=NOTHING, stop=Stop())
    assert first.count("<img ") == 3
    assert first == studio.sample(7, 3, Noising(WAY), condition=NOTHING, stop=Stop())
    assert first != studio.sample(8, 3, Noising(WAY), condition=NOTHING, stop=Stop())
    assert studio.sample(7, 10**9, Noising(Way(steps=1)), condition=NOTHING, stop=Stop()).count("<img ") == 64


def test_work_ends_between_two_steps(studio: Studio, images: list[str]) -> None:
    stop = Stop()
    parts = studio.reconstruct(images[0], WAY, condition=NOTHING, stop=stop)
    next(parts)
    stop.now()
    with pytest.raises(Stopped):
        next(parts)


def test_errors_are_sentences(studio: Studio, images: list[str]) -> None:
    stop = Stop()
    with pytest.raises(UsageError, match="there is no image"):
        next(studio.reconstruct(None, WAY, condition=NOTHING, stop=stop))
    with pytest.raises(UsageError, match="two to four images or latents, not 1"):
        between(studio, images[:1])
    with pytest.raises(UsageError, match="two to four images or latents, not 0"):
        between(studio, [])
    with pytest.raises(UsageError, match="there is no latent and no image"):
        Sums(studio, WAY, NOTHING, stop).examine(None)
    with pytest.raises(UsageError, match="steps"):
        studio.sample(0, 1, Noising(Way(steps=0)), condition=NOTHING, stop=stop)


def test_what_is_kept_is_not_kept_for_ever() -> None:
    shelf, things = Shelf(), [Made(latent.Latent(np.zeros((1, 1, 1, 1)))) for _ in range(40)]
    keys = [shelf.put("a", "x", things[0]), shelf.put("a", "x", things[1]), shelf.put("a", "y", things[2])]
    assert len(shelf) == 2  # another in the same place takes the former's
    with pytest.raises(UsageError, match="no longer kept"):
        shelf.get(keys[0])
    assert shelf.get(keys[1]) is things[1]
    shelf.drop("a")
    assert len(shelf) == 0
    for i, thing in enumerate(things):
        key = shelf.put(str(i), "x", thing)
        assert shelf.get(key) is thing
        assert len(shelf) <= 16


# Arithmetic


def sums(studio: Studio, way: Way = WAY) -> Sums:
    return Sums(studio, way, NOTHING, Stop())


def test_what_is_examined_is_beside_noise(studio: Studio, images: list[str]) -> None:
    said = sums(studio).examine(images[:2])
    assert said.count("<svg ") == 4
    assert all(f"{Path(p).name}: " in said for p in images[:2])


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_makes_a_latent(studio: Studio, images: list[str], tmp_path: Path, name: str) -> None:
    shown, made = sums(studio).compute(images[:2], images[2:3], Asked(name))
    (tmp_path / "made.pt").write_bytes(made.file("latent.pt")[0])
    loaded = latent.load(tmp_path / "made.pt")
    assert loaded.provenance["made"]["operation"] == name
    assert ('<ol class="frames">' in shown) == (name in ("mix", "mean", "add"))  # a difference is no image's latent
    xTs = [studio.term(p, WAY, condition=NOTHING, stop=Stop(), dither=True).latent.xT for p in images[:3]]
    a, b, c = (x.double() for x in xTs)
    exact = {"mean": (a + b) / 2, "add": a + b, "sub": a - b, "direction": (a + b) / 2 - c}
    if name == "mix":
        mixed = (a + b) / 2
        exact["mix"] = mixed * float((a.norm() + b.norm()) / 2 / mixed.norm())
    torch.testing.assert_close(loaded.xT, exact[name].float(), rtol=1e-5, atol=1e-5)


def test_weights_and_norms_are_heard(studio: Studio, images: list[str]) -> None:
    a, b = (studio.term(p, WAY, condition=NOTHING, stop=Stop(), dither=True).latent.xT for p in images[:2])
    _, made = sums(studio).compute(images[:2], None, Asked("add", "1, 0.5"))
    torch.testing.assert_close(made.latent.xT, np.asarray(a + 0.5 * b), rtol=1e-5, atol=1e-5)
    _, strong = sums(studio).compute(images[:2], None, Asked("add", "1, 0.5", renorm=True))
    norm = float(np.linalg.norm(strong.latent.xT))
    assert norm == pytest.approx(float(a.norm() + b.norm()) / 2, rel=1e-5)
    for weights, why in (("1", "1 weights do not fit 2 latents"), ("1, x", "'1, x' are no weights")):
        with pytest.raises(UsageError, match=why):
            sums(studio).compute(images[:2], None, Asked("add", weights))


def test_the_nearest_is_the_same_image(studio: Studio, images: list[str]) -> None:
    said = sums(studio).nearest(images[1:2], images)
    rows = re.findall(r'<th scope="row">001.png</th><td>(\S+?)</td><td>(\S+?)</td>', said)
    assert rows[0] == ("001.png", "1")
    assert len(rows) == 4


# Models that take text, or have classes


def test_a_model_that_hears_no_text_is_not_asked(studio: Studio) -> None:
    assert not studio.hears_text


@pytest.fixture
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from pipelines import folder_of

    return Studio(load(str(folder_of("sd", tmp_path_factory)), "cpu"))


@pytest.mark.slow
def test_an_edit_is_a_translation(speaking: Studio, tmp_path: Path) -> None:
    assert speaking.hears_text
    size = speaking.model.size
    writing.save_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    source, target = Condition(prompt="a cat"), Condition(prompt="a dog", guidance=3.0)
    told: list[tuple[int, int]] = []
    stop = Stop(lambda done, total: told.append((done, total)))
    said = speaking.edit(str(tmp_path / "a.png"), WAY, source=source, target=target, keep=True, stop=stop)
    assert "back as\na cat" in said
    assert "edited to\na dog" in said
    assert told[-1][0] == told[-1][1] == told[0][1]
    shown = [base64.b64decode(b) for b in re.findall(r"base64,([^\"]+)", said)]
    assert len(shown) == 4
    x0 = speaking.image(str(tmp_path / "a.png"))[0]
    sides = [Side(speaking.model, c) for c in (source, target)]
    exact: list[Any] = []
    translate(sides[0], x0, sides, way=Way(steps=3, keep=Keep()), each=lambda _, x: exact.append(levels.to_pixels(x)))
    for i in (0, 1):
        assert np.array_equal(pixels_of(shown[1 + i]), exact[i][0])
    assert not np.array_equal(pixels_of(shown[1]), pixels_of(shown[2]))


def test_latents_by_tiles_are_decoded_by_tiles(
    speaking: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = speaking.model
    tile = 8 * model.autoencoder.factor
    tiled = Studio(replace(model, autoencoder=model.autoencoder.tiled(tile)))
    path, x = tmp_path / "0.png", np.zeros((*model.size, 3), dtype=np.uint8)
    writing.save_image(path, x)
    terms = [s.term(str(path), WAY, condition=NOTHING, stop=Stop()) for s in (tiled, speaking)]
    seen: list[int | None] = []
    whole = ode.decode

    def decode(model: Any, *args: Any, **more: Any) -> Any:
        seen.append(model.autoencoder.tile)
        return whole(model, *args, **more)

    monkeypatch.setattr(ode, "decode", decode)
    for term in terms:
        Between(speaking, [term, term], way=WAY, conditions=[NOTHING] * 2).at((0, 0))
    assert seen == [tile, None]


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_what_lies_between_prompts_is_under_a_blend(speaking: Studio, tmp_path: Path, n: int) -> None:
    rng, paths = np.random.default_rng(0), [str(tmp_path / f"{i}.png") for i in range(n)]
    for path in paths:
        writing.save_image(Path(path), rng.integers(0, 256, (*speaking.model.size, 3), dtype=np.uint8))
    prompts = ["a cat", "a dog", "a cat", "a cat"][:n]
    asked = [Condition(prompt=p, guidance=1.0 + 2 * (p == "a dog")) for p in prompts]
    terms = [speaking.term(p, WAY, condition=c, stop=Stop(), dither=True) for p, c in zip(paths, asked, strict=True)]
    found = Between(speaking, terms, way=WAY, conditions=asked)
    middle = (found.across // 2, 0)
    between = asked[0].toward(asked[1], 0.5)
    assert found.conditions([(0, 0), middle, (found.across, 0)]) == [asked[0], between, asked[1]]
    shown = pixels_of(found.file(f"{middle[0]}.0.png")[0])
    one = latent.from_bytes(found.file(f"{middle[0]}.0.pt")[0], "one.pt")
    assert one.recipe.condition == between
    exact = speaking.decode(found.latents([middle]), WAY, of=one.recipe, condition=one.recipe.condition, stop=Stop())
    assert np.array_equal(shown, exact[0])
    of_one = speaking.decode(found.latents([middle]), WAY, of=one.recipe, condition=asked[0], stop=Stop())[0]
    assert not np.array_equal(shown, of_one)
    made = json.loads(Image.open(io.BytesIO(found.file("sheet.png")[0])).info["ddimctl"])
    assert (made["prompts"], made["guidances"]) == (["a cat", "a dog"], [1.0, 3.0])
    with pytest.raises(UsageError, match="one prompt for all"):
        found.file("latents.pt")


def test_between_two_classes_is_nothing() -> None:
    folder = ROOT / "tests/fixtures/models/classes"
    studio, paths = Studio(load(str(folder), "cpu")), [str(folder / f"held-out/00{i}.png") for i in range(2)]
    asked = [Condition(0), Condition(2)]
    terms = [studio.term(p, WAY, condition=c, stop=Stop()) for p, c in zip(paths, asked, strict=True)]
    with pytest.raises(UsageError, match="between two classes"):
        Between(studio, terms, way=WAY, conditions=asked)


def test_what_is_asked_for_is_said() -> None:
    assert said(Condition(3)) == "class 3"
    assert said(Condition(prompt="a cat")) == "a cat"
    assert said(NOTHING) == "nothing said"


# The command


def test_without_the_extra(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "gradio" else real(n, *a))
    done = invoke("ui")
    assert "'ui'" in done.failed(2)
    assert "constraints-ui.txt" in done.err


def test_only_this_machine_reaches_it() -> None:
    with ui.listening(0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


def test_answers_do_not_wait_for_one_another() -> None:
    """Nagle's algorithm is off where a page is served: with it each answer in a connection comes 40 ms later."""

    async def served(bound: socket.socket) -> int:
        off = asyncio.get_running_loop().create_future()

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            off.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(answer, sock=bound):
            _, writer = await asyncio.open_connection(*bound.getsockname())
            found: int = await off
            writer.close()
        return found

    with ui.listening(0) as bound:
        assert asyncio.run(served(bound))


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(DDIMError, match=r"port \d+ cannot be had") as raised:
            ui.listening(other.getsockname()[1])
        assert "--port 0" in raised.value.hint


def test_the_two_lists_of_versions_agree() -> None:
    """But for what gradio needs to be older."""
    lists = [dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / n).read_text(), re.MULTILINE))
             for n in ("constraints.txt", "constraints-ui.txt")]  # fmt: skip
    assert {k for k, v in lists[0].items() if lists[1].get(k) != v} == {"pillow", "tomlkit"}
