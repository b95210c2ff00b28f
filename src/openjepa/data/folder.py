"""A folder of images in any layout: what is in it, which folders are splits and which are classes."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from openjepa.data.base import BadImage, Header, Picture, Skipped, Source, Splits, merged_classes
from openjepa.data.decode import IMAGE_SUFFIXES, decode, looks_like_image, read_header
from openjepa.errors import InputError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")
_SPLIT_FOLDER = re.compile(f"({'|'.join(TRAIN_NAMES + TEST_NAMES)})([-_ ]?(images|imgs|set|data))?")


class Found(NamedTuple):
    """The files below a folder, as paths relative to it, sorted; Parquet files apart from images."""

    images: list[str]
    parquet: list[str]
    skipped: list[Skipped]


class FolderSource(Source):
    """Image files, read from disk when asked for.

    Args:
        name: the data as the user named them.
        root: the folder.
        paths: files, relative to ``root``.
        labels: a class number for each, or None.
        classes: the names of the classes.
        skipped: what was found and not used.
    """

    def __init__(
        self,
        name: str,
        root: str,
        paths: list[str],
        labels: Int64[np.ndarray, "n"] | None = None,
        classes: tuple[str, ...] = (),
        skipped: tuple[Skipped, ...] = (),
    ) -> None:
        self.name, self.root = name, root
        self.labels, self.classes, self.skipped = labels, classes, skipped
        # One block of bytes: workers then share its memory, which a list of a million strings would not.
        encoded = [os.fsencode(path) for path in paths]
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Picture:
        """The image, decoded from its file."""
        return decode(os.path.join(self.root, self.path(index)), self.reference(index), at_least)

    def header(self, index: int) -> Header:
        """Size and kind, from the file's first bytes."""
        return read_header(os.path.join(self.root, self.path(index)), self.reference(index))

    def reference(self, index: int) -> str:
        """The file's path below the folder."""
        return self.path(index).encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def path(self, index: int) -> str:
        """The file's path relative to the root, as the system spells it."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._paths[start : self._ends[index]])

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        try:
            with open(os.path.join(self.root, self.path(index)), "rb") as file:
                return file.read()
        except OSError as error:
            raise BadImage(self.reference(index), f"cannot be read: {error.strerror}") from error

    def state(self) -> Iterator[bytes]:
        """The files' names, sizes and times of change."""
        for index in range(len(self)):
            path = self.path(index)
            yield os.fsencode(path)
            yield "{} {}".format(*_size_and_time(os.path.join(self.root, path))).encode()

    def identity(self) -> Iterator[bytes]:
        """The files' names and sizes."""
        for index in range(len(self)):
            path = self.path(index)
            yield os.fsencode(path)
            yield str(_size_and_time(os.path.join(self.root, path))[0]).encode()


