"""What a file tells without its pixels: size, kind, how it is turned, and what a person should know of it."""

import os

from PIL import Image

from openjepa.data.arrays import FIRST_PAGE, White, open_tiff, own_white, pages_as_read, refuse_bomb
from openjepa.data.base import Header, Picture
from openjepa.data.decode import decode
from openjepa.data.deep import ALPHA, NO_ALPHA, PREMULTIPLIED, SIXTEEN_BITS, alpha_of, packing_of, tiff_orientation
from openjepa.data.opening import CHANNELS, exif_orientation, looked_into, pages_of, tags_of, target_mode

_OVER_WHITE = "the last channel is transparency, laid over white"


def read_header(data: str | os.PathLike[str] | bytes | memoryview, reference: str, white: White = own_white) -> Header:
    """Size and kind of an image file, without decoding its pixels (arrays of other layouts are read whole).

    Raises:
        BadImage: as in :func:`decode`, as far as the header shows.
    """
    with looked_into(data, reference) as (_, _, image):
        if image is not None:
            refuse_bomb(*image.size, reference)
            # As stored: of a TIFF, Pillow tells the turned size or this one, by its version.
            tags = tags_of(image)
            width, height = tags.get(256, image.width), tags.get(257, image.height)
            if exif_orientation(image) >= 5:
                width, height = height, width
            return Header(height, width, *_kind(image))
    return header_of(decode(data, reference, white=white))


def header_of(picture: Picture) -> Header:
    """The header of a decoded image."""
    if isinstance(picture, Image.Image):
        return Header(picture.height, picture.width, len(picture.getbands()), 8, picture.mode)
    height, width, channels = picture.shape
    return Header(height, width, channels, picture.dtype.itemsize * 8, f"{channels} x {picture.dtype}")


def _kind(image: Image.Image) -> tuple[int, int, str]:
    """Channels and bits per channel that decoding will give, and what to call the kind."""
    if (packing := packing_of(image)) is not None:
        channels = 1 if packing[0] == "LA" else 3
        return channels, 16, f"{channels} x uint16"
    if image.mode.startswith("I"):
        return 1, 16, image.mode
    if image.mode == "F":
        return 1, 32, image.mode
    return CHANNELS[target_mode(image)], 8, image.mode


def remarks(data: str | os.PathLike[str] | bytes | memoryview, reference: str) -> tuple[str, ...]:
    """What a person should know of how a file is read, in the same words for all such files.

    Raises:
        BadImage: as in :func:`decode`, as far as the header and the list of pages show.
    """
    with looked_into(data, reference) as (file, numpy, image):
        if numpy:
            return ()
        if image is not None:
            return tuple(filter(None, (FIRST_PAGE if pages_of(image) > 1 else "", _transparency(image))))
        with open_tiff(file) as tiff:
            alpha = alpha_of(tiff.pages.first) in (PREMULTIPLIED, ALPHA)
            return tuple(filter(None, (pages_as_read(tiff), _OVER_WHITE if alpha else "")))


def _transparency(image: Image.Image) -> str:
    """What becomes of the transparency that an opened image has; "" for none."""
    if (packing := packing_of(image)) is not None:
        return _OVER_WHITE if SIXTEEN_BITS[packing[0]][1] != NO_ALPHA else ""
    channels = 1 if image.mode.startswith(("I", "F")) else CHANNELS[target_mode(image)]
    return f"{_OVER_WHITE}; --channels {channels} keeps it" if channels in (2, 4) else ""


def orientation_of(data: str | os.PathLike[str] | bytes | memoryview, reference: str) -> int:
    """The EXIF orientation by which :func:`decode` turns an image, 1 to 8; 1 is upright as it is stored.

    Raises:
        BadImage: as in :func:`decode`, as far as the header shows.
    """
    with looked_into(data, reference) as (file, numpy, image):
        if numpy:
            return 1
        if image is not None:
            return exif_orientation(image)
        with open_tiff(file) as tiff:
            return tiff_orientation(tiff)
