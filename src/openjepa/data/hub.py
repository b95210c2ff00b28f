"""Data sets of the Hugging Face hub, by their id, through the `datasets` library (extra `hub`)."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from openjepa.data.base import BadImage, Header, Picture, Source, Splits, printable, to_test_on
from openjepa.data.columns import class_numbers, give_labels, names_a_class
from openjepa.data.decode import decode
from openjepa.data.folder import TEST_NAMES, TRAIN_NAMES
from openjepa.data.headers import read_header, remarks
from openjepa.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


class HubSource(Source):
    """One split of a hub data set, as encoded images that `datasets` keeps memory-mapped.

    Args:
        name: the hub id.
        split: the split's name.
        dataset: its rows.
        column: the column of images.
    """

    def __init__(self, name: str, split: str, dataset: "Dataset", column: str) -> None:
        from datasets import Image

        self.name, self.split = name, split
        self._rows = dataset.cast_column(column, Image(decode=False)).select_columns([column])
        self._column = column

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Picture:
        """The image, decoded from its bytes."""
        return decode(self._encoded(index), self.reference(index), at_least)

    def header(self, index: int) -> Header:
        """Size and kind, from the first bytes."""
        return read_header(self._encoded(index), self.reference(index))

    def remarks(self, index: int) -> tuple[str, ...]:
        """What becomes of pages and transparency."""
        return remarks(self._encoded(index), self.reference(index))

    def reference(self, index: int) -> str:
        """The split and the row in it."""
        return f"{self.name}, {self.split}, row {index}"

    def identity(self) -> Iterator[bytes]:
        """The id, the split, the number of rows and their size."""
        for part in (self.name, self.split, len(self), self._rows.info.dataset_size):
            yield str(part).encode()

    def encoded(self, index: int) -> bytes:
        """The image's bytes in the data set, or in the file that it names."""
        found = self._encoded(index)
        try:
            return Path(found).read_bytes() if isinstance(found, str) else found
        except OSError as error:
            raise BadImage(self.reference(index), f"cannot be read: {error.strerror}") from error

    def _encoded(self, index: int) -> bytes | str:
        value = self._rows[index][self._column]
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise BadImage(self.reference(index), "the row holds no image")
        if value["bytes"] is not None:
            return value["bytes"]
        if not any(Path(value["path"]).resolve().is_relative_to(folder) for folder in _downloads()):
            raise BadImage(
                self.reference(index),
                f"the row names the file {printable(value['path'])}, which is not among those that were downloaded",
            )
        return value["path"]


@cache
def _downloads() -> tuple[Path, ...]:
    """Where the files of hub data sets lie; a row that names another one would have a file of the user's read."""
    from datasets import config
    from huggingface_hub import constants

    named = config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH
    return tuple(Path(folder).resolve() for folder in (*named, constants.HF_HUB_CACHE))


def open_hub(name: str) -> Splits:
    """The data set ``owner/name`` of the Hugging Face hub, downloaded into `datasets`' own cache.

    Raises:
        InputError: the extra is missing, there is no such data set, or it holds no images.
    """
    try:
        from datasets import DatasetDict, load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise InputError(
            f"there is no file or folder {name}; to read it as a data set of the Hugging Face hub, "
            "install the extra: pip install openjepa[hub]"
        ) from error
    try:
        found = load_dataset(name)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"there is no file or folder {name}, and the Hugging Face hub did not give it: {error}"
        ) from error
    if not isinstance(found, DatasetDict):
        raise InputError(f"{name} cannot be read by number; download it and give the folder instead")
    return hub_splits(name, {str(split): rows for split, rows in found.items()})


def hub_splits(name: str, splits: "dict[str, Dataset]") -> Splits:
    """Choose the splits, the column of images and the labels of a hub data set."""
    from datasets import ClassLabel, Image

    train_name = next((word for word in TRAIN_NAMES if word in splits), next(iter(splits)))
    features = splits[train_name].features
    column = next((key for key, feature in features.items() if isinstance(feature, Image)), None)
    if column is None:
        raise InputError(f"{name} has no column of images; its columns: {', '.join(features)}")
    label = next((key for key, feature in features.items() if isinstance(feature, ClassLabel)), None)
    tests = [word for word in TEST_NAMES if word in splits and word != train_name]
    test_name = to_test_on(tests, lambda word: names_a_class(_labels(splits[word], label)))
    names = [train_name] if test_name is None else [train_name, test_name]
    sources = [HubSource(name, split, splits[split], column) for split in names]
    if label is not None:
        values = [_labels(splits[split], label) for split in names]
        give_labels(sources, label, class_numbers(values, tuple(features[label].names)))
    test = sources[1] if test_name is not None else None
    sentence = (
        f"Train and test are the data's own: the splits {train_name} and {test_name}."
        if test is not None
        else f"The data bring no test split: every image of {train_name} is used to train."
    )
    return Splits(train=sources[0], test=test, sentence=sentence)


def _labels(split: "Dataset", label: str | None) -> list[int | None]:
    """The column of labels, with None for every row of a split that has no such column."""
    return list(split[label]) if label is not None and label in split.features else [None] * len(split)
