"""An image file, opened: which library reads it, how it is turned, how many pages it has, and what its errors mean."""

import io
import os
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps, UnidentifiedImageError

from openjepa.data.arrays import File, allow_pixels
from openjepa.data.base import BadImage
from openjepa.errors import InputError

_SUFFIXES = "jpg jpeg jpe jfif png webp tif tiff bmp dib gif npy ppm pgm pbm pnm jp2 avif heic heif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split(" "))
_NPY = b"\x93NUMPY"
# The brands of an ISO media file (bytes 8 to 12, behind "ftyp") that HEIC photos have.
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", _NPY, *_TIFF, *_JPEG2000)
# P1 to P6, then white space and a width or a comment.
_PNM = re.compile(rb"P[1-6]\s+[0-9#]")
ORIENTATION = 0x0112
# TIFF's NewSubfileType, and its bits for a smaller version of another page and for a mask of one.
_SUBFILE, _REDUCED, _MASK = 254, 1, 4
_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}
# What a mistake in a program raises: in this package it is no damaged file's.
_FAULTS = (AttributeError, AssertionError, NameError)
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def looks_like_image(head: bytes) -> bool:
    """Whether the first bytes of a file without a suffix are those of an image."""
    if head[4:8] == b"ftyp":
        return head[8:12] in _HEIF + _AVIF
    return bool(head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or _PNM.match(head))


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
    except (BadImage, InputError, ImportError):  # said already; or the installation's fault, not the file's
        raise
    except UnidentifiedImageError as error:
        raise BadImage(reference, "is not an image in a known format") from error
    except Image.DecompressionBombError as error:  # of twice the limit, by Pillow itself
        raise BadImage(reference, f"is too large: {error} To allow it, set OPENJEPA_MAX_PIXELS") from error
    except Exception as error:  # of damaged files, Pillow promises OSError, and the libraries below it raise anything
        if isinstance(error, _FAULTS) and _is_own(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadImage(reference, f"cannot be decoded: {reason or type(error).__name__}") from error


def _is_own(error: Exception) -> bool:
    """Whether an error comes from this package's own code."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(__file__).parents[1] in Path(frame.f_code.co_filename).parents


@contextmanager
def looked_into(
    data: str | os.PathLike[str] | bytes | memoryview, reference: str
) -> Iterator[tuple[File, bool, Image.Image | None]]:
    """The open file, whether NumPy wrote it, and the image if Pillow is to read it; else tifffile is.

    Errors are as :func:`opened` has them.
    """
    with opened(data, reference) as file:
        head = _head(file)
        if head.startswith(_NPY):
            yield file, True, None
        else:
            with _by_pillow(file, head) as image:
                yield file, False, image


def _head(file: File) -> bytes:
    head = file.read(16)
    file.seek(0)
    if not head:
        raise ValueError("the file is empty")
    return head


@contextmanager
def _by_pillow(file: File, head: bytes) -> Iterator[Image.Image | None]:
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
    tags = tags_of(image)
    samples, description = tags.get(277, 1), str(tags.get(270, ""))
    stacked = description.startswith(('{"shape"', "ImageJ", "<?xml", "<OME")) and getattr(image, "n_frames", 1) > 1
    planes = samples > 1 and tags.get(284, 1) == 2 and max(tags.get(258, (1,))) > 8
    swapped = image.mode in ("F", "I") and image.info.get("compression") != "raw" and tags.prefix == b"MM"
    return samples > 4 or stacked or planes or swapped or (samples == 4 and image.mode in ("RGB", "RGBX"))


def tags_of(image: Image.Image) -> Any:
    """The tags of a TIFF by their numbers; none of other formats."""
    return getattr(image, "tag_v2", {})


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the EXIF block is absent, damaged or says another number."""
    if "exif" not in image.info and image.format not in ("TIFF", "MPO"):
        return 1
    try:
        orientation = int(image.getexif().get(ORIENTATION, 1))
        return orientation if 1 <= orientation <= 8 else 1
    except Exception:  # noqa: BLE001 - as in opened
        return 1


def upright(image: Image.Image) -> Image.Image:
    """A copy, without ties to its file, turned as the EXIF orientation says that is known before it is loaded."""
    return ImageOps.exif_transpose(image) if exif_orientation(image) > 1 else image.copy()


def turned(array: Shaped[np.ndarray, "_H _W ..."], orientation: int) -> Shaped[np.ndarray, "_h _w ..."]:
    """An array turned as an EXIF orientation, 1 to 8, says."""
    rows, columns = (slice(None, None, -1 if orientation in kinds else 1) for kinds in ((3, 4, 6, 7), (2, 3, 7, 8)))
    array = array[rows, columns]
    return np.ascontiguousarray(array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array)


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
        pages += not tags_of(image).get(_SUBFILE, 0) & (_REDUCED | _MASK)
    image.seek(here)
    return pages


def target_mode(image: Image.Image) -> str:
    if image.mode == "P" and "transparency" in image.info:
        return "RGBA"
    mode = _MODES.get(image.mode, image.mode)
    return mode if mode in CHANNELS else "RGB"
