"""Images as bytes in Parquet files, the layout of the Hugging Face hub."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int64

from openjepa.data.base import BadImage, Header, Picture, Skipped, Source, Splits
from openjepa.data.decode import decode, read_header
from openjepa.data.folder import TEST_NAMES, TRAIN_NAMES
from openjepa.data.idx import cache_folder
from openjepa.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Below this many bytes the encoded images stay in memory; above, random order reads from a copy on disk.
IN_MEMORY = 2 << 30
_SPLIT_FILE = re.compile(rf"({'|'.join(TRAIN_NAMES + TEST_NAMES)})(?![a-z])")
_IMAGE_NAMES = ("image", "images", "img", "picture", "photo", "pixels", "bytes", "data")
_LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "coarse_label")


class Columns(NamedTuple):
    """Which columns of a Parquet file hold the image's bytes (as a dotted path) and the label, and the class names."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


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
            other = _columns(root / file)
            if (other.image, other.label) != (columns.image, columns.label):
                raise InputError(
                    f"{root / file} has its images and labels in {other.image} and {other.label}, the first file in "
                    f"{columns.image} and {columns.label}; give files with the same columns"
                )
        metadata = [_open(root / file).metadata for file in files]
        counts = [[file.row_group(group).num_rows for group in range(file.num_row_groups)] for file in metadata]
        self._groups = [(file, group) for file, rows in enumerate(counts) for group in range(len(rows))]
        self._ends = np.cumsum([rows for file in counts for rows in file], dtype=np.int64)
        self._cached: tuple[int, pa.Array] | None = None
        self._loaded: list[pa.Array] | None = None
        self._copy: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Picture:
        """The image, decoded from its bytes."""
        return decode(self._bytes(index), self.reference(index), at_least)

    def header(self, index: int) -> Header:
        """Size and kind, from the first bytes."""
        return read_header(self._bytes(index), self.reference(index))

    def reference(self, index: int) -> str:
        """The file and the row in it."""
        group, _ = self._place(index)
        file = self._groups[group][0]
        first = next(number for number, (other, _) in enumerate(self._groups) if other == file)
        return f"{self.files[file]}, row {index - (int(self._ends[first - 1]) if first else 0)}"

    def identity(self) -> Iterator[bytes]:
        """The files' names and sizes."""
        for file in self.files:
            yield file.encode("utf-8", "surrogateescape")
            yield str((self.root / file).stat().st_size).encode()

    def prepare(self) -> None:
        """Hold the encoded images in memory, or in one memory-mapped file in the cache folder when they are many.

        Raises:
            InputError: the disk has no room for that file.
        """
        if self._loaded is not None or self._copy is not None:
            return
        if sum((self.root / file).stat().st_size for file in self.files) <= IN_MEMORY:
            self._loaded = [self._column(group) for group in range(len(self._groups))]
        else:
            self._copy = self._on_disk()

    def _bytes(self, index: int) -> bytes | memoryview:
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
            table = _open(path).read_row_group(number, columns=[self.columns.image], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"row group {number} of {path} cannot be read: {error}; fetch the file again") from error
        column = table.column(0)
        if pa.types.is_struct(column.type):
            column = column.flatten()[0]
        return column.cast(pa.large_binary()).combine_chunks()

    def __getstate__(self) -> dict:
        # A worker that is not forked reads the files itself; sending it the images would take longer.
        return {**self.__dict__, "_cached": None, "_loaded": None, "_copy": None}

    def _on_disk(self) -> tuple[np.ndarray, np.ndarray]:
        folder = cache_folder() / "parquet"
        blob, index = folder / f"{self.fingerprint}.bytes", folder / f"{self.fingerprint}.ends.npy"
        if not index.exists():
            folder.mkdir(parents=True, exist_ok=True)
            needed = sum(
                _open(self.root / file).metadata.row_group(group).total_byte_size
                for file_number, file in enumerate(self.files)
                for owner, group in self._groups
                if owner == file_number
            )
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise InputError(
                    f"{self.name} needs a copy of about {needed / 1e9:.1f} GB in {folder} to be read in random order, "
                    f"and {free / 1e9:.1f} GB are free there; set OPENJEPA_CACHE to a folder with more room"
                )
            self._write(blob, index)
        return np.memmap(blob, np.uint8, "r"), np.load(index)

    def _write(self, blob: Path, index: Path) -> None:
        """The copy is written beside its place and renamed, so that a stopped run leaves none that looks whole."""
        ends, total = np.zeros(len(self), np.int64), 0
        partial = blob.with_suffix(f".{os.getpid()}")
        with open(partial, "wb") as file:
            for number in range(len(self)):
                group, row = self._place(number)
                if self._cached is None or self._cached[0] != group:
                    self._cached = (group, self._column(group))
                value = self._cached[1][row]
                total += file.write(value.as_buffer()) if value.is_valid else 0
                ends[number] = total
        os.replace(partial, blob)
        np.save(partial.with_suffix(".npy"), ends)
        os.replace(partial.with_suffix(".npy"), index)


