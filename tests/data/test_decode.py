"""Every format and mode decodes to the right pixels; damaged files are refused, never half-read."""

import io
import logging
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
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import BadImage
from openjepa.data.decode import decode
from openjepa.data.headers import header_of, orientation_of, read_header
from openjepa.data.opening import turned
from openjepa.data.pixels import extent_of, to_unit, with_channels

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


def png16(array: np.ndarray, interlaced: bool = False) -> bytes:
    """A 16-bit PNG of 2 to 4 channels, by the specification (ISO/IEC 15948): no library at hand writes one."""
    height, width, channels = array.shape
    # Adam7's passes: first row and column, and the steps.
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    lines = b""
    for top, left, down, across in passes if interlaced else [(0, 0, 1, 1)]:
        part = array[top::down, left::across]
        rows = np.frombuffer(part.astype(">u2").tobytes(), np.uint8).reshape(part.shape[0], -1)
        before = np.pad(rows, ((0, 0), (2 * channels, 0)))[:, : rows.shape[1]]
        lines += b"".join(b"\1" + line.tobytes() for line in rows - before)  # filter 1: less the pixel to the left
    kind = {2: 4, 3: 2, 4: 6}[channels]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def tiff(array: np.ndarray, **options) -> bytes:
    """A TIFF of an array H W C."""
    file = io.BytesIO()
    planes = options.get("planarconfig") == "separate"
    tifffile.imwrite(file, np.moveaxis(array, -1, 0).copy() if planes else array, metadata=None, **options)
    return file.getvalue()


def lzw_tiff(array: np.ndarray) -> bytes:
    """An RGB TIFF packed with LZW: every byte for itself, in 9 bits, and the table cleared before it needs more."""
    data = array.astype("<u2").tobytes()
    codes = [code for start in range(0, len(data), 250) for code in (256, *data[start : start + 250])] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    packed = np.packbits(np.array(list(bits), np.uint8)).tobytes()
    height, width, channels = array.shape
    tags = [(256, width), (257, height), (258, 158), (259, 5), (262, 2), (273, 164), (277, channels), (278, height)]
    tags += [(279, len(packed)), (284, 1)]
    # The entries: 2 bytes for their number, 12 for each, 4 for no next page; then the bits of each sample.
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, at) for tag, at in tags
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(158, b"\0") + struct.pack("<3H", 16, 16, 16) + packed


DEEP = np.random.default_rng(1).integers(0, 65536, (13, 18, 4), dtype=np.uint16)
SIXTEEN = {
    "png": png16,
    "interlaced": lambda array: png16(array, interlaced=True),
    "tiff": lambda array: tiff(array, photometric="rgb"),
    "motorola": lambda array: tiff(array, photometric="rgb", byteorder=">"),
    "strips": lambda array: tiff(array, photometric="rgb", rowsperstrip=4),
    "tiles": lambda array: tiff(array, photometric="rgb", tile=(16, 16)),
    "deflate": lambda array: tiff(array, photometric="rgb", compression="zlib", byteorder="<"),
    "deflate motorola": lambda array: tiff(array, photometric="rgb", compression="zlib", byteorder=">"),
    "predicted": lambda array: tiff(array, photometric="rgb", compression="zlib", predictor=True),
    "planes": lambda array: tiff(array, photometric="rgb", planarconfig="separate"),
    "motorola planes": lambda array: tiff(array, photometric="rgb", planarconfig="separate", byteorder=">"),
    "deflate planes": lambda array: tiff(array, photometric="rgb", planarconfig="separate", compression="zlib"),
    "lzw": lzw_tiff,
}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_sixteen_bits_of_colours_are_kept(kind, tmp_path):
    data = SIXTEEN[kind](DEEP[..., :3])
    (tmp_path / "x").write_bytes(data)
    for given in (data, tmp_path / "x"):
        picture = decode(given, "x")
        assert picture.dtype == np.uint16
        np.testing.assert_array_equal(picture, DEEP[..., :3])
        assert read_header(given, "x") == header_of(picture)


