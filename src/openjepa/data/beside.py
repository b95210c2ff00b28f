"""Masks that lie in a folder beside their images, which are no images to train on and no class."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from openjepa.data.base import BadImage, Skipped, printable
from openjepa.data.decode import decode
from openjepa.data.listing import Files, Run
from openjepa.data.mask_files import read_mask
from openjepa.data.mask_values import MOST_CLASSES

_IMAGES = re.compile("(image|img|photo|picture|input)s?")
_MASKS = re.compile("(mask|label|annotation|segmentation)s?|gt|ground_?truth")
REASON = "a mask, by its folder and name, of an image beside it; evaluate by masks with --segmentation IMAGES MASKS"
_LOOKED_AT = 8
# Of an image so many rows and columns at the most.
_ACROSS = 256


def without_masks(root: str, images: Files) -> tuple[Files, list[Skipped]]:
    """The images without the masks that lie beside them, and these.

    Masks are what is in a folder called so, if one beside it holds files of the very same names, the suffixes aside,
    and is either called images or the only other one, and by their values the ones are masks and the others are none.
    So a class called mask keeps its pictures, and photographs called gt are none.
    """
    if not any(_named(part, _MASKS) for folder in images.folders for part in _parts(folder)):
        return images, []
    runs: dict[str, list[Run]] = {}
    for run in images.runs():
        for part in _parts(run[0]):
            runs.setdefault(part, []).append(run)
    siblings: dict[str, list[str]] = {}
    for part in runs:
        siblings.setdefault(_parent(part), []).append(part)

    def below(part: str) -> Files:
        return images.part(runs[part])

    aside = tuple(
        part for part in runs if _named(part, _MASKS) and _are_masks(root, below, part, siblings[_parent(part)])
    )
    if not aside:
        return images, []
    masks, others = (
        images.part([run for run in images.runs() if run[0].startswith(aside) == chosen]) for chosen in (True, False)
    )
    return others, [Skipped(printable(path), REASON) for path in masks]


def _are_masks(root: str, below: Callable[[str], Files], masks: str, siblings: Sequence[str]) -> bool:
    """Whether a folder called masks holds those of the images in one of its ``siblings``; ``below`` has the files of
    each."""
    beside = [part for part in siblings if not _named(part, _MASKS)]
    wanted = _stems(below(masks), masks)
    images_of = [other for other in beside if _stems(below(other), other) == wanted]
    called = [other for other in images_of if _named(other, _IMAGES)]
    if called:  # photographs called gt, beside a spoilt input, are none
        return not _photographs(root, below(masks))
    alone = len(beside) == len(images_of) == 1
    return alone and _few_values(root, below(masks)) and not _few_values(root, below(images_of[0]))


def _parent(folder: str) -> str:
    """The folder in which one lies, both with a separator at the end."""
    return folder[: folder.rstrip(os.sep).rfind(os.sep) + 1]


def _parts(folder: str) -> Iterator[str]:
    """The folder, which ends with its separator, and those that it lies in."""
    end = folder.find(os.sep)
    while end >= 0:
        yield folder[: end + 1]
        end = folder.find(os.sep, end + 1)


def _named(folder: str, names: re.Pattern[str]) -> bool:
    return names.fullmatch(os.path.basename(folder.rstrip(os.sep)).lower()) is not None


def _stems(files: Files, folder: str) -> list[str]:
    """The files below a folder by their names from there, without suffixes."""
    return sorted(os.path.splitext(path[len(folder) :])[0] for path in files)


def _photographs(root: str, files: Files) -> bool:
    """Whether some of the files, of which some are looked at, have colours, and many of them."""
    for path in _some(files):
        with contextlib.suppress(BadImage):
            image = np.asarray(decode(os.path.join(root, path), path))
            image = image[:: -(-image.shape[0] // _ACROSS), :: -(-image.shape[1] // _ACROSS)]
            grey = image.ndim == 2 or image.shape[2] == 1 or bool((image == image[..., :1]).all())
            if not grey and len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > MOST_CLASSES:
                return True
    return False


def _some(files: Files) -> list[str]:
    return [files[number] for number in range(0, len(files), -(-len(files) // _LOOKED_AT))]


def _few_values(root: str, files: Files) -> bool:
    """Whether files, some of which are looked at, hold as few values as masks do."""
    for path in _some(files):
        try:
            mask = read_mask(Path(root, path))
        except BadImage:
            return False
        if len(np.unique(mask)) > MOST_CLASSES:
            return False
    return True
