"""MP4 and other films, with PyAV (extra `video`): frames → H.264 with a sound track, and films → frames.

RGB becomes Y'CbCr by a matrix that differs between standard and high definition. A film is tagged with the one that was
used, and one without a tag is read as players read it: BT.709 from 720 lines on, BT.601 below. Films are opened from
memory, by demuxers that open nothing else: a list that calls itself a film can send nobody anywhere.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from ddimctl.errors import DDIMError, FileError, UsageError

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")  # of films that are read
HIGH = 720  # lines, from which on a film without a tag is taken for high definition
BT709, BT601 = 1, 6  # matrices by their numbers in ITU-T H.273
BT709_PRIMARIES, SRGB_TRANSFER, NARROW = 1, 13, 1
CLOCK = 1000  # ticks a second, where frames are shown for different times
RATE = 48_000  # of sound, samples a second
DEMUXERS = "mov,mp4,m4a,3gp,matroska,webm,avi,mp3,wav,flac,ogg,aac"
HINT = "install it with: pip install 'ddimctl[video]'"


def check() -> None:
    """Raises `UsageError` if there is no PyAV."""
    if not importlib.util.find_spec("av"):
        raise UsageError("films (.mp4) need the extra 'video'", hint=HINT)


def encode(frames: np.ndarray, times: Sequence[float], *, sound: bytes | None = None, comment: str = "") -> bytes:
    """uint8 (N, H, W, C), each shown for so many ms → an MP4. Odd sides get one more row or column of their edge.

    `sound` is the content of a sound file, or of a film with sound; it ends with the film at the latest. Raises
    `FileError` if it is none, `DDIMError` if the film cannot be made.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    if frames.shape[-1] == 1:
        frames = frames.repeat(3, axis=-1)
    even = max(times) - min(times) < 1e-6
    rate = Fraction(1000 / times[0]).limit_denominator(1001) if even else Fraction(CLOCK)
    starts = list(range(len(frames))) if even else [round(t) for t in accumulate(times, initial=0.0)][:-1]
    high = frames.shape[1] >= HIGH
    out = io.BytesIO()
    try:
        with av.open(out, "w", format="mp4", options={"movie_timescale": "60000"}) as container:  # not ms
            if comment:
                container.metadata["comment"] = comment
            stream: Any = container.add_stream("libx264", rate=rate, options={} if even else {"bf": "0"})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.colorspace = BT709 if high else BT601
            context.color_primaries, context.color_trc, context.color_range = BT709_PRIMARIES, SRGB_TRANSFER, NARROW
            track = _Sound(container, sound) if sound is not None else None
            ticks = [b - a for a, b in zip(starts, [*starts[1:], starts[-1] + round(times[-1])], strict=True)]
            for i, pixels in enumerate([*frames, None]):
                frame = None
                if pixels is not None:
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                        format="yuv420p",
                        dst_colorspace=Colorspace.ITU709 if high else Colorspace.ITU601,
                        dst_color_range=ColorRange.MPEG,
                    )
                    frame.pts, frame.time_base = starts[i], 1 / rate
                for packet in stream.encode(frame):
                    if not even:  # without B-frames, packets come in the order of the frames
                        packet.duration = ticks[starts.index(round(packet.pts * packet.time_base * rate))]
                    container.mux(packet)
            if track is not None:
                track.write(sum(times) / 1000)
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as e:
        raise DDIMError(f"cannot make an MP4 of {frames.shape[2]} × {frames.shape[1]} pixels: {e}") from e
    return out.getvalue()


class _Sound:
    """A sound track, added before anything is written, that is filled when the film's frames are."""

    def __init__(self, container: OutputContainer, sound: bytes):
        import av

        try:
            self.source = _open(sound)
            self.heard = self.source.streams.audio[0]
        except (av.FFmpegError, OSError, IndexError, ValueError) as e:
            raise FileError("the sound file holds no sound that can be read") from e
        self.container = container
        self.track = container.add_stream("aac", rate=RATE)
        self.resampler = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)

    def write(self, seconds: float) -> None:
        import av

        with self.source:
            left = round(seconds * RATE)
            fifo = av.AudioFifo()
            try:
                for frame in self.source.decode(self.heard):
                    frame.pts = None
                    for part in self.resampler.resample(frame):
                        fifo.write(part)
                    if fifo.samples >= left:
                        break
            except (av.FFmpegError, OSError, ValueError) as e:
                raise FileError(f"the sound file is damaged: {e}") from e
            for sound in (fifo.read(min(left, fifo.samples)) if fifo.samples else None, None):
                for packet in self.track.encode(sound):
                    self.container.mux(packet)


def decode(data: bytes, name: str, max_pixels: int) -> Iterator[tuple[np.ndarray, float]]:
    """Each frame of a film, upright, uint8 (H, W, 3), and when it is shown, in ms from the start.

    Raises `FileError` if that is no whole film of a known kind, or if it has more pixels.
    """
    check()
    import av
    from av.video.reformatter import ColorRange, Colorspace

    known = {BT709: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, BT601: Colorspace.ITU601}
    known |= {7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}
    try:
        with _open(data) as container:
            if not container.streams.video:
                raise FileError(f"{name} holds no pictures")
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                if frame.width * frame.height > max_pixels:
                    raise FileError(f"{name} has {frame.width} × {frame.height} pixels, too many")
                assumed = Colorspace.ITU709 if frame.height >= HIGH else Colorspace.ITU601
                matrix = known.get(int(frame.colorspace), assumed)
                rgb = frame.reformat(format="rgb24", src_colorspace=matrix, dst_color_range=ColorRange.JPEG)
                yield np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4), 1000 * float(frame.time or 0)
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as e:
        raise FileError(f"{name} is not a whole film that can be read: {e}") from e


def _open(data: bytes) -> InputContainer:
    """A film or sound from memory. Only demuxers that open no other file are tried, and no protocol is left to them."""
    import av

    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
    return av.open(io.BytesIO(data), "r", options=options, metadata_errors="replace")