@pytest.mark.parametrize("kind", ["png", "tiff", "planes"])
def test_sixteen_bit_colours_train_as_eight_bit_ones_of_the_same_shade(kind):
    eight = Image.fromarray(COLOUR)
    sixteen = decode(SIXTEEN[kind](COLOUR.astype(np.uint16) * 257), "x")
    for size, channels, tolerance in (((12, 16), 3, 0), ((12, 16), 1, 0.003), ((8, 8), 3, 0.003)):
        seen = Preprocessing(size=size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
        one, other = (to_unit(seen.fit(picture)).numpy() for picture in (eight, sixteen))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def transparent(array: np.ndarray, kind: str, premultiplied: bool) -> bytes:
    if kind == "png":
        return png16(array)
    options = {"photometric": "minisblack" if array.shape[2] == 2 else "rgb"}
    options["planarconfig"] = "separate" if kind == "planes" else "contig"
    return tiff(array, extrasamples=["assocalpha" if premultiplied else "unassalpha"], **options)


@pytest.mark.parametrize(
    ("kind", "premultiplied"),
    [("png", False), ("tiff", False), ("tiff", True), ("planes", False), ("planes", True)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_of_sixteen_bits_lies_over_white_as_that_of_eight(channels, kind, premultiplied):
    colour, alpha = COLOUR[..., :channels], COLOUR[:, ::-1, 1:2] + np.uint8(60)
    alpha[:3], alpha[3:5] = 0, 255
    eight = np.concatenate([colour, alpha], -1)
    expected = np.asarray(with_channels(Image.fromarray(eight), channels)).reshape(12, 16, channels).astype(float)
    stored = colour * (alpha / 255) if premultiplied else colour
    data = transparent(np.rint(np.concatenate([stored, alpha], -1) * 257.0).astype(np.uint16), kind, premultiplied)
    picture = decode(data, "x")
    assert picture.dtype == np.uint16
    assert picture.shape == (12, 16, channels)
    assert np.abs(picture / 257 - expected).max() <= 1
    np.testing.assert_array_equal(picture[:3], 65535)
    np.testing.assert_array_equal(picture[3:5], colour[3:5].astype(np.uint16) * 257)
    assert read_header(data, "x") == header_of(picture)


def test_a_band_of_sixteen_bits_that_is_not_alpha_is_kept():
    for planar in ("contig", "separate"):
        for options in ({"photometric": "rgb", "extrasamples": ["unspecified"]}, {"photometric": "minisblack"}):
            data = tiff(DEEP, planarconfig=planar, **options)
            np.testing.assert_array_equal(decode(data, "x"), DEEP)
            assert read_header(data, "x")[:4] == (13, 18, 4, 16)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_inks_of_sixteen_bits_are_the_colours_of_eight(planar):
    inks = np.concatenate([COLOUR, COLOUR[::-1, ::-1, :1]], -1)
    expected = np.asarray(Image.frombytes("CMYK", (16, 12), inks.tobytes()).convert("RGB"))
    found = decode(tiff(inks.astype(np.uint16) * 257, photometric="separated", planarconfig=planar), "x")
    assert np.abs(found / 257 - expected).max() <= 1


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int16, np.float32])
def test_white_may_be_zero_in_every_depth(dtype, compression, byteorder):
    shown = np.arange(12 * 16).reshape(12, 16) * 5 % 256
    stored = {
        bool: shown < 128,
        np.uint8: 255 - shown,
        np.uint16: 65535 - shown * 257,
        np.int16: 32767 - shown,
        np.float32: (255 - shown) / 255,
    }[dtype].astype(dtype)
    expected = {bool: (shown >= 128) * 255, np.uint16: shown * 257, np.int16: 32768 + shown}.get(dtype, shown)
    picture = decode(tiff(stored, photometric="miniswhite", compression=compression, byteorder=byteorder), "x")
    found = pixels(picture).reshape(12, 16)
    np.testing.assert_allclose(found * 255 if dtype == np.float32 else found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_big_endian_numbers_of_every_type(dtype, compression):
    values = (GREY / np.float32(256) if dtype == np.float32 else GREY.astype(np.int64) * 150).astype(dtype)
    found = decode(tiff(values, photometric="minisblack", compression=compression, byteorder=">"), "x")
    np.testing.assert_allclose(found[..., 0], values, rtol=0, atol=1e-6)


def test_many_tiffs_leave_nothing_behind():
    data = tiff(np.zeros((12, 16, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    decode(data, "x")
    heard = len(logging.getLogger("tifffile").handlers)
    decode(data, "x")
    assert len(logging.getLogger("tifffile").handlers) == heard


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_may_be_zero_beside_transparency_and_in_stacks(dtype):
    whole = np.iinfo(dtype).max
    grey = np.arange(12 * 16, dtype=dtype).reshape(12, 16) + np.array(whole // 2, dtype)
    alpha = np.full_like(grey, whole)
    alpha[:3] = 0
    data = tiff(np.stack([grey, alpha], -1), photometric="miniswhite", extrasamples=["unassalpha"])
    found = decode(data, "x")[..., 0]
    np.testing.assert_array_equal(found, np.where(alpha > 0, whole - grey, whole))
    pages = io.BytesIO()
    tifffile.imwrite(pages, np.stack([grey, alpha]), photometric="miniswhite")
    np.testing.assert_array_equal(decode(pages.getvalue(), "x"), np.stack([whole - grey, whole - alpha], -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (3, np.uint16), (5, np.uint8)])
def test_exif_orientation_of_tiff(channels, dtype, planar, compression, orientation):
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (12, 16, channels)).astype(dtype)
    photometric = "rgb" if channels == 3 else "minisblack"
    turn = [(274, "H", 1, orientation, True)]
    data = tiff(array, photometric=photometric, planarconfig=planar, compression=compression, extratags=turn)
    picture = decode(data, "x")
    expected = pixels(decode(saved(Image.fromarray(GREY), "PNG", exif=exif_of(orientation)), "x"))
    np.testing.assert_array_equal(turned(GREY, orientation), expected)
    np.testing.assert_array_equal(pixels(picture), turned(array, orientation))
    assert read_header(data, "x")[:2] == expected.shape
    assert orientation_of(data, "x") == orientation


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_exif_orientation_of_a_sixteen_bit_png():
    whole = png16(DEEP[..., :3])
    end = whole.index(b"IDAT") - 4
    data = whole[:end] + chunk(b"eXIf", exif_of(6).tobytes()[6:]) + whole[end:]
    picture = decode(data, "x")
    np.testing.assert_array_equal(picture, turned(DEEP[..., :3], 6))
    assert read_header(data, "x") == header_of(picture)


@pytest.mark.parametrize("array", [GREY, COLOUR, DEEP[..., :3]], ids=["grey", "colour", "sixteen"])
def test_an_exif_orientation_after_the_pixels_of_a_png_is_ignored_by_all(array):
    whole = png16(array) if array.dtype == np.uint16 else saved(Image.fromarray(array), "PNG")
    data = whole[:-12] + chunk(b"eXIf", exif_of(6).tobytes()[6:]) + whole[-12:]
    picture = decode(data, "x")
    np.testing.assert_array_equal(pixels(picture), array)
    assert read_header(data, "x") == header_of(picture)
    assert orientation_of(data, "x") == 1


@pytest.mark.parametrize("kind", SIXTEEN)
def test_damaged_sixteen_bit_files_are_bad(kind):
    data = SIXTEEN[kind](DEEP[..., :3])
    for share in (0.2, 0.6):
        with pytest.raises(BadImage):
            decode(data[: int(len(data) * share)], "x")
    generator, content = np.random.default_rng(0), np.frombuffer(data, np.uint8)
    for _ in range(30):
        damaged = content.copy()
        damaged[generator.integers(0, min(len(data), 400), 3)] = generator.integers(0, 256, 3)
        for read in (decode, read_header, orientation_of):
            try:
                read(damaged.tobytes(), "x")
            except BadImage:
                continue


def test_what_a_decoder_stumbles_over_is_the_files_fault_and_what_is_missing_here_is_not(monkeypatch):
    file = io.BytesIO()
    described = "ImageJ=1.11a\nimages=2\norder=5\n"  # of which tifffile makes an AttributeError
    tifffile.imwrite(
        file, np.zeros((2, 8, 9), np.uint8), photometric="minisblack", description=described, metadata=None
    )
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode(file.getvalue(), "x")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImportError):
        decode(file.getvalue(), "x")


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_tiff_is_scaled_to_unit(white):
    values = np.linspace(0, 1, GREY.size, dtype=np.float32).reshape(GREY.shape)
    picture = decode(saved(Image.fromarray(values * np.float32(white)), "TIFF"), "x")
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture[..., 0], values, atol=1e-6)


@pytest.mark.parametrize("bad", [-1.0, 1e6])
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
    for orientation in (0, 9):
        data = saved(Image.fromarray(COLOUR), "JPEG", exif=exif_of(orientation))
        assert extent_of(decode(data, "x")) == read_header(data, "x")[:2] == (12, 16)
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


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb(width: int, height: int) -> bytes:
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
    read = "import sys; from openjepa.data.headers import read_header; print(read_header(sys.argv[1], 'x').height)"

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
        "bright": (five / 245, np.float32, (five / 245).astype(np.float32)),  # a little above 1
        "brighter": (five / 130, np.float32, (five / 130).astype(np.float32)),  # up to 2, of which nothing is cut
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
        (np.zeros((13, 64, 64), np.uint16), "channels first"),
        (np.zeros((13, 16, 16), np.uint16), "channels first"),
        (np.zeros((8, 100, 60), np.uint8), "channels first"),
        (np.array([[None, 1]], object), "objects"),
        (np.zeros((4, 4), np.complex64), "complex"),
        (np.full((4, 4), -3), "scale"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, reason):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(BadImage, match=reason):
        decode(tmp_path / "x.npy", "x")


@pytest.mark.parametrize("shape", [(9, 9, 200), (64, 64, 13), (64, 128, 200), (32, 40, 4), (3, 40, 4), (20, 30, 40)])
def test_arrays_with_their_channels_last_are_images(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    assert read_header(tmp_path / "x.npy", "x")[:3] == shape


def test_photos_with_more_pictures_behind_them_are_read_as_the_first(tmp_path):
    """Cameras' MPO, whose first picture is a whole JPEG: as fast as one, and turned as its EXIF block says."""
    random = np.random.default_rng(0)
    rough = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((1600, 1200))
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        rough.save(tmp_path / "x.mpo", save_all=True, append_images=[rough.resize((160, 120))], exif=exif)
        rough.save(tmp_path / "x.jpg", exif=exif)
        with Image.open(tmp_path / "x.mpo") as image:
            assert image.format == "MPO"
        for at_least in (None, (100, 100)):
            found, wanted = (decode(tmp_path / f"x.{suffix}", "x", at_least) for suffix in ("mpo", "jpg"))
            assert np.array_equal(np.asarray(found), np.asarray(wanted))
        assert np.asarray(found).shape[0] == (150 if orientation == 1 else 200)


def test_heic_photos_are_read_upright_or_their_owner_is_told_how(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(rough).save(tmp_path / "x.heic", exif=exif.tobytes(), quality=95)
    Image.init()
    monkeypatch.setattr(Image, "OPEN", {name: how for name, how in Image.OPEN.items() if name != "HEIF"})
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(BadImage, match=r"it is HEIC, for which pip install 'openjepa\[heif\]'; or convert"):
            decode(tmp_path / "x.heic", "x")
    assert read_header(tmp_path / "x.heic", "x") == (64, 48, 3, 8, "RGB")
    found = np.asarray(decode(tmp_path / "x.heic", "x"), np.float32)
    assert np.abs(found - np.asarray(rough.transpose(Image.Transpose.ROTATE_270), np.float32)).mean() < 12


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


@pytest.mark.parametrize("shape", [(64, 64, 40), (200, 200, 33), (300, 200, 13)])
def test_unnamed_pages_that_are_the_rows_of_a_cube_keep_its_channels_last(tmp_path, shape):
    cube = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", cube)
    assert np.array_equal(np.asarray(decode(tmp_path / "x.tif", "x")), cube)


@pytest.mark.parametrize("shape", [(100, 64, 64), (64, 64, 64), (40, 20, 30), (9, 64, 40), (200, 28, 28)])
def test_unnamed_pages_are_channels_however_many_they_are(tmp_path, shape):
    pages = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pages, photometric="minisblack")
    np.testing.assert_array_equal(decode(tmp_path / "x.tif", "x"), np.moveaxis(pages, 0, -1))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((np.nan, 1.0), r"holds NaN \(1 of 6 values\): fill them with numbers, or leave the image out"),
        ((np.inf, 1.0), r"holds infinity \(1 of 6 values\)"),
        ((-np.inf, np.nan), r"holds NaN \(1 of 6 values\) and infinity \(1 of 6 values\)"),
    ],
)
def test_what_is_no_number_is_counted(tmp_path, values, told):
    array = np.full((2, 3), 0.5, np.float32)
    array[1, :2] = values
    np.save(tmp_path / "x.npy", array)
    tifffile.imwrite(tmp_path / "x.tif", array)
    for name in ("x.npy", "x.tif"):
        with pytest.raises(BadImage, match=told):
            decode(tmp_path / name, "x")


def test_tiff_with_a_fourth_band_that_is_not_alpha_keeps_it(tmp_path):
    array = np.random.default_rng(0).integers(0, 250, (20, 30, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(decode(tmp_path / "x.tif", "x"), array)


def test_tiff_of_several_pages_gives_the_first(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (7, 99)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    assert pixels(decode(tmp_path / "x.tif", "x"))[0, 0] == 7


def test_a_mistake_in_this_package_is_no_bad_image(monkeypatch):
    monkeypatch.delattr("openjepa.data.opening._NPY")
    with pytest.raises(NameError, match="_NPY"):
        decode(b"whatever it is", "one")
