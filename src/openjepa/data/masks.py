"""Images with a mask of class numbers each: matched by name, read without loss, refused where they are no masks."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import BadImage, Header, Skipped
from openjepa.data.folder import FolderSource
from openjepa.data.headers import orientation_of
from openjepa.data.listing import Files, scan
from openjepa.data.mask_files import NotAMask, numbers, read_mask
from openjepa.data.mask_values import UNLABELLED, Classes, MaskValues
from openjepa.data.opening import turned
from openjepa.data.pixels import Pixels, nearest
from openjepa.data.white import CommonWhite
from openjepa.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MaskedImages:
    """Images of one folder with the masks of another.

    Attributes:
        images: the images that have a mask.
        masks: the path of each one's mask.
        values: what the masks hold, ascending; class k is the k-th.
        void: whether 255 stands for "not labelled"; it is then none of ``values``.
        one: what 1 stands for in masks of 1 bit.
        orientations: the EXIF orientation by which each mask is turned with its image; 1 for none.
        bad: which of these images cannot be read, or have a mask that cannot, by their numbers.
        sentence: what was found, for a person.
    """

    images: FolderSource
    masks: tuple[Path, ...]
    values: tuple[int, ...]
    void: bool
    one: int
    orientations: tuple[int, ...]
    bad: dict[int, Skipped]
    sentence: str

    def __len__(self) -> int:
        return len(self.masks)

    def read(self, index: int, preprocessing: Preprocessing) -> tuple[Pixels, UInt8[np.ndarray, "H W"]]:
        """Image ``index`` as the encoder's input, and its mask at that size: 0 to K - 1, or UNLABELLED.

        Raises:
            BadImage: either cannot be read.
        """
        if index in self.bad:
            raise BadImage(*self.bad[index])
        header = self.images.header(index)
        pixels = preprocessing.fit(self.images.read(index, at_least=preprocessing.at_least))
        mask = turned(numbers(read_mask(self.masks[index]), self.one), self.orientations[index])
        classes = np.searchsorted(self.values, mask).astype(np.uint8)
        if self.void:
            classes[mask == UNLABELLED] = UNLABELLED
        if classes.shape != (header.height, header.width):
            classes = nearest(classes, (0, 0, *classes.shape), (header.height, header.width))
        return pixels, preprocessing.fit_mask(classes)


def open_masked(images: Path, masks: Path, note: Callable[[int, int], None] = lambda done, total: None) -> MaskedImages:
    """The images below one folder whose name (without suffix) a mask below the other has; ``note`` hears of progress.

    Names are compared with the folders they are in, and where nothing fits that way, alone. A mask that lies crosswise
    to its image, which EXIF turns by a quarter, was made on the pixels as they are stored and is turned with them.

    Raises:
        InputError: a folder is missing or holds no images, no names fit, none can be read, a file is no mask as it was
            made, or they hold no classes.
    """
    found_images, found_masks = (_paths(folder, kind) for folder, kind in ((images, "images"), (masks, "masks")))
    pairs = _pairs(found_images, found_masks, images, masks)
    paths = tuple(masks / mask for _, mask in pairs)
    white = CommonWhite(str(images), Files.of(found_images))
    source = FolderSource(str(images), str(images), Files.of(image for image, _ in pairs), white=white)
    seen, resized, orientations, unsure = MaskValues(masks), 0, list[int](), 0
    bad: dict[int, Skipped] = {}
    for number, path in enumerate(paths):
        note(number + 1, len(paths))
        try:
            mask, header = read_mask(path), source.header(number)
            orientation = _orientation(images / source.path(number), path, mask.shape, header)
        except NotAMask as error:
            raise InputError(f"{error}; mend or remove it") from error
        except BadImage as error:
            bad[number] = Skipped(error.reference, error.reason)
            orientations.append(1)
            continue
        seen.add(path, mask)
        unsure += orientation is None
        orientations.append(orientation or 1)
        mask = turned(mask, orientations[-1])
        resized += mask.shape != (header.height, header.width)
    if len(bad) == len(paths):
        first = bad[0]
        raise InputError(
            f"none of the {len(bad):,} images with masks can be read, for example {first.reference} ({first.reason}); "
            "mend or replace them"
        )
    classes = seen.classes()
    return MaskedImages(
        images=source,
        masks=paths,
        values=classes.values,
        void=classes.void is not None,
        one=classes.one,
        orientations=tuple(orientations),
        bad=bad,
        sentence=_sentence(
            len(pairs),
            len(found_images),
            len(found_masks),
            classes,
            resized,
            sum(orientation > 1 for orientation in orientations),
            unsure,
        ),
    )


def _orientation(image: Path, mask: Path, shape: tuple[int, ...], header: Header) -> int | None:
    """The EXIF orientation of an image by which its mask, of that shape, has still to be turned; None if its size
    does not tell."""
    orientation = orientation_of(image, image.name)
    if orientation == 1 or orientation_of(mask, mask.name) > 1:
        return 1
    crosswise = (shape[0] - shape[1]) * (header.height - header.width)
    if orientation < 5 or crosswise == 0:
        return None
    return orientation if crosswise < 0 else 1


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
        first: dict[str, str] = {}
        for image, (mask,) in fit:
            if (other := first.setdefault(mask, image)) != image:
                raise InputError(
                    f"{images_in} has two images, {other} and {image}, for the one mask {mask} in {masks_in}, and "
                    "whose it is cannot be told: name masks as their images, folders included"
                )
        if fit:
            return [(image, found[0]) for image, found in fit]
    raise InputError(
        f"no image in {images_in} (for example {images[0]}) has a mask of its name in {masks_in} (for example "
        f"{masks[0]}); name each mask as its image, the suffix aside"
    )


def _sentence(pairs: int, images: int, masks: int, classes: Classes, resized: int, turns: int, unsure: int) -> str:
    values = classes.values
    listed = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
    parts = [f"{pairs:,} images with a mask of {len(values)} classes (values {listed})"]
    if classes.void is not None:
        parts.append(f"255 is taken as not labelled ({100 * classes.void:.2g}% of the pixels)")
    if images > pairs or masks > pairs:
        parts.append(f"{images - pairs:,} images without a mask and {masks - pairs:,} masks without an image left out")
    if resized:
        parts.append(f"{resized:,} masks were of another size than their image and are stretched to it")
    if turns:
        parts.append(
            f"{turns:,} masks lie as their image is stored, which its EXIF orientation turns, and are turned with it"
        )
    if unsure:
        parts.append(
            f"{unsure:,} images are turned by their EXIF orientation in a way that their mask's size does not show (by "
            "half, mirrored, or square); those masks are taken to be upright already: see whether they fit"
        )
    return "; ".join(parts) + "."
