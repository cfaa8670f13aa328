"""Training in latent space: the tokenizer, the autoencoder, and the network that listens to captions."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from captures import furthest
from PIL import Image
from torch import Tensor

from ddimctl.errors import FileError, UsageError
from ddimctl.schedule import Schedule
from ddimctl.training import autoencoder, card, tokens
from ddimctl.training.data import Data
from ddimctl.training.denoising import Denoising
from ddimctl.training.loop import Trainer
from ddimctl.training.settings import AutoencoderSettings, TextSettings
from ddimctl.training.text import Text
from ddimctl.unet import UNet2DModel, UNetConfig

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CPU = torch.device("cpu")
CAPTIONS = ("red square", "blue circle", "big red circle", "it's 10 o'clock, naïve — déjà_vu")


def pixels(n: int, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def text_task(device: torch.device = CPU, **changes: Any) -> Text:
    s: dict[str, Any] = {
        "channels": 3, "size": (8, 8), "block_channels": (8, 16), "attention": (1,), "head_dim": 8, "text_width": 32,
        "text_layers": 1, "words": 4, "steps": 8, "batch": 4, "warmup": 2, "bf16": False,
    }  # fmt: skip
    data = Data(pixels(12), pixels(4), CAPTIONS * 3, CAPTIONS)
    return Text(TextSettings(**{**s, **changes}), data, device, vae=autoencoder.of_pixels(3))


def autoencoder_task(device: torch.device = CPU, **changes: Any) -> autoencoder.Autoencoder:
    s: dict[str, Any] = {
        "channels": 3, "size": (8, 8), "block_channels": (8, 16), "steps": 8, "batch": 4, "warmup": 2, "bf16": False,
    }  # fmt: skip
    return autoencoder.Autoencoder(AutoencoderSettings(**{**s, **changes}), Data(pixels(12), pixels(4)), device)


# The tokenizer


def test_every_word_of_the_captions_is_one_token() -> None:
    vocabulary = tokens.learn(CAPTIONS)
    for caption in CAPTIONS:
        row = tokens.encode(vocabulary, [caption], 32)[0]
        assert row.index(vocabulary.number[tokens.END]) == 1 + len(tokens.words(caption))
    assert len(set(vocabulary.entries)) == len(vocabulary.entries)


def test_the_most_frequent_pair_is_merged_first() -> None:
    """As it is defined: all pairs are counted anew before each."""
    rng = random.Random(0)
    for _ in range(20):
        captions = ["".join(rng.choices("ab cé", k=12)) for _ in range(9)]
        counts = Counter(word for caption in captions for word in tokens.words(caption))
        pieces, merges = {word: tokens.split(word) for word in counts}, list[tuple[str, str]]()
        while pairs := Counter({p: 0 for parts in pieces.values() for p in pairwise(parts)}):
            for word, parts in pieces.items():
                pairs.update({p: n * counts[word] for p, n in Counter(pairwise(parts)).items()})
            merges.append(min(pairs, key=lambda p: (-pairs[p], p)))
            pieces = {word: tokens.merge(parts, merges[-1]) for word, parts in pieces.items()}
        assert tokens.learn(captions).merges == tuple(merges)


@pytest.mark.parametrize("length", [5, 16])
def test_transformers_reads_the_tokenizer_in_the_same_way(length: int, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    vocabulary = tokens.learn(CAPTIONS)
    tokens.write(tmp_path, vocabulary, length)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    captions = [*CAPTIONS, "", "RED   Circle", "an unknown zebra", "x_1 3.14 ¡olé!"]
    expected = theirs(captions, padding="max_length", max_length=length, truncation=True).input_ids
    # They end a caption that was cut; so do we.
    assert tokens.encode(vocabulary, captions, length) == expected
    assert theirs.model_max_length == length


# The autoencoder


@pytest.mark.parametrize("channels", [1, 3])
def test_the_autoencoder_of_pixels_changes_nothing(channels: int) -> None:
    network = autoencoder.of_pixels(channels)
    flat = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, channels, 8, 8)
    x = torch.cat([torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1, flat])
    posterior = network.encode(x).latent_dist
    assert (posterior.mean - x).abs().max() < 1e-4
    assert (network.decode(posterior.mean).sample - x).abs().max() < 2e-4
    assert posterior.std.max() < 1e-6


def test_centring_moves_the_latents_and_no_picture() -> None:
    network = autoencoder_task().network
    x = torch.rand(4, 3, 8, 8) * 2 - 1
    z = network.encode(x).latent_dist.mean
    y = network.decode(z).sample
    mean = torch.tensor([0.5, -1.0, 2.0, 0.0])
    autoencoder.centre(network, mean)
    moved = network.encode(x).latent_dist.mean
    torch.testing.assert_close(moved, z - mean.view(1, -1, 1, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.decode(moved).sample, y, rtol=1e-4, atol=1e-4)


def test_a_published_autoencoder_is_centred_scaled_and_diffusers_own(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    task = autoencoder_task()
    trainer = Trainer(task, tmp_path)
    losses = [r.loss for r in trainer.train()]
    assert all(math.isfinite(loss) for loss in losses)
    trainer.export("card")
    theirs = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    ours = autoencoder.load(tmp_path)
    z = autoencoder.encode(ours, task.data.images)
    assert z.mean((0, 2, 3)).abs().max() < 1e-4
    assert z.std() == pytest.approx(1, abs=1e-3)
    x = task.data.held_out.float() / 127.5 - 1
    again = theirs.decode(theirs.encode(x).latent_dist.mean).sample
    assert ((again.clamp(-1, 1) - x) / 2).square().mean().item() == pytest.approx(trainer.validate(), rel=1e-3)


def test_recolouring_keeps_grey_and_turns_half_of_the_others() -> None:
    g = torch.Generator().manual_seed(0)
    grey = torch.linspace(-1, 1, 16).view(1, 1, 4, 4).expand(64, 3, 4, 4)
    colours = autoencoder.recolouring(64, g)
    torch.testing.assert_close(autoencoder.recoloured(grey, colours), grey, rtol=1e-5, atol=1e-5)
    red = torch.tensor([0.8, -0.2, -0.6]).view(1, 3, 1, 1).expand(400, 3, 2, 2)
    out = autoencoder.recoloured(red, autoencoder.recolouring(400, g))
    same = (out - red).flatten(1).abs().amax(1) < 1e-6
    assert 0.4 < same.float().mean() < 0.7  # half, and a sixth of the quarter that is permuted
    torch.testing.assert_close(out.mean(1), red.mean(1), rtol=1e-4, atol=1e-4)  # grey is the axis


@pytest.mark.parametrize("fault", ["nothing", "no weights", "another class", "text", "another shape"])
def test_a_folder_without_an_autoencoder_is_refused(fault: str, tmp_path: Path) -> None:
    Trainer(autoencoder_task(), tmp_path).export("card")
    config, weights = tmp_path / "vae" / "config.json", tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    if fault == "nothing":
        config.unlink()
    elif fault == "no weights":
        weights.unlink()
    elif fault == "text":
        weights.write_text("text")
    else:
        changed = {"_class_name": "VQModel"} if fault == "another class" else {"latent_channels": 7}
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(FileError):
        autoencoder.load(tmp_path)


@needs_cuda
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("make", [text_task, autoencoder_task])
def test_cuda_captures_what_a_step_computes(make: Any, bf16: bool) -> None:
    assert furthest(make(torch.device("cuda"), bf16=bf16)) < (0.1 if bf16 else 1e-3)


# The network with captions


def test_the_pipeline_loads_in_diffusers_and_gives_the_same_eps(tmp_path: Path) -> None:
    """Within the rounding of half precision; and a picture of the prompt comes out of it."""
    from diffusers import StableDiffusionPipeline

    task = text_task()
    trainer = Trainer(task, tmp_path)
    assert all(math.isfinite(r.loss) for r in trainer.train())
    trainer.export("card")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(pipeline.tokenizer(["blue circle"] * 2, padding="max_length", max_length=6).input_ids)
    with torch.inference_mode():
        theirs = pipeline.unet(z, 500, pipeline.text_encoder(ids).last_hidden_state).sample
        ours = trainer.average.module(z, torch.tensor([500, 500]), task._ids(["blue circle"] * 2))
    assert (theirs - ours).norm() < 1e-2 * ours.norm()
    assert pipeline("red square", num_inference_steps=2, guidance_scale=3.0).images[0].size == (8, 8)
    assert sorted(p.name for p in (tmp_path / "held-out").iterdir())[:2] == ["000.png", "000.txt"]
    assert (tmp_path / "held-out" / "001.txt").read_text() == "blue circle\n"


@pytest.mark.parametrize("make", [text_task, autoencoder_task])
def test_resuming_continues_bit_for_bit(make: Any, tmp_path: Path) -> None:
    straight = Trainer(make(), tmp_path / "a")
    expected = [r.loss for r in straight.train()]
    first = Trainer(make(), tmp_path / "b")
    losses = [r.loss for _, r in zip(range(3), first.train(), strict=False)]
    first.save()
    second = Trainer(make(), tmp_path / "b")
    second.resume()
    assert losses + [r.loss for r in second.train()] == expected
    left, right = straight.average.state_dict(), second.average.state_dict()
    assert all(torch.equal(left[k], right[k]) for k in left)


def test_a_run_of_another_kind_is_not_resumed(tmp_path: Path) -> None:
    Trainer(text_task(), tmp_path).save()
    with pytest.raises(UsageError, match="another kind of model: text, not autoencoder"):
        Trainer(autoencoder_task(), tmp_path).resume()


def test_a_run_in_another_latent_space_is_not_resumed(tmp_path: Path) -> None:
    Trainer(text_task(), tmp_path).save()
    Trainer(text_task(), tmp_path).resume()
    task = text_task()
    other = autoencoder.of_pixels(3)
    with torch.no_grad():
        other.decoder.conv_out.bias.fill_(0.5)
    with pytest.raises(UsageError, match="started with another autoencoder"):
        Trainer(Text(task.settings, task.data, CPU, vae=other), tmp_path).resume()


def test_a_start_is_the_pixel_network_until_the_text_speaks() -> None:
    config = {
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4, "attention_head_dim": 8, "dropout": 0.0,
    }  # fmt: skip
    torch.manual_seed(1)
    network = UNet2DModel(UNetConfig.from_dict(config)).eval()
    task = text_task()
    task.start(network.state_dict())
    x, label = torch.randn(2, 3, 8, 8), torch.tensor([10, 800])
    with torch.inference_mode():
        plain = network(x, label)
        heard = task.network(x, label, task.null.expand(2, -1))
    assert (heard - plain).norm() < 0.2 * plain.norm()  # the words take a part of the attention
    with pytest.raises(UsageError, match="another shape"):
        text_task(block_channels=(8, 24)).start(network.state_dict())


def test_captions_are_dropped_as_often_as_asked() -> None:
    task = text_task(drop=0.25)
    _, ids, *_ = task.seen(torch.arange(4000) % 12, task.draw(4000, torch.Generator().manual_seed(0)))
    assert (ids == task.null).all(1).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_every_image_needs_a_caption() -> None:
    data = Data(pixels(4), pixels(2), ("one",) * 3, ("two",) * 2)
    with pytest.raises(UsageError, match="every image needs a caption"):
        Text(text_task().settings, data, CPU, vae=autoencoder.of_pixels(3))


def test_the_weights_of_the_loss_have_mean_1_and_grow_with_the_noise() -> None:
    plain, weighed = (Denoising(Schedule.linear(), CPU, bf16=False, balance=b).weight for b in (0.0, 50.0))
    assert (plain == 1).all()
    assert weighed.mean().item() == pytest.approx(1, rel=1e-5)
    assert (weighed.diff() >= 0).all()
    assert (weighed[-1] / weighed[0]).item() == pytest.approx(51, rel=1e-3)


def test_the_cards_tell_of_captions_and_of_what_comes_back(tmp_path: Path) -> None:
    about = card.About("glyphs", "0.1", "Glyphs", "OFL-1.1")
    trainer = Trainer(text_task(), tmp_path / "t")
    text = card.write(trainer, about, 0.02)
    for expected in ("pipeline_tag: text-to-image", "StableDiffusionPipeline", "weighted by 1 + min(σ², 50)",
                     "10% of the captions dropped", "--captions", "red", "with their captions"):  # fmt: skip
        assert expected in text, expected
    text = card.write(Trainer(autoencoder_task(hue=True), tmp_path / "a"), about, 1e-3)
    for expected in ("30.0 dB", "latents 4 × 4 × 4", "--autoencoder", "--hue", "hues turned"):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (TextSettings, {"text_width": 33}, "not heads of 32"),
        (TextSettings, {"attention": (0,), "head_dim": 32}, "lowest resolution only"),
        (TextSettings, {"size": (9, 8), "down": 2}, "not multiples of 2"),
        (TextSettings, {"drop": 1.0}, "drop must be"),
        (TextSettings, {"down": 0}, "down must be positive"),
        (TextSettings, {"flip": True}, "as they are, not mirrored"),
        (AutoencoderSettings, {"kl": -1.0}, "kl must be"),
        (AutoencoderSettings, {"channels": 1, "hue": True}, "only images in colour"),
        (AutoencoderSettings, {"latent_channels": 0}, "latent_channels must be positive"),
        (AutoencoderSettings, {"size": (30, 30)}, "do not halve evenly 2 times"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**{"channels": 3, "size": (32, 32), **changes})


@pytest.mark.parametrize(("make", "columns"), [(text_task, 4), (autoencoder_task, 8)])
def test_a_sheet_says_what_is_on_it(make: Any, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images stand in it as they are, at the right and above the caption."""
    from ddimctl.images.reading import read
    from ddimctl.images.sheets import enlarge, sheet
    from ddimctl.training import loop

    said: list[Any] = []
    around = loop.around
    monkeypatch.setattr(loop, "around", lambda *args, labels: said.append(labels) or around(*args, labels=labels))
    trainer = Trainer(make(), tmp_path)
    tiles = pixels(16).permute(0, 2, 3, 1).numpy()
    monkeypatch.setattr(trainer.task, "samples", lambda network, n: pixels(16).float() / 127.5 - 1)
    (tmp_path / "training").mkdir()
    trainer.sheet(16)
    expected = sheet(enlarge(tiles, 2), columns, loop.GAP)
    size = Image.open(tmp_path / "samples.png").size
    found = read(tmp_path / "samples.png", 3, (size[1], size[0]))[0]
    high, wide = expected.shape[:2]
    places = [(found[y : y + high, -wide - 8 : -8] == expected).all() for y in range(len(found) - high)]
    assert sum(places) == 1
    assert said[0].caption.startswith("step 0 of 8: ")
    assert tuple(said[0].left) == (CAPTIONS if columns == 4 else ())
    assert (tmp_path / "training" / "samples-000000.png").read_bytes() == (tmp_path / "samples.png").read_bytes()


