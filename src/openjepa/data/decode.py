"""From a file's bytes to pixels: every format and mode that Pillow, NumPy and tifffile read, and nothing half-read.

8-bit images come as Pillow images (modes L, LA, RGB, RGBA) or, of a fast decoder, as arrays H W C of 1 or 3 channels;
16-bit, float and many-channel ones as arrays. An array's transparency, if the file names one, lies over white already.
"""

import importlib.util
import io
import os
import struct
import sys
import tokenize
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped, UInt8, UInt16
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from openjepa.data.arrays import (
    FIRST_PAGE,
    File,
    White,
    allow_pixels,
    as_picture,
    first_image,
    open_tiff,
    own_white,
    pages_as_read,
    read_npy,
    refuse_bomb,
)
from openjepa.data.base import BadImage, Header, Picture

_SUFFIXES = "jpg jpeg jpe jfif png webp tif tiff bmp dib gif npy ppm pgm pbm pnm jp2 avif heic heif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split(" "))
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"BM", b"\x93NUMPY")
_NPY = b"\x93NUMPY"
# The brands of an ISO media file (bytes 8 to 12, behind "ftyp") that HEIC photos have.
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112
# TIFF's NewSubfileType, and its bits for a smaller version of another page and for a mask of one.
_SUBFILE, _REDUCED, _MASK = 254, 1, 4
# TIFF's numbers: what a sample means (PhotometricInterpretation), and what one beyond the colours is (ExtraSamples).
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK = 0, 1, 2, 5
_NO_ALPHA, _PREMULTIPLIED, _ALPHA = 0, 1, 2
# Colours of which Pillow keeps 8 bits of 16, by its names for how they are packed.
_SIXTEEN_BITS = {
    "RGB": (_RGB, _NO_ALPHA),
    "RGBA": (_RGB, _ALPHA),
    "RGBa": (_RGB, _PREMULTIPLIED),
    "CMYK": (_CMYK, _NO_ALPHA),
    "LA": (_BLACK_IS_ZERO, _ALPHA),
}
_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None  # not required
_OVER_WHITE = "the last channel is transparency, laid over white"
# What decoders raise on damaged files: Pillow promises OSError, its plug-ins and the libraries below also raise these.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    tokenize.TokenError,
    Image.DecompressionBombError,
)


def looks_like_image(head: bytes) -> bool:
    """Whether the first bytes of a file without a suffix are those of an image."""
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def decode(
    data: str | os.PathLike[str] | bytes | memoryview,
    reference: str,
    at_least: tuple[int, int] | None = None,
    white: White = own_white,
) -> Picture:
    """The pixels of an image file (a path, or its bytes), upright; the first frame or page of several.

    Only an EXIF orientation that stands before the pixels counts: one in a PNG's chunk after them, which a header does
    not show, is ignored here as there. ``white`` as :func:`as_picture` has it.

    Raises:
        BadImage: it is not an image, is damaged or truncated, or has more pixels than Pillow's limit.
    """
    with opened(data, reference) as file:
        head = _head(file)
        if head.startswith(_NPY):
            return as_picture(read_npy(file, reference), reference, white)
        with _pillow(file, head) as image:
            if image is None:
                return _by_tifffile(file, reference, white)
            refuse_bomb(*image.size, reference)
            orientation = _orientation(image)
            if image.format in ("JPEG", "MPO"):  # MPO: a JPEG with more pictures behind it, as many cameras write
                if at_least is not None:
                    image.draft(None, at_least if orientation >= 5 else (at_least[1], at_least[0]))
                if orientation == 1 and (pixels := _by_simplejpeg(file, image)) is not None:
                    return pixels
            if (packing := _packing(image)) is not None:
                return _sixteen_bits(file, *packing)
            picture = standard(upright(image), reference, white)
            if isinstance(picture, np.ndarray) and _tags(image).get(262) == _WHITE_IS_ZERO:  # Pillow does 8 bits itself
                return _as_seen(picture, _WHITE_IS_ZERO)
            return picture


def _packing(image: Image.Image) -> tuple[str, str] | None:
    """How the samples of a 16-bit colour image are packed: Pillow's names for the colours and for the order of bytes
    (B, L or the machine's own, N); None for images that Pillow reads whole."""
    if image.format not in ("PNG", "TIFF") or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return None
    packed = image.tile[0][3]
    colours, _, bits = str(packed[0] if isinstance(packed, tuple) else packed).partition(";")
    return (colours, bits[2:]) if bits.startswith("16") and colours in _SIXTEEN_BITS else None


