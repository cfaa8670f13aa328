"""Images as they come: every mode, format, orientation and profile against a conversion that is written out here."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, TiffImagePlugin

from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.images import datasets, fitting, formats, levels, reading, writing
from ddimctl.images.preprocessing import Preprocessing, describe
from ddimctl.images.reading import read

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # the command line hides them

SIZE = (6, 8)  # (height, width)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, SIZE, dtype=np.uint8)
RGB = RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, SIZE, dtype=np.uint8)


def encoded(picture: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format_, **options)
    return out.getvalue()


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601-2, in the 16-bit fixed point that Pillow documents."""
    weights = np.array([19595, 38470, 7471])
    return ((rgb.astype(int) @ weights + 0x8000) >> 16).astype(np.uint8)


def over(rgb: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """α·image + (1−α)·background, in real numbers."""
    a = alpha[..., None] / 255
    return rgb * a + np.array(background) * (1 - a)


def grey_of(data: bytes, **how: object) -> np.ndarray:
    return read(data, 1, SIZE, how=Preprocessing(**how))[0][..., 0]


def rgb_of(data: bytes, **how: object) -> np.ndarray:
    return read(data, 3, SIZE, how=Preprocessing(**how))[0]


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_grey_in_every_lossless_format(format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(Image.fromarray(GREY), format_, **options)
    assert (grey_of(data) == GREY).all()
    assert (rgb_of(data) == GREY[..., None]).all()


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_rgb_in_every_lossless_format(format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(Image.fromarray(RGB), format_, **options)
    assert (rgb_of(data) == RGB).all()
    assert (grey_of(data) == luma(RGB)).all()


def test_jpeg_is_what_pillow_decodes() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", quality=95)
    assert (rgb_of(data) == np.asarray(Image.open(io.BytesIO(data)))).all()


def test_bilevel() -> None:
    bits = GREY > 127
    assert (grey_of(encoded(Image.fromarray(bits))) == bits * 255).all()


@pytest.mark.parametrize("format_", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(format_: str) -> None:
    picture = Image.fromarray(GREY % 7, "P")
    colours = RGB.reshape(-1, 3)[:7]
    picture.putpalette(colours.tobytes())
    assert (rgb_of(encoded(picture, format_)) == colours[GREY % 7]).all()


@pytest.mark.parametrize(("background", "value"), [("white", (255, 255, 255)), ("#0a3c80", (10, 60, 128))])
def test_alpha_is_seen_over_the_background(background: str, value: tuple[int, int, int]) -> None:
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    for data in (encoded(rgba), encoded(rgba, "WEBP", lossless=True, exact=True), encoded(rgba, "TIFF")):
        wanted = over(RGB, ALPHA, value)
        assert np.abs(rgb_of(data, background=background) - wanted).max() <= 1
    la = Image.fromarray(np.dstack([GREY, ALPHA]), "LA")
    wanted = over(np.dstack([GREY] * 3), ALPHA, value)
    assert np.abs(rgb_of(encoded(la), background=background) - wanted).max() <= 1
    assert np.abs(grey_of(encoded(la), background=background).astype(int) - luma(wanted.round())).max() <= 1


def test_transparent_red_is_not_red() -> None:
    clear = Image.new("RGBA", SIZE[::-1], (255, 0, 0, 0))
    assert (rgb_of(encoded(clear)) == 255).all()
    assert "transparency over white" in describe(read(encoded(clear), 3, SIZE)[1])


def test_opaque_alpha_changes_nothing() -> None:
    data = encoded(Image.fromarray(np.dstack([RGB, np.full(SIZE, 255, np.uint8)])))
    pixels, record = read(data, 3, SIZE)
    assert (pixels == RGB).all()
    assert describe(record) == ""


@pytest.mark.parametrize("transparency", [3, bytes([255, 0, 128, 255, 255, 255, 255])])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    picture = Image.fromarray(GREY % 7, "P")
    colours = RGB.reshape(-1, 3)[:7]
    picture.putpalette(colours.tobytes())
    alphas = np.full(7, 255) if isinstance(transparency, int) else np.frombuffer(transparency, np.uint8)
    if isinstance(transparency, int):
        alphas[transparency] = 0
    wanted = over(colours[GREY % 7], alphas[GREY % 7], (0, 0, 0))
    assert np.abs(rgb_of(encoded(picture, transparency=transparency), background="black") - wanted).max() <= 1


def test_grey_and_rgb_with_one_transparent_value() -> None:
    key = int(GREY[2, 3])
    pixels = grey_of(encoded(Image.fromarray(GREY), transparency=key), background="black")
    assert (pixels == np.where(key == GREY, 0, GREY)).all()
    colour = tuple(map(int, RGB[2, 3]))
    pixels = rgb_of(encoded(Image.fromarray(RGB), transparency=colour), background="black")
    assert (pixels == np.where((colour == RGB).all(-1, keepdims=True), 0, RGB)).all()


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format_: str) -> None:
    deep = np.linspace(0, 65535, 48).round().astype(np.uint16).reshape(SIZE)
    pixels, record = read(encoded(Image.fromarray(deep), format_), 1, SIZE)
    assert (pixels[..., 0] == np.floor(deep / 257 + 0.5)).all()
    assert "0 … 65535 to 8 bits" in describe(record)


def test_big_endian_sixteen_bits_and_a_range() -> None:
    deep = np.linspace(0, 4095, 48).round().astype(np.uint16).reshape(SIZE)
    data = encoded(Image.fromarray(deep.astype(">u2")), "TIFF")
    assert (grey_of(data) == np.floor(deep / 257 + 0.5)).all()
    assert (grey_of(data, value_range=(0, 4095)) == np.floor(deep / 4095 * 255 + 0.5)).all()


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    deep = np.arange(48, dtype=np.uint16).reshape(SIZE) * 1000
    data = encoded(Image.fromarray(deep), transparency=7000)
    assert (grey_of(data) == np.where(deep == 7000, 255, np.floor(deep / 257 + 0.5))).all()


def test_sixteen_bit_colour_png() -> None:
    deep = RNG.integers(0, 65536, (*SIZE, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    pixels, record = read(png((SIZE[1], SIZE[0], 16, 2), rows), 3, SIZE)
    assert (pixels == deep >> 8).all()
    assert "16 bits to 8 by the high byte" in describe(record)


def test_white_is_zero_in_a_sixteen_bit_tiff() -> None:
    deep = np.linspace(0, 65535, 48).round().astype(np.uint16).reshape(SIZE)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    data = bytearray(encoded(Image.fromarray(deep), "TIFF", tiffinfo=tags))
    entry = data.index(struct.pack("<HHIH", 262, 3, 1, 1))
    data[entry + 8] = 0
    assert (grey_of(bytes(data)) == 255 - np.floor(deep / 257 + 0.5)).all()


def test_floats_need_a_range() -> None:
    values = np.linspace(-0.5, 1.5, 48).astype(np.float32).reshape(SIZE)
    data = encoded(Image.fromarray(values), "TIFF")
    with pytest.raises(UsageError, match="holds floats") as e:
        read(data, 1, SIZE)
    assert "--range" in e.value.hint
    wanted = np.clip(np.floor(values.astype(float) * 255 + 0.5), 0, 255)
    assert (grey_of(data, value_range=(0, 1)) == wanted).all()
    values[1, 1] = np.nan
    with pytest.raises(FileError, match="NaN"):
        grey_of(encoded(Image.fromarray(values), "TIFF"), value_range=(0, 1))


def test_wide_integers_need_a_range() -> None:
    data = encoded(Image.fromarray(GREY.astype(np.int32) * 1000), "TIFF")
    with pytest.raises(UsageError, match="unknown range"):
        read(data, 1, SIZE)
    assert (grey_of(data, value_range=(0, 255_000)) == GREY).all()


def test_cmyk_without_a_profile() -> None:
    cmyk = RNG.integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    pixels, record = read(encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"), 3, SIZE)
    c, k = cmyk[..., :3].astype(float), cmyk[..., 3:].astype(float)
    assert np.abs(pixels - (255 - c) * (255 - k) / 255).max() <= 1
    assert "CMYK → sRGB without a profile" in describe(record)


def test_cmyk_jpeg_of_adobe_is_not_inverted() -> None:
    ink = Image.new("CMYK", SIZE[::-1], (255, 0, 0, 0))  # all cyan, no red
    assert (np.abs(rgb_of(encoded(ink, "JPEG", quality=100)).astype(int) - (0, 255, 255)) <= 2).all()


def test_lab() -> None:
    data = encoded(Image.merge("LAB", [Image.new("L", SIZE[::-1], v) for v in (128, 128, 128)]), "TIFF")
    assert (np.abs(rgb_of(data).astype(int) - 119) <= 2).all()  # L* = 50 is sRGB 119


TURNED = {  # EXIF orientation n: what has to be done to the stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, format_: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format_, {})
    plain = np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(RGB), format_, **options))).convert("RGB"))
    wanted = TURNED[orientation](plain)
    pixels, record = read(encoded(Image.fromarray(RGB), format_, exif=exif, **options), 3, wanted.shape[:2])
    assert (pixels == wanted).all()
    assert record["orientation"] == orientation
    assert record["size"] == list(wanted.shape[:2])
    assert ("turned upright" in describe(record)) == (orientation != 1)


def rgb_profile() -> bytes:
    """An RGB profile that swaps red and green: matrix and TRC tags of the sRGB profile, the names exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    r, g = data.index(b"rXYZ"), data.index(b"gXYZ")
    data[r : r + 4], data[g : g + 4] = data[g : g + 4], data[r : r + 4]
    return bytes(data)


def test_embedded_profile_is_applied() -> None:
    for format_, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = encoded(Image.fromarray(RGB), format_, icc_profile=rgb_profile(), **options)
        pixels, record = read(data, 3, SIZE)
        assert np.abs(pixels.astype(int) - RGB[..., [1, 0, 2]]).max() <= 2, format_
        assert "→ sRGB" in describe(record)


def test_embedded_profile_under_alpha_and_palette() -> None:
    rgba = Image.fromarray(np.dstack([RGB, np.full(SIZE, 128, np.uint8)]))
    pixels = rgb_of(encoded(rgba, icc_profile=rgb_profile()), background="black")
    assert np.abs(pixels - RGB[..., [1, 0, 2]] * (128 / 255)).max() <= 2
    palette = Image.fromarray(GREY % 7, "P")
    colours = RGB.reshape(-1, 3)[:7]
    palette.putpalette(colours.tobytes())
    pixels = rgb_of(encoded(palette, icc_profile=rgb_profile()))
    assert np.abs(pixels.astype(int) - colours[GREY % 7][..., [1, 0, 2]]).max() <= 2


def test_srgb_profile_changes_no_pixel() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels, record = read(encoded(Image.fromarray(RGB), icc_profile=profile), 3, SIZE)
    assert (pixels == RGB).all()
    assert describe(record) == ""


def test_unfit_and_broken_profiles_are_ignored_and_said() -> None:
    pixels, record = read(encoded(Image.fromarray(GREY), icc_profile=rgb_profile()), 1, SIZE)
    assert (pixels[..., 0] == GREY).all()
    assert "embedded profile ignored (for RGB, the image is L)" in describe(record)
    pixels, record = read(encoded(Image.fromarray(RGB), icc_profile=b"no profile" * 20), 3, SIZE)
    assert (pixels == RGB).all()
    assert "embedded profile unreadable, ignored" in describe(record)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_need_a_frame(format_: str) -> None:
    frames = [Image.new("RGB", SIZE[::-1], (v, v, v)) for v in (0, 120, 255)]
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    with pytest.raises(UsageError, match="several images") as e:
        read(data, 1, SIZE)
    assert "--frame" in e.value.hint
    for i, value in enumerate((0, 120, 255)):
        pixels, record = read(data, 1, SIZE, how=Preprocessing(frame=i))
        assert (pixels == value).all()
        assert f"frame {i}" in describe(record)
    with pytest.raises(UsageError, match="no frame 3"):
        read(data, 1, SIZE, how=Preprocessing(frame=3))


def test_frame_0_of_a_single_image_is_the_image() -> None:
    assert (grey_of(encoded(Image.fromarray(GREY)), frame=0) == GREY).all()
    with pytest.raises(UsageError, match="no frame 1"):
        grey_of(encoded(Image.fromarray(GREY)), frame=1)


def test_mpo_is_its_first_picture() -> None:
    first, second = Image.new("L", SIZE[::-1], 30), Image.new("L", SIZE[::-1], 200)
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert (np.abs(grey_of(data).astype(int) - 30) <= 1).all()
    assert (np.abs(grey_of(data, frame=1).astype(int) - 200) <= 1).all()


def test_only_known_formats_are_opened() -> None:
    for format_ in ("ICO", "EPS", "PDF", "TGA", "PCX"):
        with pytest.raises(FileError, match="not an image that can be read"):
            read(encoded(Image.fromarray(RGB), format_), 3, SIZE)


def test_fits() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    data = encoded(Image.fromarray(wide))
    pixels, record = read(data, 1, (10, 10))
    assert (pixels == 255).all()
    assert record["box"] == [10, 0, 20, 10]
    assert "cropped to 10 × 10" in describe(record)

    pixels, record = read(data, 1, (30, 30), how=Preprocessing(fit="pad", background="black"))
    assert pixels[:10].max() == 0
    assert pixels[20:].max() == 0
    assert (pixels[10:20, :, 0] == wide).all()
    assert "padded to 30 × 30" in describe(record)

    pixels, record = read(data, 1, (10, 15), how=Preprocessing(fit="stretch"))
    assert (pixels[:, 0] == 0).all()
    assert (pixels[:, 7] > 250).all()
    assert record["box"] == [0, 0, 30, 10]


def test_resampling_does_not_alias() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert (np.abs(read(encoded(Image.fromarray(stripes)), 1, (8, 8))[0].astype(int) - 127.5) < 16).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.sampled_from([*fitting.FITS]))
def test_any_size_fits_any_size(width: int, height: int, w: int, h: int, fit: str) -> None:
    pixels, record = read(
        encoded(Image.new("L", (width, height), 77)), 1, (h, w), how=Preprocessing(fit, background="#4d4d4d")
    )
    assert pixels.shape == (h, w, 1)
    assert (pixels == 77).all()
    describe(record)


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png((30_000, 30_000, 8, 0), b"")  # 900 million pixels announced
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("was decoded"))
        with pytest.raises(FileError, match="too many"):
            read(bomb, 1, SIZE)
    with pytest.raises(FileError, match="too many"):
        grey_of(encoded(Image.fromarray(GREY)), max_pixels=47)
    assert (grey_of(encoded(Image.fromarray(GREY)), max_pixels=48) == GREY).all()


def truncatable() -> dict[str, bytes]:
    smooth = Image.fromarray(np.add.outer(np.arange(24) * 5, np.arange(32) * 4).astype(np.uint8))
    return {
        "png": encoded(smooth),
        "jpeg": encoded(smooth, "JPEG"),
        "progressive": encoded(smooth, "JPEG", progressive=True),
        "webp": encoded(smooth, "WEBP", lossless=True),
        "gif": encoded(smooth, "GIF"),
        "bmp": encoded(smooth, "BMP"),
        "tiff": encoded(smooth, "TIFF"),
        "tiff-deflate": encoded(smooth, "TIFF", compression="tiff_deflate"),
        "ppm": encoded(smooth, "PPM"),
    }


@pytest.mark.parametrize("kind", list(truncatable()))
def test_every_truncation_is_an_error_or_the_same_picture(kind: str) -> None:
    data = truncatable()[kind]
    whole = read(data, 1, (24, 32))[0]
    refused = 0
    for n in range(len(data)):
        try:
            pixels, _ = read(data[:n], 1, (24, 32))
        except FileError:
            refused += 1
        else:
            assert (pixels == whole).all(), f"{n} of {len(data)} bytes gave another picture"
    assert refused > len(data) // 2


def test_every_flipped_byte_of_a_png_is_found() -> None:
    data = encoded(Image.fromarray(GREY))
    for i in range(len(data) - 12):  # the last chunk is empty
        with pytest.raises(FileError):
            read(data[:i] + bytes([data[i] ^ 0x10]) + data[i + 1 :], 1, SIZE)


def test_text_chunks_do_not_pass_for_facts() -> None:
    info = PngImagePlugin.PngInfo()
    for key in ("transparency", "icc_profile", "exif", "duration", "background", "gamma"):
        info.add_text(key, "7")
    assert (grey_of(encoded(Image.fromarray(GREY), pnginfo=info)) == GREY).all()


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(GREY))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    for source in (path, str(path), "-", data):
        pixels, record = read(source, 1, SIZE)
        assert (pixels[..., 0] == GREY).all()
        assert record["bytes"] == len(data)
    with pytest.raises(UsageError, match="there is no file"):
        read(tmp_path / "none.png", 1, SIZE)
    with pytest.raises(UsageError, match="is a folder"):
        read(tmp_path, 1, SIZE)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(FileError, match="not an image"):
        read(tmp_path / "text.png", 1, SIZE)
    (tmp_path / "empty.png").touch()
    with pytest.raises(FileError, match="not an image"):
        read(tmp_path / "empty.png", 1, SIZE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fit": "squeeze"},
        {"background": "off-white-ish"},
        {"frame": -1},
        {"value_range": (1, 0)},
        {"value_range": (0, float("nan"))},
    ],
)
def test_choices_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Preprocessing(**wrong)


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGE", 1)
    within, most = 0, 0
    crop = fitting.crop

    def slow(*args: object) -> object:
        nonlocal within, most
        within += 1
        most = max(most, within)
        time.sleep(0.05)
        within -= 1
        return crop(*args)

    monkeypatch.setitem(fitting.FITS, "crop", slow)
    data = encoded(Image.fromarray(GREY))
    threads = [threading.Thread(target=read, args=(data, 1, SIZE)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert most == 1


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_suffix_is_written_and_read_back(suffix: str, channels: int, tmp_path: Path) -> None:
    if suffix == ".pgm" and channels == 3:
        pytest.skip("portable *grey* map")
    pixels = (GREY if channels == 1 else RGB).reshape(*SIZE, channels)
    path = tmp_path / f"x{suffix}"
    writing.save_image(path, pixels)
    back = read(path, channels, SIZE)[0]
    lossy = {"JPEG": 40, "GIF": 0 if channels == 1 else 255}.get(formats.SUFFIXES[suffix], 0)
    assert np.abs(back.astype(int) - pixels).max() <= lossy
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_saving_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suffix"):
        writing.save_image(tmp_path / "x.pdf", RGB)
    with pytest.raises(DDIMError, match="cannot write"):
        writing.save_image(tmp_path / "none" / "x.png", RGB)


def test_tensors_and_pixels_are_inverse() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    tensor = levels.to_tensor(pixels)
    assert tensor.shape == (1, 1, 16, 16)
    assert tensor.min() == -1
    assert tensor.max() == 1
    assert (levels.to_pixels(tensor) == pixels).all()
    assert levels.to_pixels(torch.full((1, 1, 1, 1), 3.0)).item() == 255


@pytest.mark.parametrize(("suffix", "side"), [(".webp", 16383), (".gif", 65535), (".jpg", 65500), (".png", 70000)])
def test_the_largest_side_of_each_format(suffix: str, side: int, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    writing.save_image(path, np.zeros((1, side, 1), np.uint8))
    with Image.open(path) as image:
        assert image.size == (side, 1)
    if formats.SUFFIXES[suffix] in formats.LARGEST:
        for shape in ((1, side + 1, 1), (side + 1, 1, 1)):
            with pytest.raises(UsageError, match=f"holds at most {side} a side"):
                writing.save_image(path, np.zeros(shape, np.uint8))
            with pytest.raises(DDIMError, match="cannot make a"):
                writing.to_bytes(np.zeros(shape, np.uint8), suffix)


@pytest.mark.parametrize("channels", [2, 4])
def test_images_have_one_or_three_channels(channels: int, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=f"image would have {channels} channels"):
        read(encoded(Image.fromarray(GREY)), channels, SIZE)
    with pytest.raises(FileError, match=f"would have {channels} channels"):
        writing.save_image(tmp_path / "x.png", np.zeros((*SIZE, channels), np.uint8))
    with pytest.raises(FileError, match=f"would have {channels} channels"):
        datasets.load_dataset(tmp_path, channels, SIZE)


def test_what_is_not_finite_is_found_of_torch_and_of_numpy() -> None:
    for value in (np.nan, np.inf, -np.inf):
        array = np.array([0, value, 1])
        for images_ in (array, torch.from_numpy(array)):
            with pytest.raises(DDIMError, match="the model m gives values that are not finite"):
                levels.check_finite(images_, "m")
    levels.check_finite(np.array([-3.0, 1e300]), "m")


def test_pillow_bounds_the_frames_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert (grey_of(encoded(Image.new("L", (40, 40))), max_pixels=1600) == 0).all()
    small = encoded(Image.new("L", (2, 2)), "GIF")
    start = small.index(b",")
    frame = small[start:-1]
    cleared = b"!\xf9\x04\x08\0\0\0\0"  # to the background, for which Pillow takes memory at once
    huge = cleared + frame[:5] + b"\xff\xff\xff\xff" + frame[9:]
    with pytest.raises(FileError, match="too many pixels"):
        grey_of(small[:start] + frame + huge + frame + b";", frame=2)


def png(header: tuple[int, int, int, int], rows: bytes) -> bytes:
    """A PNG of (width, height, bits, colour type) from its filtered rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", *header, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_no_file_is_written_over_another_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("a.png")
    formats.check_apart(tmp_path / "a.png", ["\0", "b.png", tmp_path / "b" / "a.png"])
    for other in ("a.png", "./b/../a.png", "link.png"):
        with pytest.raises(UsageError, match="would be written over"):
            formats.check_apart(tmp_path / "a.png", [f"{tmp_path}/{other}"])
