"""Images held in memory as one array, and the idx files that MNIST and its relatives come in."""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from openjepa.data.base import Header, Source, Splits
from openjepa.errors import InputError
from openjepa.files import cache_folder

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_SAMPLE = Path(__file__).resolve().parents[1] / "sample"


class ArraySource(Source):
    """Images of one size that lie in memory.

    Args:
        name: the data as the user named them.
        images: 8 bits, the channels last.
        labels: a class number for each, or None.
        classes: the names of the classes.
    """

    def __init__(
        self,
        name: str,
        images: UInt8[np.ndarray, "n H W C"],
        labels: Int64[np.ndarray, "n"] | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        self.name, self.images, self.labels, self.classes = name, images, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W C"]:
        """The image, a view of the array."""
        return self.images[index]

    def header(self, index: int) -> Header:
        """The array's own shape."""
        height, width, channels = self.images.shape[1:]
        return Header(height, width, channels, 8, f"{channels} x uint8")

    def reference(self, index: int) -> str:
        """The image's number."""
        return f"{self.name}, image {index}"

    def encoded(self, index: int) -> bytes:
        """The image's shape and pixels."""
        return str(self.images.shape[1:]).encode() + self.images[index].tobytes()

    def identity(self) -> Iterator[bytes]:
        """The shape and every pixel."""
        yield str(self.images.shape).encode()
        yield np.ascontiguousarray(self.images).tobytes()


def read_idx(path: Path) -> UInt8[np.ndarray, "n ..."]:
    """An idx file of unsigned bytes, gzipped or not (the format that MNIST came in).

    Raises:
        InputError: it is damaged or holds something else.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
        if zero != 0 or kind != 8:
            raise ValueError(f"it starts with {content[:4]!r}, not with the mark of unsigned bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path} is not a readable idx file ({error}); fetch it again") from error


def has_idx_files(folder: Path) -> bool:
    """Whether the four files of an MNIST-like data set lie in ``folder``, gzipped or not."""
    return all(_part(folder, part) is not None for part in _PARTS)


def open_idx(name: str, folder: Path, classes: tuple[str, ...] | None = None) -> Splits:
    """The MNIST-like data set in ``folder``; the classes are called by their numbers unless names are given."""
    arrays = [read_idx(path) for part in _PARTS if (path := _part(folder, part)) is not None]
    sources = []
    for images, labels in ((arrays[0], arrays[1]), (arrays[2], arrays[3])):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise InputError(f"{folder}: images of shape {images.shape} and labels of shape {labels.shape} don't match")
        names = classes or tuple(str(number) for number in range(int(arrays[1].max()) + 1))
        sources.append(ArraySource(name, images[..., None], labels.astype(np.int64), names))
    sentence = f"Train and test are the data set's own ({len(sources[0]):,} and {len(sources[1]):,} images)."
    return Splits(train=sources[0], test=sources[1], sentence=sentence)


def open_sample() -> Splits:
    """The sample that comes with the library: a part of Fashion-MNIST (Xiao et al. 2017), 10 classes, 28 x 28 grey."""
    return open_idx("sample", _SAMPLE, FASHION_CLASSES)


def open_fashion_mnist() -> Splits:
    """Fashion-MNIST (Xiao et al. 2017): from this machine, else downloaded into the cache folder.

    Raises:
        InputError: it is not here and cannot be downloaded.
    """
    folder = next((place for place in _fashion_places() if has_idx_files(place)), None)
    if folder is None:
        folder = _download_fashion()
    return open_idx("fashion-mnist", folder, FASHION_CLASSES)


def _fashion_places() -> Iterator[Path]:
    """Where the files may lie, the download's place last; who finds them before needs no cache folder."""
    if chosen := os.environ.get("OPENJEPA_DATA"):
        yield from (Path(chosen) / "fashion-mnist", Path(chosen))
    yield _DEBIAN
    yield cache_folder() / "FashionMNIST" / "raw"


def _download_fashion() -> Path:
    from torchvision.datasets import FashionMNIST

    places = [*_fashion_places()]
    try:
        FashionMNIST(str(cache_folder()), download=True)
    except (OSError, RuntimeError) as error:
        looked = ", ".join(str(place) for place in places)
        raise InputError(
            f"fashion-mnist is not in any of {looked}, and its download failed ({error}). Install the Debian package "
            f"dataset-fashion-mnist, or put its four idx .gz files in a folder and set OPENJEPA_DATA to it."
        ) from error
    return places[-1]


def _part(folder: Path, part: str) -> Path | None:
    return next((path for path in (folder / f"{part}.gz", folder / part) if path.is_file()), None)
