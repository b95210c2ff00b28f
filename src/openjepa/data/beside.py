"""Masks that lie in a folder beside their images, which are no images to train on and no class."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from openjepa.data.base import BadImage, Skipped, printable
from openjepa.data.listing import Files
from openjepa.data.mask_files import read_mask
from openjepa.data.mask_values import MOST_CLASSES

_IMAGES = re.compile("(image|img|photo|picture|input)s?")
_MASKS = re.compile("(mask|label|annotation|segmentation)s?|gt|ground_?truth")
REASON = "a mask, by its folder and name, of an image beside it; evaluate by masks with --segmentation IMAGES MASKS"
_LOOKED_AT = 8


def without_masks(root: str, images: Files) -> tuple[Files, list[Skipped]]:
    """The images without the masks that lie beside them, and these.

    Masks are what is in a folder called so, if one beside it holds files of the very same names, the suffixes aside,
    and is either called images or the only other one, and by their values the ones are masks and the others are none.
    So a class called mask keeps its pictures.
    """
    aside = tuple(
        masks
        for masks in sorted({part for folder in images.folders for part in _parts(folder) if _named(part, _MASKS)})
        if _beside_images(root, images, masks)
    )
    if not aside:
        return images, []
    masks, others = (
        images.part([run for run in images.runs() if run[0].startswith(aside) == chosen]) for chosen in (True, False)
    )
    return others, [Skipped(printable(path), REASON) for path in masks]


def _beside_images(root: str, images: Files, masks: str) -> bool:
    """Whether a folder called masks holds those of the images in one beside it."""
    parent, depth = masks[: masks.rstrip(os.sep).rfind(os.sep) + 1], masks.count(os.sep)
    found = {part for folder in images.folders if folder.startswith(parent) for part in _parts(folder)}
    beside = sorted(part for part in found if part.count(os.sep) == depth and not _named(part, _MASKS))
    wanted = _stems(images, masks)
    images_of = [other for other in beside if _stems(images, other) == wanted]
    if any(_named(other, _IMAGES) for other in images_of):
        return True
    alone = len(beside) == len(images_of) == 1
    return alone and _few_values(root, images, masks) and not _few_values(root, images, images_of[0])


def _parts(folder: str) -> Iterator[str]:
    """The folder, which ends with its separator, and those that it lies in."""
    end = folder.find(os.sep)
    while end >= 0:
        yield folder[: end + 1]
        end = folder.find(os.sep, end + 1)


def _named(folder: str, names: re.Pattern[str]) -> bool:
    return names.fullmatch(os.path.basename(folder.rstrip(os.sep)).lower()) is not None


def _below(images: Files, folder: str) -> Files:
    return images.part([run for run in images.runs() if run[0].startswith(folder)])


def _stems(images: Files, folder: str) -> list[str]:
    """The files below a folder by their names from there, without suffixes."""
    return sorted(os.path.splitext(path[len(folder) :])[0] for path in _below(images, folder))


def _few_values(root: str, images: Files, folder: str) -> bool:
    """Whether files of a folder, some of which are looked at, hold as few values as masks do."""
    paths = _below(images, folder)
    for number in range(0, len(paths), -(-len(paths) // _LOOKED_AT)):
        try:
            mask = read_mask(Path(root, paths[number]))
        except BadImage:
            return False
        if len(np.unique(mask)) > MOST_CLASSES:
            return False
    return True
