"""From a file's bytes to pixels: every format and mode that Pillow, NumPy and tifffile read, and nothing half-read.

8-bit images come as Pillow images (modes L, LA, RGB, RGBA) or, of a fast decoder, as arrays H W C of 1 or 3 channels;
16-bit, float and many-channel ones as arrays.
"""

import importlib.util
import io
import os
import struct
import tokenize
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from openjepa.data.arrays import File, White, allow_pixels, as_picture, own_white, read_npy, read_tiff, refuse_bomb
from openjepa.data.base import BadImage, Header, Picture

_SUFFIXES = "jpg jpeg jpe jfif png webp tif tiff bmp dib gif npy ppm pgm pbm pnm jp2 avif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split(" "))
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"BM", b"\x93NUMPY")
_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112
_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None  # not required
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

    ``white`` as :func:`as_picture` has it.

    Raises:
        BadImage: it is not an image, is damaged or truncated, or has more pixels than Pillow's limit.
    """
    with opened(data, reference) as file:
        head = _head(file)
        if head.startswith(_NPY):
            return as_picture(read_npy(file, reference), reference, white)
        with _pillow(file, head) as image:
            if image is None:
                return as_picture(read_tiff(file, reference), reference, white)
            refuse_bomb(*image.size, reference)
            orientation = _orientation(image)
            if image.format == "JPEG":
                if at_least is not None:
                    image.draft(None, at_least if orientation >= 5 else (at_least[1], at_least[0]))
                if orientation == 1 and (pixels := _by_simplejpeg(file, image)) is not None:
                    return pixels
            image.load()
            return standard(upright(image), reference, white)


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
                    width, height = image.size
                    if _orientation(image) >= 5:
                        width, height = height, width
                    return Header(height, width, *_kind(image), image.mode)
    return header_of(decode(data, reference, white=white))


def header_of(picture: Picture) -> Header:
    """The header of a decoded image."""
    if isinstance(picture, Image.Image):
        return Header(picture.height, picture.width, len(picture.getbands()), 8, picture.mode)
    height, width, channels = picture.shape
    return Header(height, width, channels, picture.dtype.itemsize * 8, f"{channels} x {picture.dtype}")


def _kind(image: Image.Image) -> tuple[int, int]:
    """Channels and bits per channel that decoding will give."""
    if image.mode.startswith("I"):
        return 1, 16
    if image.mode == "F":
        return 1, 32
    return _CHANNELS[_target_mode(image)], 8


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
        if not tiff:
            raise
        yield None
        return
    with image:
        yield None if tiff and _needs_tifffile(image) else image


def _needs_tifffile(image: Image.Image) -> bool:
    """Whether more than Pillow's first page of at most 4 known channels holds this image."""
    tags = getattr(image, "tag_v2", {})
    samples, description = tags.get(277, 1), str(tags.get(270, ""))
    stacked = description.startswith(('{"shape"', "ImageJ", "<?xml", "<OME")) and getattr(image, "n_frames", 1) > 1
    return samples > 4 or stacked or (samples == 4 and image.mode in ("RGB", "RGBX"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the EXIF block is absent or damaged."""
    if "exif" not in image.info and image.format not in ("TIFF", "MPO"):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DECODER_ERRORS:
        return 1


def _target_mode(image: Image.Image) -> str:
    if image.mode == "P" and "transparency" in image.info:
        return "RGBA"
    mode = _MODES.get(image.mode, image.mode)
    return mode if mode in _CHANNELS else "RGB"


def upright(image: Image.Image) -> Image.Image:
    """A copy, without ties to its file, turned as its EXIF orientation says."""
    return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image.copy()


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
