"""Images as bytes in Parquet files, the layout of the Hugging Face hub."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openjepa.data.base import BadImage, Header, Picture, Skipped, Source, Splits, printable, to_test_on
from openjepa.data.columns import Columns, class_numbers, find_columns, give_labels, labels_in, names_a_class, open_file
from openjepa.data.decode import decode
from openjepa.data.folder import TEST_NAMES, TRAIN_NAMES
from openjepa.data.headers import read_header, remarks
from openjepa.errors import InputError
from openjepa.files import cache_folder, check_room, sweep_drafts, whole_file

if TYPE_CHECKING:
    import pyarrow as pa

# Below this many bytes the encoded images stay in memory; above, random order reads from a copy on disk.
IN_MEMORY = 2 << 30
_SPLIT_FILE = re.compile(rf"({'|'.join(TRAIN_NAMES + TEST_NAMES)})(?![a-z])")


class ParquetSource(Source):
    """The images of Parquet files, as encoded bytes.

    Args:
        name: the data as the user named them.
        root: the folder that ``files`` are relative to.
        files: Parquet files with the same columns.
        columns: where images and labels are.
        skipped: files found and not used.
    """

    def __init__(
        self, name: str, root: Path, files: list[str], columns: Columns, skipped: tuple[Skipped, ...] = ()
    ) -> None:
        self.name, self.root, self.files, self.columns, self.skipped = name, root, files, columns, skipped
        for file in files:
            other = find_columns(root / file)
            if (other.image, other.label) != (columns.image, columns.label):
                raise InputError(
                    f"{root / file} has its images and labels in {other.image} and {other.label}, the first file in "
                    f"{columns.image} and {columns.label}; give files with the same columns"
                )
        metadata = [open_file(root / file).metadata for file in files]
        counts = [[file.row_group(group).num_rows for group in range(file.num_row_groups)] for file in metadata]
        self._groups = [(file, group) for file, rows in enumerate(counts) for group in range(len(rows))]
        self._ends = np.cumsum([rows for file in counts for rows in file], dtype=np.int64)
        self._file_ends = np.cumsum([sum(rows) for rows in counts], dtype=np.int64)
        self._cached: tuple[int, pa.Array] | None = None
        self._loaded: list[pa.Array] | None = None
        self._copy: tuple[np.ndarray, np.ndarray] | None = None
        self._prepared = False

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Picture:
        """The image, decoded from its bytes."""
        return decode(self.encoded(index), self.reference(index), at_least)

    def header(self, index: int) -> Header:
        """Size and kind, from the first bytes."""
        return read_header(self.encoded(index), self.reference(index))

    def remarks(self, index: int) -> tuple[str, ...]:
        """What becomes of pages and transparency."""
        return remarks(self.encoded(index), self.reference(index))

    def reference(self, index: int) -> str:
        """The file and the row in it."""
        file = int(np.searchsorted(self._file_ends, index, "right"))
        return f"{printable(self.files[file])}, row {index - (int(self._file_ends[file - 1]) if file else 0)}"

    def identity(self) -> Iterator[bytes]:
        """The files' names and sizes; InputError where one is gone."""
        for file in self.files:
            yield file.encode("utf-8", "surrogateescape")
            yield str(self._stat(file).st_size).encode()

    def state(self) -> Iterator[bytes]:
        """The files' names, sizes and times of change."""
        yield from self.identity()
        for file in self.files:
            yield str(self._stat(file).st_mtime_ns).encode()

    def _stat(self, file: str) -> os.stat_result:
        try:
            return (self.root / file).stat()
        except OSError as error:
            raise InputError(
                f"{self.root / file} cannot be read any more ({error.strerror}): put it back, or begin again without it"
            ) from error

    def prepare(self) -> None:
        """Hold the encoded images in memory, or in one memory-mapped file in the cache folder when they are many.

        Raises:
            InputError: the disk has no room for that file.
        """
        if self._loaded is not None or self._copy is not None:
            return
        if sum(self._stat(file).st_size for file in self.files) <= IN_MEMORY:
            self._loaded = [self._column(group) for group in range(len(self._groups))]
        else:
            self._copy = self._on_disk()
        self._prepared = True

    def encoded(self, index: int) -> bytes | memoryview:
        """The image's bytes in the file."""
        if self._prepared:  # of a worker that is not forked, only now
            self.prepare()
        if self._copy is not None:
            content, ends = self._copy
            return content[ends[index - 1] if index else 0 : ends[index]].tobytes()
        group, row = self._place(index)
        if self._loaded is not None:
            column = self._loaded[group]
        else:
            if self._cached is None or self._cached[0] != group:
                self._cached = (group, self._column(group))
            column = self._cached[1]
        value = column[row]
        if not value.is_valid:
            raise BadImage(self.reference(index), "the row holds no image bytes")
        return memoryview(value.as_buffer())

    def _place(self, index: int) -> tuple[int, int]:
        """The row group of an image, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        group = int(np.searchsorted(self._ends, index, "right"))
        return group, index - (int(self._ends[group - 1]) if group else 0)

    def _column(self, group: int) -> "pa.Array":
        """The encoded images of one row group, without the other columns."""
        import pyarrow as pa

        file, number = self._groups[group]
        path = self.root / self.files[file]
        try:
            # One thread: Arrow's pool of threads does not survive in a forked worker.
            table = open_file(path).read_row_group(number, columns=[self.columns.image], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"row group {number} of {path} cannot be read: {error}; fetch the file again") from error
        column = table.column(0)
        if pa.types.is_struct(column.type):
            column = column.flatten()[0]
        return column.cast(pa.large_binary()).combine_chunks()

    def __getstate__(self) -> dict:
        # A worker that is not forked prepares anew when it first reads; sending it the images would take longer.
        return {**self.__dict__, "_cached": None, "_loaded": None, "_copy": None}

    def _on_disk(self) -> tuple[np.ndarray, np.ndarray]:
        folder = cache_folder() / "parquet"
        name = f"{self.fingerprint}-{self.version}"
        blob, index = folder / f"{name}.bytes", folder / f"{name}.ends.npy"
        if not (blob.exists() and index.exists()):
            footers = [open_file(self.root / file).metadata for file in self.files]
            needed = sum(footers[file].row_group(group).total_byte_size for file, group in self._groups)
            sweep_drafts(folder)
            check_room(needed, folder, what=f"a copy of {self.name}, to be read in random order,")
            folder.mkdir(parents=True, exist_ok=True)
            self._write(blob, index)
            for before in set(folder.glob(f"{self.fingerprint}*")) - {blob, index}:  # of the files as they were
                before.unlink(missing_ok=True)
        return np.memmap(blob, np.uint8, "r"), np.load(index)

    def _write(self, blob: Path, index: Path) -> None:
        """The index comes last, so that a stopped run leaves no copy that looks whole."""
        ends, total = np.zeros(len(self), np.int64), 0
        with whole_file(blob) as draft, open(draft, "wb") as file:
            for number in range(len(self)):
                group, row = self._place(number)
                if self._cached is None or self._cached[0] != group:
                    self._cached = (group, self._column(group))
                value = self._cached[1][row]
                total += file.write(value.as_buffer()) if value.is_valid else 0
                ends[number] = total
        with whole_file(index) as draft, open(draft, "wb") as file:
            np.save(file, ends)


def images_in(root: Path, files: list[str]) -> int:
    """How many images Parquet ``files`` (relative to ``root``) hold, but for files that cannot be read or hold none."""
    count = 0
    for file in files:
        with suppress(InputError):
            find_columns(root / file)
            count += open_file(root / file).metadata.num_rows
    return count


def open_parquet(name: str, root: Path, files: list[str], skipped: tuple[Skipped, ...] = ()) -> Splits:
    """The images in Parquet ``files`` (relative to ``root``); those named train and test (or val ...) are splits, of
    several to test on the first with labels.

    Raises:
        InputError: a file is not Parquet, holds no images, or its columns differ from the others'.
    """
    words = {file: _split_word(file) for file in files}
    train_word = next((word for word in TRAIN_NAMES if word in words.values()), None)
    tests = [word for word in TEST_NAMES if word in words.values()]
    if train_word is None or not tests:
        columns = find_columns(root / files[0])
        source = ParquetSource(name, root, files, columns, skipped)
        _label(source, None, columns)
        return Splits(train=source, test=None, sentence="The data bring no test split: every image is used to train.")
    of_word = {word: [file for file in files if words[file] == word] for word in (train_word, *tests)}
    columns = find_columns(root / of_word[train_word][0])
    test_word = to_test_on(tests, lambda word: _labelled(root, of_word[word], columns.label))
    assert test_word is not None
    groups = [of_word[train_word], of_word[test_word]]
    unused = [file for file in files if words[file] not in (train_word, test_word)]
    skipped += tuple(Skipped(printable(file), f"neither {train_word} nor {test_word}") for file in unused)
    train = ParquetSource(name, root, groups[0], columns, skipped)
    test = ParquetSource(name, root, groups[1], columns)
    _label(train, test, columns)
    left_out = f"; {len(unused)} other files are left out" if unused else ""
    sentence = f"Train and test are the data's own: files named {train_word} and {test_word}{left_out}."
    return Splits(train=train, test=test, sentence=sentence)


def _label(train: ParquetSource, test: ParquetSource | None, columns: Columns) -> None:
    """Give the sources their labels, if the files have any."""
    if columns.label is None:
        return
    sources = [train] if test is None else [train, test]
    values = [_values(source.root, source.files, columns.label) for source in sources]
    give_labels(sources, columns.label, class_numbers(values, columns.classes))


def _values(root: Path, files: list[str], label: str) -> list[int | float | str | None]:
    return [value for file in files for value in labels_in(_column_of(root / file, label))]


def _labelled(root: Path, files: list[str], label: str | None) -> bool:
    """Whether the files have the column of labels, and any in it."""
    if label is None or any(label not in open_file(root / file).schema_arrow.names for file in files):
        return False
    return names_a_class(_values(root, files, label))


def _column_of(path: Path, name: str) -> "pa.ChunkedArray":
    import pyarrow as pa

    try:
        return open_file(path).read(columns=[name]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"the column {name!r} of {path} cannot be read: {error}; fetch the file again") from error


def _split_word(file: str) -> str | None:
    """The split that a file's name, or else the name of a folder above it, begins with."""
    for part in reversed(Path(file).parts):
        match = _SPLIT_FILE.match(part.lower())
        if match:
            return match[1]
    return None
