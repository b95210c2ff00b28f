"""A folder of images in any layout: what is in it, which folders are splits and which are classes."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from openjepa.data.arrays import White, own_white
from openjepa.data.base import BadImage, Header, Picture, Skipped, Source, Splits, merged_classes, printable, to_test_on
from openjepa.data.beside import without_masks
from openjepa.data.decode import decode
from openjepa.data.headers import read_header, remarks
from openjepa.data.listing import Files, Found, Run
from openjepa.data.white import CommonWhite

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")
# As test_images, trainset, val2017 or train_v2; but train_masks and train_station are something else.
_SPLIT_FOLDER = re.compile(rf"({'|'.join(TRAIN_NAMES + TEST_NAMES)})([-_ ]?(images|imgs|set|data))?([-_ ]?v?\d+)?")


class FolderSource(Source):
    """Image files, read from disk when asked for.

    Args:
        name: the data as the user named them.
        root: the folder.
        files: its files.
        labels: a class number for each, or None.
        classes: the names of the classes.
        skipped: what was found and not used.
        unlabelled: why there are no labels, where there are none.
        white: what white is in arrays whose type does not say (:func:`openjepa.data.arrays.as_picture`).
    """

    def __init__(
        self,
        name: str,
        root: str,
        files: Files,
        labels: Int64[np.ndarray, "n"] | None = None,
        classes: tuple[str, ...] = (),
        skipped: tuple[Skipped, ...] = (),
        unlabelled: str = Source.unlabelled,
        white: White = own_white,
    ) -> None:
        self.name, self.root, self.files = name, root, files
        self.labels, self.classes, self.skipped, self.unlabelled = labels, classes, skipped, unlabelled
        self.white = white

    @property
    def float_white(self) -> float:
        """What white is in the folder's floats."""
        return self.white(0.0, True)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Picture:
        """The image, decoded from its file."""
        return decode(os.path.join(self.root, self.path(index)), self.reference(index), at_least, self.white)

    def header(self, index: int) -> Header:
        """Size and kind, from the file's first bytes."""
        return read_header(os.path.join(self.root, self.path(index)), self.reference(index), self.white)

    def remarks(self, index: int) -> tuple[str, ...]:
        """What becomes of pages and transparency."""
        return remarks(os.path.join(self.root, self.path(index)), self.reference(index))

    def reference(self, index: int) -> str:
        """The file's path below the folder."""
        return printable(self.path(index))

    def path(self, index: int) -> str:
        """The file's path relative to the root, as the system spells it."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.files[index]

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        try:
            with open(os.path.join(self.root, self.path(index)), "rb") as file:
                return file.read()
        except OSError as error:
            raise BadImage(self.reference(index), f"cannot be read: {error.strerror}") from error

    def content(self, indices: Int64[np.ndarray, "n"]) -> str:
        """A digest of what these images hold and of what white is taken for, for caches."""
        taken = f"{self.white(0.0, False):g} {self.white(0.0, True):g}"
        return hashlib.sha256(f"{super().content(indices)} {taken}".encode()).hexdigest()

    def state(self) -> Iterator[bytes]:
        """The files' names, sizes and times of change."""
        for path in self.files:
            yield os.fsencode(path)
            yield "{} {}".format(*_size_and_time(os.path.join(self.root, path))).encode()

    def identity(self) -> Iterator[bytes]:
        """The files' names and sizes."""
        for path in self.files:
            yield os.fsencode(path)
            yield str(_size_and_time(os.path.join(self.root, path))[0]).encode()