# The command


WORDS = ["--size", "8", "--channels", "8,16", "--head-dim", "8", "--attention", "1", "--batch-size", "4", "--warmup", "1",
         "--steps", "2", "--held-out", "0.25", "--float32"]  # fmt: skip
NETWORK = {"--head-dim", "--attention"}


@pytest.fixture
def glyphs(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "glyphs"
    folder.mkdir()
    for i, image in enumerate(pixels(12).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    rows = [{"file_name": f"{i:02}.png", "text": CAPTIONS[i % 3]} for i in range(10)]
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "10.txt").write_text("beside it")
    return folder


def test_the_command_trains_an_autoencoder_and_then_in_its_space(glyphs: Path, tmp_path: Path, invoke: Any) -> None:
    shape = [w for i, w in enumerate(WORDS) if w not in NETWORK and WORDS[i - 1] not in NETWORK]
    invoke("train", glyphs, "-o", tmp_path / "a", "--autoencoder", *shape, "--latent-channels", "2").ok()
    words = [w if w != "1" or WORDS[i - 1] != "--attention" else "0" for i, w in enumerate(WORDS)]
    words[words.index("8,16")] = "16"
    done = invoke("train", glyphs, "-o", tmp_path / "t", "--latent", tmp_path / "a", *words, "--text-width", "32").ok()
    assert "1 images without a caption are left out" in done.err
    assert "8 images to train on, 3 held out" in done.err
    unet, vae = (json.loads((tmp_path / "t" / part / "config.json").read_text()) for part in ("unet", "vae"))
    assert (unet["in_channels"], unet["sample_size"]) == (2, 4)
    assert vae["latent_channels"] == 2
    index = json.loads((tmp_path / "t" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    again = invoke("train", "--resume", "-o", tmp_path / "t", "--steps", "3").ok()
    assert "continuing at step 2" in again.err
    assert "began with no other weights" in invoke("train", "--resume", "-o", "t", "--start", tmp_path / "a").failed(2)


def test_a_run_goes_on_without_what_it_began_with(glyphs: Path, tmp_path: Path, invoke: Any) -> None:
    invoke("train", glyphs, "-o", "p", *WORDS).ok()
    invoke("train", glyphs, "-o", "t", "--start", "p", *WORDS, "--text-width", "32").ok()
    shutil.rmtree(tmp_path / "p")
    invoke("train", "--resume", "-o", "t", "--steps", "3").ok()
    text = (tmp_path / "t" / "README.md").read_text()
    assert "from the weights of `p`" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--autoencoder", "--captions"], 2, "an autoencoder hears no captions"),
        (["--autoencoder", "--dropout", "0.1"], 2, "--dropout is not for this kind of model"),
        (["--hue"], 2, "--hue is not for this kind of model"),
        (["--captions", "--latent-channels", "2"], 2, "--latent-channels is not for this kind of model"),
        (["--captions", "--flip"], 2, "as they are, not mirrored"),
        (["--captions", "--kl", "1"], 2, "--kl is not for this kind of model"),
        (["--latent", "glyphs"], 3, "has no config.json"),
        (["--captions", "--attention", "0"], 2, "lowest resolution only"),
        (["--start", "nowhere"], 2, "nowhere"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_options_are_one_line(
    words: list[str],
    code: int,
    message: str,
    glyphs: Path,
    tmp_path: Path,
    invoke: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    network = [] if "--autoencoder" in words else WORDS[4:8]
    assert message in invoke("train", "glyphs", "-o", "m", *WORDS[:4], *network, *WORDS[8:], *words).failed(code)
    assert not (tmp_path / "m").exists()


def test_captions_that_are_nowhere_are_asked_for(glyphs: Path, tmp_path: Path, invoke: Any) -> None:
    for path in (*glyphs.glob("*.txt"), glyphs / "metadata.jsonl"):
        path.unlink()
    message = invoke("train", glyphs, "-o", tmp_path / "m", "--captions", *WORDS).failed(2)
    assert "no image in" in message
