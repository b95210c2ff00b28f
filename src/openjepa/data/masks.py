"""Images with a mask of class numbers each: matched by name, read without loss, refused where they are no masks."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import BadImage
from openjepa.data.decode import opened
from openjepa.data.folder import FolderSource
from openjepa.data.listing import Files, scan
from openjepa.data.pixels import Pixels, nearest
from openjepa.errors import InputError

MOST_CLASSES = 64
UNLABELLED = 255


@dataclass(frozen=True, kw_only=True)
class MaskedImages:
    """Images of one folder with the masks of another.

    Attributes:
        images: the images that have a mask.
        masks: the path of each one's mask.
        values: what the masks hold, ascending; class k is the k-th.
        void: whether 255 stands for "not labelled"; it is then none of ``values``.
        sentence: what was found, for a person.
    """

    images: FolderSource
    masks: tuple[Path, ...]
    values: tuple[int, ...]
    void: bool
    sentence: str

    def __len__(self) -> int:
        return len(self.masks)

    def read(self, index: int, preprocessing: Preprocessing) -> tuple[Pixels, UInt8[np.ndarray, "H W"]]:
        """Image ``index`` as the encoder's input, and its mask at that size: 0 to K - 1, or UNLABELLED.

        Raises:
            BadImage: either cannot be read.
        """
        header = self.images.header(index)
        pixels = preprocessing.fit(self.images.read(index, at_least=preprocessing.size))
        mask = read_mask(self.masks[index])
        classes = np.searchsorted(self.values, mask).astype(np.uint8)
        if self.void:
            classes[mask == UNLABELLED] = UNLABELLED
        if classes.shape != (header.height, header.width):
            classes = nearest(classes, (0, 0, *classes.shape), (header.height, header.width))
        return pixels, preprocessing.fit_mask(classes)


def open_masked(images: Path, masks: Path, note: Callable[[int, int], None] = lambda done, total: None) -> MaskedImages:
    """The images below one folder whose name (without suffix) a mask below the other has; ``note`` hears of progress.

    Names are compared with the folders they are in, and where nothing fits that way, alone.

    Raises:
        InputError: a folder is missing or holds no images, no names fit, or the masks hold no classes.
    """
    found_images, found_masks = (_paths(folder, kind) for folder, kind in ((images, "images"), (masks, "masks")))
    pairs = _pairs(found_images, found_masks, images, masks)
    paths = tuple(masks / mask for _, mask in pairs)
    source = FolderSource(str(images), str(images), Files.of(image for image, _ in pairs))
    seen, resized = set[int](), 0
    for number, path in enumerate(paths):
        try:
            mask, header = read_mask(path), source.header(number)
        except BadImage as error:
            raise InputError(f"{error}; mend or remove it") from error
        seen.update(np.unique(mask).tolist())
        resized += mask.shape != (header.height, header.width)
        if len(seen - {UNLABELLED}) > MOST_CLASSES:
            raise InputError(
                f"{masks} does not hold masks: up to {path.name} there are {len(seen)} different values, and classes "
                f"are at most {MOST_CLASSES} (photos have hundreds, and so have masks saved as JPEG: save them as PNG)"
            )
        note(number + 1, len(paths))
    void = UNLABELLED in seen and len(seen) > 2
    values = tuple(sorted(seen - {UNLABELLED} if void else seen))
    if len(values) < 2:
        raise InputError(f"the masks in {masks} hold one value {values} and no other: there is nothing to tell apart")
    return MaskedImages(
        images=source,
        masks=paths,
        values=values,
        void=void,
        sentence=_sentence(len(pairs), len(found_images), len(found_masks), values, void, resized),
    )


def read_mask(path: Path) -> Int64[np.ndarray, "H W"]:
    """The numbers of a mask: palette indices, grey levels, or colours packed into one number where it has colours.

    Raises:
        BadImage: it cannot be read.
    """
    with opened(path, path.name) as file:
        if path.suffix.lower() == ".npy":
            array = np.load(file, allow_pickle=False)
        else:
            with Image.open(file) as image:
                plain = image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;")
                array = np.asarray(image if plain else image.convert("RGB"))
        array = array.astype(np.int64)
        if array.ndim == 3 and array.shape[2] == 3:
            grey = bool((array == array[..., :1]).all())
            array = array[..., 0] if grey else array @ np.array([1 << 16, 1 << 8, 1])
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        if array.ndim != 2:
            raise ValueError(f"a mask has two axes, this one has the shape {array.shape}")
        return array


def _paths(folder: Path, kind: str) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} with the {kind}")
    found = list(scan(str(folder)).images)
    if not found:
        raise InputError(f"the folder {folder} holds no {kind}")
    return found


def _pairs(images: list[str], masks: list[str], images_in: Path, masks_in: Path) -> list[tuple[str, str]]:
    def stem(path: str) -> str:
        return os.path.splitext(path)[0]

    def name(path: str) -> str:
        return os.path.basename(stem(path))

    for key in (stem, name):
        of: dict[str, list[str]] = {}
        for mask in masks:
            of.setdefault(key(mask), []).append(mask)
        fit = [(image, of[key(image)]) for image in images if key(image) in of]
        twice = next((found for _, found in fit if len(found) > 1), None)
        if twice is not None:
            raise InputError(f"{masks_in} has two masks of one name, {twice[0]} and {twice[1]}; keep one")
        if fit:
            return [(image, found[0]) for image, found in fit]
    raise InputError(
        f"no image in {images_in} (for example {images[0]}) has a mask of its name in {masks_in} (for example "
        f"{masks[0]}); name each mask as its image, the suffix aside"
    )


def _sentence(pairs: int, images: int, masks: int, values: tuple[int, ...], void: bool, resized: int) -> str:
    listed = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
    parts = [f"{pairs:,} images with a mask of {len(values)} classes (values {listed})"]
    if void:
        parts.append("255 is taken as not labelled")
    if images > pairs or masks > pairs:
        parts.append(f"{images - pairs:,} images without a mask and {masks - pairs:,} masks without an image left out")
    if resized:
        parts.append(f"{resized:,} masks were of another size than their image and are stretched to it")
    return "; ".join(parts) + "."