def scan(root: str) -> Found:
    """Every file below ``root``; hidden ones are ignored, links to folders are followed once.

    Raises:
        InputError: the folder cannot be read.
    """
    found = Found([], [], [])
    visited: set[tuple[int, int]] = set()
    # Links wait until all real folders are known, so that a loop or a second way to a folder adds nothing.
    waiting, links = [""], []
    while waiting or links:
        relative = waiting.pop() if waiting else links.pop(0)
        folder = os.path.join(root, relative)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scanner:
                entries = sorted(scanner, key=lambda entry: entry.name)
        except OSError as error:
            if not relative:
                raise InputError(f"the folder {root} cannot be read: {error.strerror}") from error
            found.skipped.append(Skipped(relative + os.sep, f"cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            _sort_in(entry, os.path.join(relative, entry.name), found, waiting, links)
    for paths in found:
        paths.sort()
    return found


def _sort_in(entry: os.DirEntry, path: str, found: Found, waiting: list[str], links: list[str]) -> None:
    """Put one entry of a folder where it belongs."""
    if entry.name.startswith(".") or entry.name == "__MACOSX":
        return
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError as error:
        found.skipped.append(Skipped(path, f"cannot be read: {error.strerror}"))
        return
    if is_folder:
        (links if entry.is_symlink() else waiting).append(path)
    elif not is_file:
        found.skipped.append(Skipped(path, "a broken link" if entry.is_symlink() else "not a regular file"))
    else:
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in IMAGE_SUFFIXES or (not suffix and looks_like_image(_first_bytes(entry.path))):
            found.images.append(path)
        elif suffix in (".parquet", ".pq"):
            found.parquet.append(path)
        else:
            found.skipped.append(Skipped(path, "not an image"))


def open_folder(name: str, root: str, found: Found) -> Splits:
    """The images that :func:`scan` found, with splits and labels from folder names where they make sense.

    A train and a test folder (or ``val``, ``valid``, ``validation``) are splits when both hold images; what lies
    outside them is left out. Class labels need every image in a folder directly below the root or the split, at least
    two such folders, and two images in each on average.
    """
    images, skipped = found.images, list(found.skipped)
    skipped += [Skipped(path, "a Parquet file among images") for path in found.parquet]
    base = _common_folder(images)
    groups = _split_folders(base, images)
    if not groups:
        class_of = _class_folders([(path, path[len(base) :]) for path in images])
        classes = merged_classes(class_of.values())
        train = FolderSource(name, root, images, _numbers(images, class_of, classes), classes, tuple(skipped))
        return Splits(train=train, test=None, sentence="The data bring no test split: every image is used to train.")
    (train_name, train_paths), (test_name, test_paths) = groups
    used = {*train_paths, *test_paths}
    reason = f"outside the folders {train_name} and {test_name}"
    skipped += [Skipped(path, reason) for path in images if path not in used]
    class_of = {}
    for split, paths in groups:
        start = len(base) + len(split) + 1
        class_of |= _class_folders([(path, path[start:]) for path in paths])
    classes = merged_classes(class_of.values())
    train = FolderSource(name, root, train_paths, _numbers(train_paths, class_of, classes), classes, tuple(skipped))
    test = FolderSource(name, root, test_paths, _numbers(test_paths, class_of, classes), classes)
    left_out = len(images) - len(used)
    outside = f"; {left_out} images outside these two folders are left out" if left_out else ""
    sentence = f"Train and test are the data's own: the folders {train_name} and {test_name}{outside}."
    return Splits(train=train, test=test, sentence=sentence)


def _split_folders(base: str, paths: list[str]) -> list[tuple[str, list[str]]]:
    """The folder directly below ``base`` to train on and the one to test on, with their files; empty without both.

    Of several for a test split, the first in the order test, testing, val, valid, validation counts.
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        folder, separator, _ = path[len(base) :].partition(os.sep)
        if separator:
            groups.setdefault(folder, []).append(path)
    words = {}
    for folder in groups:
        match = _SPLIT_FOLDER.fullmatch(folder.lower())
        if match:
            words.setdefault(match[1], folder)
    train = next((words[word] for word in TRAIN_NAMES if word in words), None)
    test = next((words[word] for word in TEST_NAMES if word in words), None)
    return [] if train is None or test is None else [(train, groups[train]), (test, groups[test])]


def _common_folder(paths: list[str]) -> str:
    """The folder, with its separator, that holds every path; so a folder in a folder changes nothing."""
    folders = [path.rpartition(os.sep)[0] for path in (min(paths), max(paths))]
    shared = os.path.commonpath(folders) if all(folders) else ""
    return shared + os.sep if shared else ""


def _class_folders(paths: list[tuple[str, str]]) -> dict[str, str]:
    """The class of every path (given with its path below the split); empty where the folders name no classes."""
    class_of = {}
    for path, below in paths:
        folder, _, file = below.partition(os.sep)
        if not file or os.sep in file:
            return {}
        class_of[path] = folder
    counts = Counter(class_of.values())
    return class_of if len(counts) >= 2 and len(class_of) >= 2 * len(counts) else {}


def _numbers(paths: list[str], class_of: dict[str, str], classes: tuple[str, ...]) -> Int64[np.ndarray, "n"] | None:
    number = {name: index for index, name in enumerate(classes)}
    if not all(path in class_of for path in paths):
        return None
    return np.array([number[class_of[path]] for path in paths], np.int64)


def _first_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except OSError:
        return b""


def _size_and_time(path: str) -> tuple[int, int]:
    """Bytes, and the time of the last change in nanoseconds; -1 where the file is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