def _sixteen_bits(file: File, colours: str, order: str) -> UInt16[np.ndarray, "_H _W _C"]:
    """A 16-bit colour image that Pillow can open; it keeps the high byte of each sample, and the low one if told that
    the bytes are in the other order."""
    file.seek(0)
    data = file.read()  # libtiff moves an open file's position unseen
    if colours == "LA":  # as many bytes as 8-bit RGBA, which are kept as they are
        array = _unpacked(data, "RGBA").view(">u2").astype(np.uint16)
    else:
        plain = colours.upper()  # premultiplied colours as they are stored
        little = order == "L" or (order == "N" and sys.byteorder == "little")
        high, low = (_unpacked(data, f"{plain};16{name}") for name in ("LB" if little else "BL"))
        array = (high.astype(np.uint16) << 8) | low
    return _as_seen(array, *_SIXTEEN_BITS[colours])


def _unpacked(data: bytes, rawmode: str) -> UInt8[np.ndarray, "_H _W _C"]:
    """The bytes that Pillow keeps, upright, if it takes the samples to be packed as ``rawmode`` says."""

    def repacked(tile: Any) -> Any:
        settings = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
        parts = (*tile[:3], settings)
        return type(tile)(*parts) if hasattr(tile, "_fields") else parts  # plain tuples before Pillow 11

    with Image.open(io.BytesIO(data)) as image:
        image.tile = [repacked(tile) for tile in image.tile]
        return np.asarray(upright(image))


def _by_tifffile(file: File, reference: str, white: White) -> Num[np.ndarray, "_H _W _C"]:
    """A TIFF that is none of Pillow's, upright and as it is to be seen."""
    with open_tiff(file) as tiff:
        array = np.asarray(as_picture(first_image(tiff, reference), reference, white))
        page: Any = tiff.pages.first
        alpha = _alpha_of(page) if array.shape[2] == page.samplesperpixel else _NO_ALPHA
        photometric, bits, orientation = int(page.photometric), page.bitspersample, _orientation_by_tifffile(tiff)
    return turned(_as_seen(array, photometric, alpha, bits), orientation)


def _alpha_of(page: Any) -> int:
    """What the last sample of a TIFF's page is said to be, by TIFF's number."""
    photometric, extra, samples = int(page.photometric), page.extrasamples, page.samplesperpixel
    if (photometric, samples) not in ((_WHITE_IS_ZERO, 2), (_BLACK_IS_ZERO, 2), (_RGB, 4)):
        return _NO_ALPHA
    return int(extra[0]) if extra else _ALPHA if samples == 4 else _NO_ALPHA


def _orientation_by_tifffile(tiff: Any) -> int:
    return int(tiff.pages.first.tags.valueof(_ORIENTATION, default=1))


def _as_seen(
    array: Num[np.ndarray, "_H _W _C"], photometric: int, alpha: int = _NO_ALPHA, bits: int = 16
) -> Num[np.ndarray, "_H _W _c"]:
    """Samples as light: white is the highest value, transparency lies over white, and inks are colours."""
    inks = photometric == _CMYK and array.shape[2] == 4
    if alpha not in (_PREMULTIPLIED, _ALPHA) and photometric != _WHITE_IS_ZERO and not inks:
        return array
    whole = array.dtype.kind == "u"
    top = np.float32(min(np.iinfo(array.dtype).max, 2 ** max(bits, 8) - 1) if whole else 1)
    light = array.astype(np.float32)
    if alpha in (_PREMULTIPLIED, _ALPHA):
        light, share = light[..., :-1], light[..., -1:] / top
        light = light if alpha == _PREMULTIPLIED else light * share
        light = light if photometric == _WHITE_IS_ZERO else light + (1 - share) * top
    if inks or photometric == _WHITE_IS_ZERO:
        light = top - light
    if inks:
        light = light[..., :3] * (light[..., 3:] / top)
    light = light.clip(0, top)
    return np.rint(light).astype(array.dtype) if whole else light


