"""What a set of images is: read by number, perhaps labelled, with a record of what could not be used."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16
from PIL import Image

# A decoded image: Pillow (modes L, LA, RGB, RGBA) or an array, float32 in [0, 1]. An underscore before an axis says
# that images of one call may differ in it.
Picture = Image.Image | UInt8[np.ndarray, "_H _W _C"] | UInt16[np.ndarray, "_H _W _C"] | Float32[np.ndarray, "_H _W _C"]


class BadImage(Exception):
    """One image that cannot be used (corrupt, truncated, a decompression bomb, the wrong channels).

    Attributes:
        reference: where it is, for a person (a path, or a file and a row).
        reason: what is wrong with it.
    """

    def __init__(self, reference: str, reason: str) -> None:
        super().__init__(reference, reason)
        self.reference = reference
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reference}: {self.reason}"


# Control characters, and those that turn the order of letters.
_STEERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(name: str) -> str:
    """A file's name as it can be printed and written: what is no UTF-8 in it becomes �, and what would steer a terminal
    or turn the order of letters is written out (as ``\\x1b``, ``\\u202e``); it opens nothing any more."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return _STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


# How many images are looked into to tell whether others of the same names and sizes took their place.
_SPREAD = 16
T = TypeVar("T")
NO_IMAGE = "not an image"


class Skipped(NamedTuple):
    """A file that was found and not used; ``reference`` is its :func:`printable` name."""

    reference: str
    reason: str


def telling(skipped: Sequence[Skipped]) -> Skipped:
    """Of one or more, the file that says most: the first that is something else than no image at all, if any is."""
    return next((one for one in skipped if one.reason != NO_IMAGE), skipped[0])


def to_test_on(parts: Sequence[T], labelled: Callable[[T], bool]) -> T | None:
    """Of several parts of data the first with labels, else the first; None of none. A single one is not looked at."""
    return next(filter(labelled, parts), parts[0]) if len(parts) > 1 else next(iter(parts), None)


class Header(NamedTuple):
    """What is known of an image before its pixels are decoded; ``height`` and ``width`` are as it is shown."""

    height: int
    width: int
    channels: int
    bits: int
    mode: str


class Source(ABC):
    """A set of images, read by number; it can be pickled and sent to a worker.

    Attributes:
        name: the data as the user named them.
        labels: a class number for each image, -1 for none; None when the data bring no labels.
        classes: the names of the classes.
        unlabelled: why there are no labels, where there are none.
        skipped: files that were found and not used.
    """

    name: str
    labels: Int64[np.ndarray, "n"] | None = None
    classes: tuple[str, ...] = ()
    unlabelled: str = "no class folders, no label column"
    skipped: tuple[Skipped, ...] = ()

    @property
    def float_white(self) -> float:
        """What white is in files of floats, where all have one."""
        return 1.0

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Picture:
        """Image ``index``, decoded.

        ``at_least`` (height, width in pixels) allows a smaller version, no smaller than that, where it is cheaper.

        Raises:
            BadImage: it cannot be decoded.
        """

    @abstractmethod
    def header(self, index: int) -> Header:
        """Size and kind of image ``index``, without decoding its pixels where the format allows.

        Raises:
            BadImage: it cannot be read.
        """

    def remarks(self, index: int) -> tuple[str, ...]:
        """What a person should know of how image ``index`` is read, in the same words for all such images.

        Raises:
            BadImage: it cannot be read.
        """
        return ()

    @abstractmethod
    def reference(self, index: int) -> str:
        """Where image ``index`` is, for a person."""

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the set (names and sizes), for resume; it doesn't depend on where the data lie."""
        digest = hashlib.sha256()
        for part in self.identity():
            digest.update(part + b"\0")
        return digest.hexdigest()

    @abstractmethod
    def identity(self) -> Iterator[bytes]:
        """What the fingerprint is taken of."""

    def state(self) -> Iterator[bytes]:
        """What changes when an image is changed in place, as far as that shows without reading them all."""
        return self.identity()

    @property
    def version(self) -> str:
        """A short digest of the state, for the names of copies that are to be found again while nothing changes."""
        digest = hashlib.sha256()
        for number, part in enumerate(self.state()):
            digest.update(b"\0" * (number > 0) + part)
        return digest.hexdigest()[:24]

    @property
    def spread(self) -> list[str]:
        """Digests of the bytes of a few images from the first to the last, which tell when a set has been replaced by
        another of the same names and sizes."""
        chosen = np.unique(np.linspace(0, len(self) - 1, _SPREAD).round().astype(np.int64))
        return [self._digest(int(index)).hex()[:16] for index in chosen]

    def content(self, indices: Int64[np.ndarray, "n"]) -> str:
        """A digest of what these images hold, byte for byte, for caches of what was computed from them."""
        digest = hashlib.sha256()
        for index in indices:
            # Each one's own digest, so that bytes cannot move from one image to the next unseen.
            digest.update(self._digest(int(index)))
        return digest.hexdigest()

    def _digest(self, index: int) -> bytes:
        try:
            held = self.encoded(index)
        except BadImage as error:
            held = str(error).encode()
        return hashlib.sha256(held).digest()

    @abstractmethod
    def encoded(self, index: int) -> bytes | memoryview:
        """The bytes that image ``index`` is decoded from.

        Raises:
            BadImage: there are none to be had.
        """

    def prepare(self) -> None:  # noqa: B027  (most sources need none)
        """Make reading in random order fast; called once, before workers start."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set: images to train on and, where the data bring them, images to test on.

    Attributes:
        sentence: how the two were told apart, for the plan.
    """

    train: Source
    test: Source | None
    sentence: str

    @property
    def said(self) -> str:
        """The sentence, and what becomes of test images that nothing can be tested on."""
        if self.test is None or self.test.labels is not None or self.train.labels is None:
            return self.sentence
        return (
            f"{self.sentence} But the test images have no labels ({self.test.unlabelled}), so accuracies are measured "
            "on the train images alone."
        )


def merged_classes(*groups: Iterable[str]) -> tuple[str, ...]:
    """The sorted names of all classes in ``groups``."""
    return tuple(sorted(set().union(*groups)))
