"""Which numbers a folder's masks hold, and what 255 and the 1 of 1-bit masks stand for among them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from openjepa.errors import InputError

MOST_CLASSES = 64
UNLABELLED = 255
_BINARY = {0, UNLABELLED}
# The share of a mask from which on other values beside 255 are classes, and no stray pixels.
_SOME_SIZE = 0.01
# Of masks of classes hardly any has so many values from 128 to 254; one of 0 and 255 that was smoothed has.
_GRADED = 8


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What masks hold.

    Attributes:
        values: the classes' numbers, ascending; class k is the k-th.
        void: the share of all pixels (0 to 1) that is 255 for "not labelled", which is then none of ``values``; None
            where 255 does not stand for that.
        one: what 1 stands for in masks of 1 bit.
    """

    values: tuple[int, ...]
    void: float | None
    one: int


class MaskValues:
    """The numbers of a folder's masks, added one mask after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pixels, self._bits = Counter[int](), Counter[int]()
        # Masks with 255 and at most 0 beside it, with any other number, and with 255 beside a class of some size.
        self._binary = self._others = self._classes = 0
        self._other: tuple[Path, dict[int, int]] | None = None

    def add(self, path: Path, mask: Int64[np.ndarray, "_H _W"] | Bool[np.ndarray, "_H _W"]) -> None:
        """Take in a mask that was read from ``path``.

        Raises:
            InputError: there are more values than classes can be.
        """
        values, counts = (found.tolist() for found in np.unique(mask, return_counts=True))
        held = dict(zip(map(int, values), counts, strict=True))
        if mask.dtype == np.bool_:
            self._bits.update(held)
            return
        self._pixels.update(held)
        if held.keys() <= _BINARY:
            self._binary += UNLABELLED in held
        else:
            self._others += 1
            classes = sum(count for value, count in held.items() if value not in _BINARY)
            self._classes += UNLABELLED in held and classes >= _SOME_SIZE * mask.size
            self._other = self._other or (path, held)
        if len(self._pixels.keys() - {UNLABELLED}) > MOST_CLASSES:
            raise InputError(
                f"{self._folder} does not hold masks: up to {path.name} there are {len(self._pixels)} different "
                f"values, and classes are at most {MOST_CLASSES} (photos have hundreds, and so has a mask that was "
                "smoothed, or a JPEG once)"
            )

    def classes(self) -> Classes:
        """What all the masks hold.

        255 stands for "not labelled" beside two or more other values, as in PASCAL VOC, and is a class beside one.

        Raises:
            InputError: they hold one value, or it cannot be told whether 255 is a class.
        """
        self._refuse_doubtful()
        one = UNLABELLED if UNLABELLED in self._pixels and self._pixels.keys() <= _BINARY else 1
        pixels = self._pixels + Counter({value * one: count for value, count in self._bits.items()})
        void = UNLABELLED in pixels and len(pixels) > 2
        values = tuple(sorted(pixels.keys() - {UNLABELLED} if void else pixels))
        if len(values) < 2:
            raise InputError(
                f"the masks in {self._folder} hold one value {values} and no other: there is nothing to tell apart"
            )
        share = pixels[UNLABELLED] / pixels.total() if void else None
        return Classes(values=values, void=share, one=one)

    def _refuse_doubtful(self) -> None:
        """Refuse masks of 0 and 255 with a few other values among them, which would make of 255 'not labelled'."""
        mend = "set each of their pixels to 0 or 255, or number the classes 0, 1, 2 and so on in every mask"
        if self._other is not None and not self._classes and self._binary >= max(1, self._others):
            path, held = self._other
            foreign = sorted(held.keys() - _BINARY)
            places = f"{sum(held[value] for value in foreign):,} of its {sum(held.values()):,} pixels"
            alone = f"{self._binary:,} of the masks in {self._folder} hold 255 and at most 0 beside it"
            raise InputError(
                f"{alone}, and {self._others:,} hold other values, for example {path} {_few(foreign)} (in {places}): "
                f"whether 255 is a class or means 'not labelled' cannot be told so; {mend}"
            )
        graded = [value for value in sorted(self._pixels) if 128 <= value < UNLABELLED]
        if UNLABELLED in self._pixels and self._other is not None and len(graded) >= _GRADED:
            raise InputError(
                f"the masks in {self._folder} (for example {self._other[0]}) hold {len(graded)} values from 128 to 254 "
                f"({_few(graded)}) beside 255, as masks of 0 and 255 do that were smoothed or resized: {mend}"
            )


def _few(values: list[int]) -> str:
    """The first of them, for a person."""
    return ", ".join(map(str, values[:4])) + (" and so on" if len(values) > 4 else "")
