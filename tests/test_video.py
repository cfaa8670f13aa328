"""Films: colours come back as players read them, times as they were, sound as long as the film; nobody is called."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest

from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.images import animation, video

av = pytest.importorskip("av")
from av.video.reformatter import Colorspace  # noqa: E402

PATCHES = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 0, 255], [255, 255, 0], [128, 128, 128]], np.uint8)


def flat(height: int, width: int = 96) -> np.ndarray:
    """Three frames of six saturated stripes."""
    frame = np.broadcast_to(PATCHES.repeat(width // 6, 0), (height, width, 3))
    return np.repeat(frame[None], 3, 0)


def at_patches(picture: np.ndarray) -> np.ndarray:
    step = picture.shape[1] // 6
    return picture[picture.shape[0] // 2, step // 2 :: step].astype(int)


def sound(seconds: float, rate: int = 44_100, channels: int = 1) -> bytes:
    out = io.BytesIO()
    wave_ = np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * 440 / rate) * 12_000
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(wave_.astype("<i2").repeat(channels).tobytes())
    return out.getvalue()


@pytest.mark.parametrize(("height", "tag"), [(224, 6), (718, 6), (719, 1), (720, 1), (768, 1)])
def test_saturated_colours_come_back_as_players_read_them(height: int, tag: int) -> None:
    """Tagged, and converted by the tag, which is the one that players assume at that height."""
    data = video.encode(flat(height), [100.0] * 3)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert int(stream.codec_context.colorspace) == int(frame.colorspace) == tag
        assert (int(frame.color_primaries), int(frame.color_trc), int(frame.color_range)) == (1, 13, 1)
        assumed = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
        got = frame.reformat(format="rgb24", src_colorspace=assumed).to_ndarray()
    assert np.abs(at_patches(got) - PATCHES).max() <= 6
    back = [f for f, _ in video.decode(data, "x", 10**8)]
    assert np.abs(at_patches(back[0]) - PATCHES).max() <= 6


@pytest.mark.parametrize("tag", [None, 1, 6])
@pytest.mark.parametrize("height", [240, 720])
def test_a_film_is_read_by_its_tag_or_by_its_lines(tag: int | None, height: int) -> None:
    matrix = {
        1: Colorspace.ITU709,
        6: Colorspace.ITU601,
        None: Colorspace.ITU709 if height >= 720 else Colorspace.ITU601,
    }[tag]
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = height, 96, "yuv420p"
        if tag is not None:
            stream.codec_context.colorspace = tag
        for i, pixels in enumerate(flat(height)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", dst_colorspace=matrix)
            frame.colorspace = 2 if tag is None else tag
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    picture, _ = next(iter(video.decode(out.getvalue(), "x", 10**8)))
    assert np.abs(at_patches(picture) - PATCHES).max() <= 6


@pytest.mark.parametrize("times", [[100.0] * 3, [1000 / 29.97] * 3, [40.0, 500.0, 1250.0], [20.0, 20.0, 1000.0]])
def test_times_are_kept(times: list[float]) -> None:
    data = video.encode(flat(48), times)
    starts = [start for _, start in video.decode(data, "x", 10**8)]
    assert starts == pytest.approx(np.cumsum([0, *times[:-1]]), abs=0.6)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert 1000 * float(stream.duration * stream.time_base) == pytest.approx(sum(times), abs=1)


@pytest.mark.parametrize(("seconds", "rate", "channels"), [(3.0, 44_100, 1), (0.25, 48_000, 2), (1.0, 8_000, 1)])
def test_sound_ends_with_the_film(seconds: float, rate: int, channels: int) -> None:
    data = video.encode(flat(48), [400.0, 100.0, 500.0], sound=sound(seconds, rate, channels))
    with av.open(io.BytesIO(data)) as container:
        track = container.streams.audio[0]
        assert float(track.duration * track.time_base) == pytest.approx(min(seconds, 1.0), abs=0.05)
        heard = np.concatenate([f.to_ndarray() for f in container.decode(track)], axis=1)
    middle = heard[:, heard.shape[1] // 4 : heard.shape[1] // 2]
    assert 0.2 < np.abs(middle).max() < 0.5  # 12,000 of 32,768
    assert [s for _, s in video.decode(data, "x", 10**8)] == pytest.approx([0, 400, 500], abs=0.6)


def test_sound_of_a_film_is_taken_too() -> None:
    film = video.encode(flat(48), [100.0] * 3, sound=sound(1))
    again = video.encode(flat(48), [100.0] * 3, sound=film)
    with av.open(io.BytesIO(again)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


def test_a_list_that_calls_itself_a_film_sends_nobody_anywhere(tmp_path: Path) -> None:
    """Playlists, concatenations and descriptions would have their demuxers open other files, or addresses."""
    (tmp_path / "secret.wav").write_bytes(sound(1))
    inside = tmp_path / "secret.wav"
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inside}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {inside}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    ):
        with pytest.raises(FileError, match="no sound"):
            video.encode(flat(48), [100.0] * 3, sound=text.encode())
        with pytest.raises(FileError, match="not a whole film"):
            list(video.decode(text.encode(), "x", 10**8))


def test_damaged_films_and_sounds_are_refused() -> None:
    data = video.encode(flat(48), [100.0] * 3, sound=sound(0.3))
    rng = np.random.default_rng(0)
    for end in (0, 3, len(data) // 3):
        with pytest.raises(FileError):
            list(video.decode(data[:end], "x", 10**8))
    for _ in range(40):  # what is still a film decodes, what is none is said so
        broken = bytearray(data)
        for i in rng.integers(0, len(data), 12):
            broken[i] ^= int(rng.integers(1, 256))
        try:
            frames = list(video.decode(bytes(broken), "x", 10**7))
        except FileError:
            continue
        assert len(frames) <= 1000
    with pytest.raises(FileError, match="too many"):
        list(video.decode(data, "x", 48 * 96 - 1))
    with pytest.raises(FileError, match="no sound"):
        video.encode(flat(48), [100.0] * 3, sound=video.encode(flat(48), [100.0] * 3))


def test_sound_needs_an_mp4(tmp_path: Path) -> None:
    animation.check_target(tmp_path / "a.mp4", sound=True)
    for name in ("a.gif", "a.png", "folder"):
        with pytest.raises(UsageError, match="cannot hold sound"):
            animation.check_target(tmp_path / name, sound=True)
    with pytest.raises(DDIMError):
        animation.save_frames(tmp_path / "a.gif", flat(48), 10, sound=sound(1))
    animation.save_frames(tmp_path / "a.mp4", flat(48), 10, sound=sound(1))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
