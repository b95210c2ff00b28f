"""What white is in a folder's arrays whose type does not say."""

import contextlib
import os
from functools import cached_property

from openjepa.data.arrays import own_white
from openjepa.data.base import BadImage
from openjepa.data.decode import decode
from openjepa.data.listing import Files

_ARRAY_SUFFIXES = (".npy", ".tif", ".tiff")
_NAMES, _READ = 4096, 64


class CommonWhite:
    """White of all arrays of a folder, settled by some of them together when the first one asks.

    Each by itself, a dark image would be taken for one of another scale, and be shown a hundred times too bright.

    Args:
        root: the folder.
        files: its files, of which up to 64 with an array's suffix are read, evenly spaced.
    """

    def __init__(self, root: str, files: Files) -> None:
        names = [files[number] for number in _spaced(len(files), _NAMES)]
        arrays = [name for name in names if name.lower().endswith(_ARRAY_SUFFIXES)]
        self._root, self._arrays = root, [arrays[number] for number in _spaced(len(arrays), _READ)]

    def __call__(self, highest: float, floats: bool) -> float:
        """What white is for an image of that highest value, by its own account where none of its kind was read."""
        return own_white(self._highest.get(floats, highest), floats)

    @cached_property
    def _highest(self) -> dict[bool, float]:
        """The highest value found in arrays of integers, and of floats."""
        found: dict[bool, float] = {}

        def seen(highest: float, floats: bool) -> float:
            found[floats] = max(highest, found.get(floats, 0.0))
            return own_white(highest, floats)

        for name in self._arrays:
            with contextlib.suppress(BadImage):
                decode(os.path.join(self._root, name), name, white=seen)
        return found


def _spaced(count: int, most: int) -> list[int]:
    """Up to ``most`` of the numbers below ``count``, evenly spaced."""
    return [number * count // min(count, most) for number in range(min(count, most))]
