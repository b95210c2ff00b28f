"""Copies of large images at the size that training needs, written once, so that no epoch decodes the whole images.

The copies lie in one file, one after the other, with an index beside it; both only grow, so a stopped writer goes on
where it was, less what it left unfinished.
"""

import contextlib
import io
import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openjepa import draws
from openjepa.cores import cores
from openjepa.data.base import BadImage, Header, Picture, Source
from openjepa.data.decode import decode
from openjepa.data.pixels import as_image
from openjepa.errors import InputError
from openjepa.files import cache_folder

# A copy is worth its place where it has at most this share of the original's pixels.
WORTHWHILE = 0.5
_JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0, "comment": b""}
_PNG = {"format": "PNG", "compress_level": 3, "exif": b"", "icc_profile": None}
# How a copy of each mode is saved.
_SAVED: dict[str, dict[str, Any]] = {"L": _JPEG, "RGB": _JPEG, "LA": _PNG, "RGBA": _PNG}
_LOOKED_AT = 24
_TOGETHER = 64
# Of an image: where its copy ends in the file, and the copy's checksum; no bytes where the original is as good.
_RECORD = np.dtype([("end", "<u8"), ("crc", "<u4")])

Count = Callable[[int, int], None]


class Copies(Source):
    """A source that reads an image's copy, and the image itself where there is none or it is damaged.

    Args:
        source: the images.
        at_least: height and width in pixels that a copy keeps of its image at least.
        folder: where the copies of all such sources are kept.

    Attributes:
        place: this source's own folder there.
    """

    def __init__(self, source: Source, at_least: tuple[int, int], folder: Path) -> None:
        self.source, self.at_least = source, at_least
        self.name, self.labels, self.classes, self.skipped = source.name, source.labels, source.classes, source.skipped
        self.unlabelled = source.unlabelled
        key = source.version
        self.place = folder / f"{key}-{at_least[0]}x{at_least[1]}"
        self._index: np.ndarray | None = None
        self._content: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Picture:
        """The copy of image ``index``; of less than ``at_least``, or damaged, it gives way to the image itself."""
        small = at_least is not None and at_least[0] <= self.at_least[0] and at_least[1] <= self.at_least[1]
        content = self._copy(index) if small else b""
        if content:
            with contextlib.suppress(BadImage):
                return decode(content, self.reference(index))
        return self.source.read(index, at_least)

    @property
    def float_white(self) -> float:
        """The images'."""
        return self.source.float_white

    def header(self, index: int) -> Header:
        """Size and kind of the image itself."""
        return self.source.header(index)

    def remarks(self, index: int) -> tuple[str, ...]:
        """The image's own."""
        return self.source.remarks(index)

    def reference(self, index: int) -> str:
        """Where the image itself is."""
        return self.source.reference(index)

    def encoded(self, index: int) -> bytes | memoryview:
        """The bytes of the image itself."""
        return self.source.encoded(index)

    def identity(self) -> Iterator[bytes]:
        """The images', whose copies these are."""
        return self.source.identity()

    def prepare(self) -> None:
        """Open the images and the copies."""
        self.source.prepare()
        self._open()

    def _open(self) -> None:
        if not self.done:
            self._index, self._content = np.empty(0, _RECORD), np.empty(0, np.uint8)
            return
        self._index = np.fromfile(self.place / "index", _RECORD)
        content = self.place / "images"
        self._content = np.memmap(content, np.uint8, "r") if content.stat().st_size else np.empty(0, np.uint8)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_index": None, "_content": None}

    def _copy(self, index: int) -> bytes:
        if self._index is None or self._content is None:
            self._open()
        assert self._index is not None and self._content is not None  # noqa: PT018
        if index >= len(self._index):
            return b""
        start, record = int(self._index[index - 1]["end"]) if index else 0, self._index[index]
        content = self._content[start : int(record["end"])].tobytes()
        return content if _checksum(content) == record["crc"] else b""

    @property
    def done(self) -> int:
        """How many images have been looked at and copied where it was worthwhile."""
        index = self.place / "index"
        return index.stat().st_size // _RECORD.itemsize if index.exists() else 0

    @property
    def complete(self) -> bool:
        """Whether all images were looked at."""
        return self.done == len(self.source)

    @property
    def size(self) -> int:
        """Bytes of the copies so far."""
        images = self.place / "images"
        return images.stat().st_size if images.exists() else 0

    def estimate(self) -> int:
        """Bytes of all copies, from a few images."""
        self.source.prepare()
        chosen = draws.permutation(len(self.source), "copies")[:_LOOKED_AT]
        sizes = [len(self._made(int(number))) for number in chosen]
        return round(sum(sizes) / len(sizes) * len(self.source))

    def write(self, count: Count = lambda done, total: None) -> None:
        """Write what is missing; ``count`` is told the images done and their number.

        Raises:
            InputError: the disk has no room, the folder cannot be written, or another process is writing there.
        """
        total = len(self.source)
        if self.complete:
            return
        self.source.prepare()
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            with open(self.place / "images", "ab") as images, open(self.place / "index", "ab") as index:
                _lock(images, self.place)
                begun = self._whole(images, index)
                # Decoding silences warnings for a moment, and in several threads only the outermost can restore them.
                with warnings.catch_warnings(), ThreadPoolExecutor(cores(alone=True)) as pool:
                    for start in range(begun, total, _TOGETHER):
                        numbers = range(start, min(start + _TOGETHER, total))
                        _append(images, index, list(pool.map(self._made, numbers)))
                        count(numbers.stop, total)
        except OSError as error:
            raise InputError(
                f"the copies cannot be written to {self.place} ({error.strerror or error}): make room, set "
                f"OPENJEPA_CACHE to another folder, or go without --cache; what was written is kept"
            ) from error

    def _whole(self, images: io.BufferedWriter, index: io.BufferedWriter) -> int:
        """Cut off what a stopped writer left unfinished; returns the images that are done."""
        records = np.fromfile(self.place / "index", _RECORD)
        size = (self.place / "images").stat().st_size
        rising = records["end"] >= np.concatenate([[0], records["end"][:-1]])
        sound = rising & (records["end"] <= size) & (records["crc"] != 0)  # a power cut may leave zeros
        kept = int(sound.cumprod().sum())
        index.truncate(kept * _RECORD.itemsize)
        images.seek(images.truncate(int(records["end"][kept - 1]) if kept else 0))
        return kept

    def _made(self, index: int) -> bytes:
        """The copy's bytes, a PNG where there is transparency, else a JPEG; none where the image is hardly larger, has
        no 8 bits or other channels, or is bad."""
        try:
            image = self.source.read(index, self.at_least)
            header = self.source.header(index)
        except BadImage:
            return b""
        if not isinstance(image, Image.Image) and image.dtype == np.uint8 and image.shape[2] in (1, 3):
            image = as_image(image)
        if not isinstance(image, Image.Image) or image.mode not in _SAVED:
            return b""
        factor = max(self.at_least[0] / image.height, self.at_least[1] / image.width)
        size = math.ceil(image.width * factor), math.ceil(image.height * factor)
        if size[0] * size[1] > WORTHWHILE * header.height * header.width:
            return b""
        if factor < 1:
            image = image.resize(size, Image.Resampling.BICUBIC)
        content = io.BytesIO()
        try:
            image.save(content, **_SAVED[image.mode])
        except (OSError, ValueError):  # more than JPEG can hold
            return b""
        return content.getvalue()


def copies_folder() -> Path:
    """Where copies are kept: ``copies`` in the cache folder."""
    return cache_folder() / "copies"


def _append(images: io.BufferedWriter, index: io.BufferedWriter, copies: list[bytes]) -> None:
    """The copies first, so that the index never speaks of what is not there."""
    ends = images.tell() + np.cumsum([len(copy) for copy in copies])
    images.write(b"".join(copies))
    images.flush()
    os.fsync(images.fileno())
    records = np.zeros(len(copies), _RECORD)
    records["end"], records["crc"] = ends, [_checksum(copy) for copy in copies]
    index.write(records.tobytes())
    index.flush()
    os.fsync(index.fileno())


def _checksum(content: bytes) -> int:
    """Never 0 for no bytes, so that a record of zeros is none."""
    return zlib.crc32(content, 1)


def _lock(file: io.BufferedWriter, place: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows, where nothing keeps two writers apart
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"another process is writing the copies in {place}: wait for it, then begin again") from error