def open_folder(name: str, root: str, found: Found) -> Splits:
    """The images of a folder, with splits and labels from folder names where they make sense.

    A train and a test folder (or ``val``, ``valid``, ``validation``) are splits when both hold images; what lies
    outside them is left out. Of several to test on, the first with class folders counts, else the first. Class labels
    need every image in a folder directly below the root or the split, at least two such folders, and two images in
    each on average. Masks in a folder beside their images are neither (:func:`without_masks`).
    """
    images, masks = without_masks(root, found.images)
    skipped = masks + [Skipped(printable(path), "a Parquet file among more images") for path in found.parquet]
    skipped += found.skipped
    base = _common_folder(images)
    train_part, tests = _split_folders(base, images)
    test_part = to_test_on(tests, lambda part: bool(_class_folders(base + part[0] + os.sep, part[1])[0]))
    white = CommonWhite(root, images)
    if train_part is None or test_part is None:
        runs = list(images.runs())
        class_of, why = _class_folders(base, runs)
        classes = merged_classes(class_of.values())
        train = FolderSource(name, root, images, _numbers(class_of, runs, classes), classes, tuple(skipped), why, white)
        return Splits(train=train, test=None, sentence="The data bring no test split: every image is used to train.")
    splits = (train_name, train_runs), (test_name, test_runs) = train_part, test_part
    used = {start for _, start, _ in train_runs + test_runs}
    outside = images.part([run for run in images.runs() if run[1] not in used])
    reason = f"outside the folders {train_name} and {test_name}"
    skipped += [Skipped(printable(path), reason) for path in outside]
    (train_classes, train_why), (test_classes, test_why) = (
        _class_folders(base + split + os.sep, runs) for split, runs in splits
    )
    classes = merged_classes(train_classes.values(), test_classes.values())
    train, test = (
        FolderSource(name, root, images.part(runs), _numbers(class_of, runs, classes), classes, left, why, white)
        for runs, class_of, left, why in (
            (train_runs, train_classes, tuple(skipped), train_why),
            (test_runs, test_classes, (), test_why),
        )
    )
    also = f"; {len(outside)} images outside these two folders are left out" if outside else ""
    sentence = f"Train and test are the data's own: the folders {train_name} and {test_name}{also}."
    return Splits(train=train, test=test, sentence=sentence)


def _split_folders(base: str, images: Files) -> tuple[tuple[str, list[Run]] | None, list[tuple[str, list[Run]]]]:
    """The folder directly below ``base`` to train on, and those to test on, with their files.

    Those for a test split come in the order test, testing, val, valid, validation. Of several that begin with the same
    word, the one called so counts, else the last in the alphabet (train2017 after train2014).
    """
    groups: dict[str, list[Run]] = {}
    for run in images.runs():
        folder, separator, _ = run[0][len(base) :].partition(os.sep)
        if separator:
            groups.setdefault(folder, []).append(run)
    words: dict[str, str] = {}
    for folder in groups:
        match = _SPLIT_FOLDER.fullmatch(folder.lower())
        if match:
            word = match[1]
            words[word] = max(words.get(word, folder), folder, key=lambda name: (name.lower() == word, name))
    train = next(((words[word], groups[words[word]]) for word in TRAIN_NAMES if word in words), None)
    return train, [(words[word], groups[words[word]]) for word in TEST_NAMES if word in words]


def _common_folder(images: Files) -> str:
    """The folder, with its separator, that holds every file; so a folder in a folder changes nothing."""
    ends = images.folders[0].rstrip(os.sep), images.folders[-1].rstrip(os.sep)
    shared = os.path.commonpath(ends) if all(ends) else ""
    return shared + os.sep if shared else ""


def _class_folders(base: str, runs: list[Run]) -> tuple[dict[str, str], str]:
    """The class of every folder, which lie below ``base``; or none, and why they are no classes."""
    class_of = {}
    counts: Counter[str] = Counter()
    loose, deep = 0, False
    for folder, start, stop in runs:
        name, _, deeper = folder[len(base) :].partition(os.sep)
        if not name:
            loose += stop - start
            continue
        deep = deep or bool(deeper)
        class_of[folder] = name
        counts[name] += stop - start
    if not counts:
        return {}, FolderSource.unlabelled
    if loose:
        return {}, f"{loose} of the images lie beside {_folders(counts)} that might be classes, not in one"
    if deep:
        hold = "holds folders of its own" if len(counts) == 1 else "hold folders of their own"
        return {}, f"{_folders(counts)} that might be classes {hold}"
    if len(counts) < 2:
        return {}, "one class folder"
    if counts.total() < 2 * len(counts):
        return {}, f"{len(counts)} class folders with fewer than two images each"
    return class_of, ""


def _folders(counts: Counter[str]) -> str:
    return "the one folder" if len(counts) == 1 else f"the {len(counts)} folders"


def _numbers(class_of: dict[str, str], runs: list[Run], classes: tuple[str, ...]) -> Int64[np.ndarray, "n"] | None:
    """The class of every file of the runs."""
    number = {name: index for index, name in enumerate(classes)}
    if not class_of:
        return None
    of_run = np.array([number[class_of[folder]] for folder, _, _ in runs], np.int64)
    return np.repeat(of_run, [stop - start for _, start, stop in runs])


def _size_and_time(path: str) -> tuple[int, int]:
    """Bytes, and the time of the last change in nanoseconds; -1 where the file is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