def _by_simplejpeg(file: File, image: Image.Image) -> UInt8[np.ndarray, "_H _W _C"] | None:
    """What Pillow would make of a JPEG that it has opened, in less time; None where the file is Pillow's to judge."""
    if not _SIMPLEJPEG or image.mode not in ("L", "RGB"):
        return None
    import simplejpeg

    colours, (width, height) = "GRAY" if image.mode == "L" else "RGB", image.size
    file.seek(0)
    try:
        pixels = simplejpeg.decode_jpeg(file.read(), colours, min_height=height, min_width=width, min_factor=1)
    except ValueError:  # damaged, if only a little
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def read_header(data: str | os.PathLike[str] | bytes | memoryview, reference: str, white: White = own_white) -> Header:
    """Size and kind of an image file, without decoding its pixels (arrays of other layouts are read whole).

    Raises:
        BadImage: as in :func:`decode`, as far as the header shows.
    """
    with opened(data, reference) as file:
        head = _head(file)
        if not head.startswith(_NPY):
            with _pillow(file, head) as image:
                if image is not None:
                    refuse_bomb(*image.size, reference)
                    # As stored: of a TIFF, Pillow tells the turned size or this one, by its version.
                    tags = _tags(image)
                    width, height = tags.get(256, image.width), tags.get(257, image.height)
                    if _orientation(image) >= 5:
                        width, height = height, width
                    return Header(height, width, *_kind(image))
    return header_of(decode(data, reference, white=white))


def header_of(picture: Picture) -> Header:
    """The header of a decoded image."""
    if isinstance(picture, Image.Image):
        return Header(picture.height, picture.width, len(picture.getbands()), 8, picture.mode)
    height, width, channels = picture.shape
    return Header(height, width, channels, picture.dtype.itemsize * 8, f"{channels} x {picture.dtype}")


def remarks(data: str | os.PathLike[str] | bytes | memoryview, reference: str) -> tuple[str, ...]:
    """What a person should know of how a file is read, in the same words for all such files.

    Raises:
        BadImage: as in :func:`decode`, as far as the header and the list of pages show.
    """
    with opened(data, reference) as file:
        head = _head(file)
        if head.startswith(_NPY):
            return ()
        with _pillow(file, head) as image:
            if image is not None:
                return tuple(filter(None, (FIRST_PAGE if pages_of(image) > 1 else "", _transparency(image))))
        with open_tiff(file) as tiff:
            alpha = _alpha_of(tiff.pages.first) in (_PREMULTIPLIED, _ALPHA)
            return tuple(filter(None, (pages_as_read(tiff), _OVER_WHITE if alpha else "")))


def _transparency(image: Image.Image) -> str:
    """What becomes of the transparency that an opened image has; "" for none."""
    if (packing := _packing(image)) is not None:
        return _OVER_WHITE if _SIXTEEN_BITS[packing[0]][1] != _NO_ALPHA else ""
    channels = 1 if image.mode.startswith(("I", "F")) else _CHANNELS[_target_mode(image)]
    return f"{_OVER_WHITE}; --channels {channels} keeps it" if channels in (2, 4) else ""


def orientation_of(data: str | os.PathLike[str] | bytes | memoryview, reference: str) -> int:
    """The EXIF orientation by which :func:`decode` turns an image, 1 to 8; 1 is upright as it is stored.

    Raises:
        BadImage: as in :func:`decode`, as far as the header shows.
    """
    with opened(data, reference) as file:
        head = _head(file)
        if head.startswith(_NPY):
            return 1
        with _pillow(file, head) as image:
            if image is not None:
                return _orientation(image)
        with open_tiff(file) as tiff:
            return _orientation_by_tifffile(tiff)


def _kind(image: Image.Image) -> tuple[int, int, str]:
    """Channels and bits per channel that decoding will give, and what to call the kind."""
    if (packing := _packing(image)) is not None:
        channels = 1 if packing[0] == "LA" else 3
        return channels, 16, f"{channels} x uint16"
    if image.mode.startswith("I"):
        return 1, 16, image.mode
    if image.mode == "F":
        return 1, 32, image.mode
    return _CHANNELS[_target_mode(image)], 8, image.mode


@contextmanager
def opened(data: str | os.PathLike[str] | bytes | memoryview, reference: str) -> Iterator[File]:
    """The open file; Pillow's warnings stay inside and its decoders' errors become a BadImage."""
    allow_pixels()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream = io.BytesIO(data) if isinstance(data, (bytes, memoryview)) else open(data, "rb")  # noqa: SIM115
            with stream as file:
                yield file
    except UnidentifiedImageError as error:
        raise BadImage(reference, "is not an image in a known format") from error
    except Image.DecompressionBombError as error:  # of twice the limit, by Pillow itself
        raise BadImage(reference, f"is too large: {error} To allow it, set OPENJEPA_MAX_PIXELS") from error
    except _DECODER_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadImage(reference, f"cannot be decoded: {reason or type(error).__name__}") from error


