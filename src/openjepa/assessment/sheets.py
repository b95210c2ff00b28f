"""Sheets of pictures for a person to look at: rows of images, headings above, a caption below each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from openjepa.errors import InputError

_SMALLEST, _LINE, _GAP = 128, 14, 4
# Okabe and Ito's colours (2008), told apart by most eyes; the first class stays as it is.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_VOID = 255


def new_picture(folder: Path | None, name: str) -> Path | None:
    """Where a sheet may be written: ``folder``/``name``, the folder made; None for no folder.

    Raises:
        InputError: there is such a file already, or the folder cannot be made.
    """
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--pictures {folder} cannot be made: {error.strerror}") from error
    if (folder / name).exists():
        raise InputError(f"{folder / name} exists already: remove it, or choose another --pictures folder")
    return folder / name


def sheet(
    rows: Sequence[Sequence[UInt8[np.ndarray, "H W C"]]], *, headings: Sequence[str] = (), captions: Sequence[str] = ()
) -> Image.Image:
    """One picture of all; small images are enlarged by whole factors. ``captions`` run row by row."""
    height, width = rows[0][0].shape[:2]
    zoom = max(1, -(-_SMALLEST // min(height, width)))
    high, wide = zoom * height + _GAP + _LINE * bool(captions), zoom * width + _GAP
    top = _LINE * bool(headings)
    page = Image.new("RGB", (wide * max(map(len, rows)), high * len(rows) + top), "white")
    pen, said = ImageDraw.Draw(page), iter(captions)
    for column, heading in enumerate(headings):
        pen.text((wide * column, 1), heading, fill="black")
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            place = (wide * column, high * row + top)
            page.paste(Image.fromarray(in_colour(image).repeat(zoom, 0).repeat(zoom, 1)), place)
            pen.text((place[0], place[1] + zoom * height + 1), next(said, ""), fill="black")
    return page


def in_colour(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    """Three channels of any number: grey is repeated, of more the first three are shown, of two the first."""
    return image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)


def painted(image: UInt8[np.ndarray, "H W C"], classes: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """An image in grey with its classes in colour: class 0 dark, unlabelled pixels white."""
    grey = in_colour(image).astype(np.float32).mean(2, keepdims=True)
    colours = np.array([(0, 0, 0), *_COLOURS], np.float32)
    number = np.where(classes == 0, 0, 1 + (classes.astype(int) - 1) % len(_COLOURS))
    tint = np.where((classes == _VOID)[..., None], 255, colours[number])
    return (0.4 * grey + 0.6 * tint).astype(np.uint8)
