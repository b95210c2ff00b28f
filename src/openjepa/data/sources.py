"""Open whatever a person calls their data: a folder, Parquet, Fashion-MNIST, a hub id, or the bundled sample."""

import os
import re
from pathlib import Path

from openjepa.data.base import BadImage, Header, Picture, Skipped, Source, Splits, printable, telling
from openjepa.data.folder import FolderSource, open_folder
from openjepa.data.hub import open_hub
from openjepa.data.idx import ArraySource, has_idx_files, open_fashion_mnist, open_idx, open_sample
from openjepa.data.listing import Files, scan
from openjepa.data.opening import IMAGE_SUFFIXES
from openjepa.data.parquet import ParquetSource, images_in, open_parquet
from openjepa.errors import InputError
from openjepa.files import expanded

__all__ = [
    "ArraySource",
    "BadImage",
    "FolderSource",
    "Header",
    "ParquetSource",
    "Picture",
    "Skipped",
    "Source",
    "Splits",
    "in_full",
    "open_data",
]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def in_full(data: str | None) -> str | None:
    """The name of data as it is understood from any folder: a file or folder's whole path, others as they are.

    Raises:
        InputError: it begins with the home folder of nobody.
    """
    path = None if data is None else expanded(data)
    return str(path.resolve()) if path is not None and os.path.exists(path) else data


def open_data(data: str | os.PathLike[str] | None = None) -> Splits:
    """The images that ``data`` names: a folder, an image, a Parquet file or folder, ``fashion-mnist``, a hub id, None.

    A file or folder of that name comes before any other meaning; None is the bundled sample. Of a folder with both
    pictures and Parquet files those are the data that hold more images, and the others are skipped.

    Raises:
        InputError: there is nothing there, it cannot be read, or it holds no images.
    """
    if data is None:
        return open_sample()
    name = os.fspath(data)
    if not name:
        raise InputError("the name of the data is empty (an unset variable, perhaps): give a folder of images")
    path, name = expanded(name), printable(name)
    try:
        if path.is_dir():
            return _open_dir(name, path)
        if path.exists():
            return _open_file(name, path)
    except OSError as error:  # no right to it, or no name that a file can have
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error
    if name.lower() == "fashion-mnist":
        return open_fashion_mnist()
    if _HUB_ID.fullmatch(name):
        return open_hub(name)
    raise InputError(
        f"there is no file or folder '{name}'; give a folder of images, a Parquet file, fashion-mnist, "
        "or an owner/name of the Hugging Face hub"
    )


def _open_dir(name: str, path: Path) -> Splits:
    found = scan(str(path))
    if found.parquet and (not found.images or images_in(path, found.parquet) > len(found.images)):
        reason = "a picture beside Parquet files that hold more images"
        beside = [Skipped(printable(picture), reason) for picture in found.images]
        return open_parquet(name, path, found.parquet, (*beside, *found.skipped))
    if found.images:
        return open_folder(name, str(path), found)
    if has_idx_files(path):
        return open_idx(name, path)
    if not found.skipped:
        raise InputError(f"the folder {name} is empty (hidden files don't count); put images in it")
    first = telling(found.skipped)
    raise InputError(
        f"the folder {name} holds no images: {len(found.skipped)} files were looked at, for example {first.reference} "
        f"({first.reason}); known are {' '.join(sorted(IMAGE_SUFFIXES))} and .parquet"
    )


def _open_file(name: str, path: Path) -> Splits:
    suffix = path.suffix.lower()
    with open(path, "rb") as file:
        is_parquet = suffix in (".parquet", ".pq") or file.read(4) == b"PAR1"
    if is_parquet:
        return open_parquet(name, path.parent, [path.name])
    if suffix in IMAGE_SUFFIXES:
        source = FolderSource(name, str(path.parent), Files.of([path.name]))
        return Splits(train=source, test=None, sentence="The data are one image.")
    raise InputError(f"{name} is neither an image ({' '.join(sorted(IMAGE_SUFFIXES))}) nor a Parquet file")
