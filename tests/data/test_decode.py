"""Every format and mode decodes to the right pixels; damaged files are refused, never half-read."""

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

import openjepa.data.decode
from openjepa.data.base import BadImage
from openjepa.data.decode import decode, header_of, read_header
from openjepa.data.pixels import extent_of

GREY = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(picture) -> np.ndarray:
    return np.asarray(picture)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_keep_the_pixels(kind, options):
    picture = decode(saved(Image.fromarray(COLOUR), kind, **options), "x")
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(pixels(picture), COLOUR)


@pytest.mark.parametrize("fast", [False, True])
def test_jpeg_is_close_and_cmyk_jpeg_is_the_same_colour(fast, monkeypatch):
    monkeypatch.setattr(openjepa.data.decode, "_SIMPLEJPEG", fast)
    smooth = np.broadcast_to(np.array([200, 60, 30], np.uint8), (32, 32, 3))
    for image in (Image.fromarray(smooth), Image.fromarray(smooth).convert("CMYK")):
        picture = decode(saved(image, "JPEG", quality=95), "x")
        if fast and image.mode == "RGB":
            assert pixels(picture).shape == (32, 32, 3)
        else:
            assert picture.mode == "RGB"
        assert np.abs(pixels(picture).astype(int) - smooth).max() <= 6


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
def test_the_fast_decoder_of_jpegs_gives_pillows_pixels_whole_scaled_and_damaged(mode, options, orientation):
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    image = coarse.resize((203, 151), Image.Resampling.BICUBIC).convert(mode)
    whole = saved(image, "JPEG", quality=90, exif=exif, **options)
    damaged = bytearray(whole)
    damaged[-2000:-1990] = bytes(10)
    assert pytest.importorskip("simplejpeg")

    def both(data: bytes, at_least: tuple[int, int] | None) -> list[np.ndarray | str]:
        found = []
        for fast in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(openjepa.data.decode, "_SIMPLEJPEG", fast)
                try:
                    found.append(pixels(decode(data, "x", at_least)))
                except BadImage as error:
                    found.append(error.reason)
        return found

    for at_least in (None, (90, 90), (30, 30), (10, 10), (500, 500)):
        slow, fast = both(whole, at_least)
        np.testing.assert_array_equal(np.squeeze(slow), np.squeeze(fast))
    for data in (bytes(damaged), whole[:-900], whole[:-2], whole[:100]):
        slow, fast = both(data, None)
        np.testing.assert_array_equal(np.squeeze(slow), np.squeeze(fast))


def test_gif_gives_its_first_frame():
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(decode(data, "x").convert("L"))[0, 0] == 10


def test_grey_one_bit_palette_and_alpha():
    assert decode(saved(Image.fromarray(GREY), "PNG"), "x").mode == "L"
    bits = Image.fromarray(GREY > 100)
    np.testing.assert_array_equal(pixels(decode(saved(bits, "PNG"), "x")), np.where(GREY > 100, 255, 0))
    palette = Image.fromarray(COLOUR).quantize(16)
    found = decode(saved(palette, "PNG"), "x")
    assert found.mode == "RGB"
    np.testing.assert_array_equal(pixels(found), pixels(palette.convert("RGB")))
    assert decode(saved(palette, "PNG", transparency=0), "x").mode == "RGBA"
    for mode in ("LA", "RGBA"):
        assert decode(saved(Image.fromarray(COLOUR).convert(mode), "PNG"), "x").mode == mode


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_kept(kind):
    deep = GREY.astype(np.uint16) * 257 + 3
    picture = decode(saved(Image.fromarray(deep), kind), "x")
    assert picture.dtype == np.uint16
    np.testing.assert_array_equal(picture[..., 0], deep)


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_tiff_is_scaled_to_unit(white):
    values = np.linspace(0, 1, GREY.size, dtype=np.float32).reshape(GREY.shape)
    picture = decode(saved(Image.fromarray(values * np.float32(white)), "TIFF"), "x")
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture[..., 0], values, atol=1e-6)


@pytest.mark.parametrize("bad", [-1.0, 1e6, np.nan])
def test_float_values_that_are_no_intensities_are_refused(bad):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = bad
    with pytest.raises(BadImage, match="scale them"):
        decode(saved(Image.fromarray(values), "TIFF"), "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_header(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(GREY), "PNG", exif=exif)
    expected = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY[::-1].T,
        7: GREY[::-1, ::-1].T,
        8: GREY[:, ::-1].T,
    }[orientation]
    np.testing.assert_array_equal(pixels(decode(data, "x")), expected)
    assert read_header(data, "x")[:2] == expected.shape