def _head(file: File) -> bytes:
    head = file.read(16)
    file.seek(0)
    if not head:
        raise ValueError("the file is empty")
    return head


@contextmanager
def _pillow(file: File, head: bytes) -> Iterator[Image.Image | None]:
    """The image as Pillow opens it; None for a TIFF whose channels Pillow would drop or cannot read."""
    tiff = head.startswith(_TIFF)
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        if tiff:
            yield None
            return
        if head[4:8] != b"ftyp" or head[8:12] not in _HEIF:
            raise
        image = _heif(file)
    with image:
        yield None if tiff and _needs_tifffile(image) else image


def _heif(file: File) -> Image.Image:
    """A HEIC photo, which Pillow opens with the help of pillow-heif, upright already."""
    try:
        import pillow_heif
    except ImportError as error:  # not required
        raise ValueError(
            "it is HEIC, for which pip install 'openjepa[heif]'; or convert such photos to JPEG first"
        ) from error
    pillow_heif.register_heif_opener()
    file.seek(0)
    return Image.open(file)


def _needs_tifffile(image: Image.Image) -> bool:
    """Whether more than Pillow's first page of at most 4 known channels holds this image, or in an order of bytes that
    Pillow mixes up."""
    tags = _tags(image)
    samples, description = tags.get(277, 1), str(tags.get(270, ""))
    stacked = description.startswith(('{"shape"', "ImageJ", "<?xml", "<OME")) and getattr(image, "n_frames", 1) > 1
    planes = samples > 1 and tags.get(284, 1) == 2 and max(tags.get(258, (1,))) > 8
    swapped = image.mode in ("F", "I") and image.info.get("compression") != "raw" and tags.prefix == b"MM"
    return samples > 4 or stacked or planes or swapped or (samples == 4 and image.mode in ("RGB", "RGBX"))


def _tags(image: Image.Image) -> Any:
    """The tags of a TIFF by their numbers; none of other formats."""
    return getattr(image, "tag_v2", {})


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the EXIF block is absent, damaged or says another number."""
    if "exif" not in image.info and image.format not in ("TIFF", "MPO"):
        return 1
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        return orientation if 1 <= orientation <= 8 else 1
    except _DECODER_ERRORS:
        return 1


def pages_of(image: Image.Image) -> int:
    """How many pages or frames a file has; a TIFF's smaller versions of a page, and masks of one, don't count, nor do
    the previews behind a camera's JPEG."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return 1
    frames: int = getattr(image, "n_frames", 1)
    if image.format != "TIFF":
        return frames
    here, pages = image.tell(), 0
    for frame in range(frames):
        image.seek(frame)
        pages += not _tags(image).get(_SUBFILE, 0) & (_REDUCED | _MASK)
    image.seek(here)
    return pages


def _target_mode(image: Image.Image) -> str:
    if image.mode == "P" and "transparency" in image.info:
        return "RGBA"
    mode = _MODES.get(image.mode, image.mode)
    return mode if mode in _CHANNELS else "RGB"


def upright(image: Image.Image) -> Image.Image:
    """A copy, without ties to its file, turned as the EXIF orientation says that is known before it is loaded."""
    return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image.copy()


def turned(array: Shaped[np.ndarray, "_H _W ..."], orientation: int) -> Shaped[np.ndarray, "_h _w ..."]:
    """An array turned as an EXIF orientation, 1 to 8, says."""
    rows, columns = (slice(None, None, -1 if orientation in kinds else 1) for kinds in ((3, 4, 6, 7), (2, 3, 7, 8)))
    array = array[rows, columns]
    return np.ascontiguousarray(array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array)


def standard(image: Image.Image, reference: str, white: White = own_white) -> Picture:
    """An image of any Pillow mode in one that the rest of the library knows, or as an array if it has more than 8 bits.

    Raises:
        BadImage: its values are not intensities.
    """
    if image.mode.startswith("I"):
        # Pillow's 32-bit mode "I" stands for 16 bits here, however dark the image.
        array = np.asarray(image)[..., None]
        as_picture(array, reference)
        return array.astype(np.uint16)
    if image.mode == "F":
        return as_picture(np.asarray(image)[..., None], reference, white)
    mode = _target_mode(image)
    return image if mode == image.mode else image.convert(mode)