def open_parquet(name: str, root: Path, files: list[str], skipped: tuple[Skipped, ...] = ()) -> Splits:
    """The images in Parquet ``files`` (relative to ``root``); those named train and test (or val ...) are splits.

    Raises:
        InputError: a file is not Parquet, holds no images, or its columns differ from the others'.
    """
    words = {file: _split_word(file) for file in files}
    train_word = next((word for word in TRAIN_NAMES if word in words.values()), None)
    test_word = next((word for word in TEST_NAMES if word in words.values()), None)
    if train_word is None or test_word is None:
        columns = _columns(root / files[0])
        source = ParquetSource(name, root, files, columns, skipped)
        _label(source, None, columns)
        return Splits(train=source, test=None, sentence="The data bring no test split: every image is used to train.")
    groups = [[file for file in files if words[file] == word] for word in (train_word, test_word)]
    unused = [file for file in files if words[file] not in (train_word, test_word)]
    skipped += tuple(Skipped(file, f"neither {train_word} nor {test_word}") for file in unused)
    columns = _columns(root / groups[0][0])
    train = ParquetSource(name, root, groups[0], columns, skipped)
    test = ParquetSource(name, root, groups[1], columns)
    _label(train, test, columns)
    left_out = f"; {len(unused)} other files are left out" if unused else ""
    sentence = f"Train and test are the data's own: files named {train_word} and {test_word}{left_out}."
    return Splits(train=train, test=test, sentence=sentence)


def class_numbers(
    columns: list[list[int | str | None]], names: tuple[str, ...] | None
) -> tuple[list[Int64[np.ndarray, "n"]], tuple[str, ...]] | None:
    """Labels as class numbers from 0 (-1 for none), and the class names; None where they are no classes.

    ``columns`` are the train labels and, if there are any, the test labels. Classes need two that occur and, unless
    they have ``names``, two images in each on average. Negative numbers mean that there is no label.
    """
    if names is None:
        values = sorted({value for column in columns for value in column if value is not None})
        values = [value for value in values if isinstance(value, str) or value >= 0]
        number = {value: index for index, value in enumerate(values)}
        names = tuple(str(value) for value in values)
        if 2 * len(names) > len(columns[0]):
            return None
    else:
        number: dict[int | str, int] = {index: index for index in range(len(names))}
    arrays = [np.array([-1 if v is None else number.get(v, -1) for v in column], np.int64) for column in columns]
    return (arrays, names) if len(set(arrays[0].tolist()) - {-1}) >= 2 else None


def _label(train: ParquetSource, test: ParquetSource | None, columns: Columns) -> None:
    """Give the sources their labels, if the files have any."""
    if columns.label is None:
        return
    sources = [train] if test is None else [train, test]
    values = []
    for source in sources:
        tables = [_open(source.root / file).read(columns=[columns.label]) for file in source.files]
        values.append([value for table in tables for value in table.column(0).to_pylist()])
    found = class_numbers(values, columns.classes)
    if found is None:
        return
    for source, labels in zip(sources, found[0], strict=True):
        source.labels = labels if (labels >= 0).any() else None
        source.classes = found[1]


def _columns(path: Path) -> Columns:
    """Find the image and the label column by the hub's metadata, else by type and name."""
    import pyarrow as pa

    schema = _open(path).schema_arrow
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    images = {field.name: leaf for field in schema if (leaf := _bytes_in(field)) is not None}
    declared = [name for name in images if _feature_type(features, name) == "Image"]
    named = [name for name in _IMAGE_NAMES if name in images]
    choice = next(iter([*declared, *named, *(images if len(images) == 1 else [])]), None)
    if choice is None:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(
            f"{path} has no column of encoded images (bytes named image, or a struct with bytes); it has {columns}"
        )
    usable = [
        field.name
        for field in schema
        if pa.types.is_integer(field.type) or pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)
    ]
    declared = [name for name in usable if _feature_type(features, name) == "ClassLabel"]
    label = next((name for name in [*_LABEL_NAMES, *declared] if name in usable), None)
    names = features.get(label, {}).get("names") if label is not None else None
    return Columns(images[choice], label, tuple(names) if names else None)


def _bytes_in(field: "pa.Field") -> str | None:
    """The dotted path of the encoded bytes in a column, if it has any."""
    import pyarrow as pa

    def is_binary(kind: "pa.DataType") -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    if is_binary(field.type):
        return field.name
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes" if is_binary(field.type.field("bytes").type) else None
    return None


def _feature_type(features: dict, name: str) -> str | None:
    feature = features.get(name)
    return feature.get("_type") if isinstance(feature, dict) else None


def _split_word(file: str) -> str | None:
    """The split that a file's name, or else the name of a folder above it, begins with."""
    for part in reversed(Path(file).parts):
        match = _SPLIT_FILE.match(part.lower())
        if match:
            return match[1]
    return None


def _open(path: Path) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error