def test_damaged_exif_is_ignored():
    data = saved(Image.fromarray(COLOUR), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0")
    assert extent_of(decode(data, "x")) == (12, 16)


def test_draft_makes_big_jpegs_smaller_but_never_too_small():
    data = saved(Image.fromarray(COLOUR).resize((1600, 1200)), "JPEG")
    assert extent_of(decode(data, "x")) == (1200, 1600)
    assert extent_of(decode(data, "x", at_least=(140, 200))) == (150, 200)
    assert extent_of(decode(data, "x", at_least=(151, 200))) == (300, 400)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(Image.fromarray(COLOUR).resize((1600, 1200)), "JPEG", exif=exif)
    assert extent_of(decode(turned, "x", at_least=(200, 140))) == (200, 150)


@pytest.mark.parametrize(("kind", "share"), [("JPEG", 0.6), ("PNG", 0.6), ("WEBP", 0.6), ("GIF", 0.6), ("BMP", 0.6)])
def test_truncated_files_are_bad(kind, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(BadImage) as caught:
        decode(data[: int(len(data) * share)], "some/file")
    assert caught.value.reference == "some/file"
    assert caught.value.reason


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is text", b"\xff\xd8\xff\xe0junk", b"\x89PNG\r\n\x1a\njunk", b"II*\0"]
)
def test_what_is_no_image_is_bad(data):
    with pytest.raises(BadImage):
        decode(data, "x")
    with pytest.raises(BadImage):
        read_header(data, "x")


def test_random_damage_never_raises_anything_else():
    generator = np.random.default_rng(0)
    outcomes = set()
    for kind in ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"):
        data = np.frombuffer(saved(Image.fromarray(COLOUR), kind), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[generator.integers(0, len(data), 4)] = generator.integers(0, 256, 4)
            try:
                decode(damaged.tobytes(), "x")
                outcomes.add("read")
            except BadImage:
                outcomes.add("bad")
    assert outcomes == {"read", "bad"}


def bomb(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_decompression_bomb_is_refused_by_its_header(side):
    with pytest.raises(BadImage, match="pixels"):
        decode(bomb(side, side), "x")
    with pytest.raises(BadImage, match="pixels"):
        read_header(bomb(side, side), "x")


def test_larger_images_are_allowed_by_the_environment(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    read = "import sys; from openjepa.data.decode import read_header; print(read_header(sys.argv[1], 'x').height)"

    def said(limit: str) -> str:
        environment = {**os.environ, "OPENJEPA_MAX_PIXELS": limit}
        command = [sys.executable, "-c", read, str(tmp_path / "large.png")]
        found = subprocess.run(command, env=environment, capture_output=True, text=True)
        return found.stdout + found.stderr

    assert said("100000000") == "10000\n"
    assert "(100000000 pixels)" in said("40000000"), "Pillow itself refuses twice the limit"
    assert "To allow it, set OPENJEPA_MAX_PIXELS" in said("40000000")
    assert "set OPENJEPA_MAX_PIXELS=100000000" in said("99999999")
    assert "whole number of pixels above 0, got '1e9'" in said("1e9")


def test_pillow_warnings_do_not_leak():
    palette = Image.fromarray(COLOUR).quantize(4)
    data = saved(palette, "PNG", transparency=bytes([0, 100, 200, 255]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode(data, "x").mode == "RGBA"
        decode(saved(Image.fromarray(COLOUR), "TIFF"), "x")
    assert not caught


def test_arrays(tmp_path):
    generator = np.random.default_rng(0)
    five = generator.integers(0, 255, (7, 9, 5), dtype=np.uint8)
    cases = {
        "five": (five, np.uint8, five),
        "flat": (five[..., 0], np.uint8, five[..., :1]),
        "deep": (five.astype(np.uint16) * 100, np.uint16, five.astype(np.uint16) * 100),
        "int": (five.astype(np.int64), np.uint8, five),
        "bool": (five > 99, np.uint8, (five > 99) * 255),
        "short": (five.astype(np.int16), np.uint16, five),  # whatever its largest value: 12 bits, as often as not
        "bright": (five / 220, np.float32, np.minimum(five / 220, 1).astype(np.float32)),  # reflectance above 1
        "double": (five / 255, np.float32, (five / 255).astype(np.float32)),
        "endian": (five.astype(">u2"), np.uint16, five),
    }
    for name, (array, dtype, expected) in cases.items():
        np.save(tmp_path / name, array)
        found = decode(tmp_path / f"{name}.npy", name)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)
        assert read_header(tmp_path / f"{name}.npy", name) == header_of(found)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "shape"),
        (np.zeros((3, 32, 40), np.uint8), "channels first"),
        (np.array([[None, 1]], object), "objects"),
        (np.zeros((4, 4), np.complex64), "complex"),
        (np.full((4, 4), -3), "scale"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, reason):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(BadImage, match=reason):
        decode(tmp_path / "x.npy", "x")


def test_truncated_array(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((64, 64, 5), np.uint8))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:4000])
    with pytest.raises(BadImage):
        decode(tmp_path / "x.npy", "x")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages", "stacked", "imagej"])
def test_tiff_of_six_channels(tmp_path, dtype, layout):
    array = np.random.default_rng(0).integers(0, 250, (20, 30, 6)).astype(dtype)
    planes = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    path = tmp_path / "x.tif"
    if layout == "contig":
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
    elif layout == "separate":
        tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
    elif layout == "pages":
        tifffile.imwrite(path, planes, photometric="minisblack")
    elif layout == "stacked":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        tifffile.imwrite(path, planes, imagej=True, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(decode(path, "x"), array)
    assert read_header(path, "x")[:4] == (20, 30, 6, np.dtype(dtype).itemsize * 8)


def test_tiff_with_a_fourth_band_that_is_not_alpha_keeps_it(tmp_path):
    array = np.random.default_rng(0).integers(0, 250, (20, 30, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(decode(tmp_path / "x.tif", "x"), array)


def test_tiff_of_several_pages_gives_the_first(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (7, 99)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    assert pixels(decode(tmp_path / "x.tif", "x"))[0, 0] == 7
