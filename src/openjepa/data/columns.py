"""What the columns of a Parquet file mean: which holds images, which labels, and what the classes are called."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int64

from openjepa.data.base import Source
from openjepa.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_IMAGE_NAMES = ("image", "images", "img", "picture", "photo", "pixels", "bytes", "data")
_LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "coarse_label")


class Columns(NamedTuple):
    """Which columns of a Parquet file hold the image's bytes (as a dotted path) and the label, and the class names."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def open_file(path: Path) -> "pq.ParquetFile":
    """A Parquet file's metadata and rows.

    Raises:
        InputError: it is not Parquet or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def find_columns(path: Path) -> Columns:
    """Find the image and the label column by the hub's metadata, else by type and name.

    Raises:
        InputError: there is no column of encoded images.
    """
    import pyarrow as pa

    schema = open_file(path).schema_arrow
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
    # Whole numbers of which some are missing are floats, as pandas writes them; measures are floats more often.
    whole = [field.name for field in schema if _may_name_classes(field.type)]
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    declared = [name for name in whole + floats if _feature_type(features, name) == "ClassLabel"]
    label = next((name for usable in (whole, floats) for name in [*_LABEL_NAMES, *declared] if name in usable), None)
    names = features.get(label, {}).get("names") if label is not None else None
    return Columns(images[choice], label, tuple(names) if names else None)


def _bytes_in(field: "pa.Field") -> str | None:
    """The dotted path of the encoded bytes in a column, if it has any."""
    import pyarrow as pa

    def is_binary(kind: "pa.DataType") -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == "binary_view"

    if is_binary(field.type):
        return field.name
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes" if is_binary(field.type.field("bytes").type) else None
    return None


def _may_name_classes(kind: "pa.DataType") -> bool:
    """Whether values of a type are words, whole numbers, or true and false."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _may_name_classes(kind.value_type)
    is_words = pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"
    return is_words or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def labels_in(column: "pa.ChunkedArray") -> list[int | float | str | None]:
    """The values of a column of labels; None for null and NaN, and whole numbers as such where they are floats."""
    return [_label(value) for value in column.to_pylist()]


def _label(value: int | float | str | None) -> int | float | str | None:
    if not isinstance(value, float):
        return value
    if value.is_integer():
        return int(value)
    return None if math.isnan(value) else value


def _feature_type(features: dict, name: str) -> str | None:
    feature = features.get(name)
    return feature.get("_type") if isinstance(feature, dict) else None


def class_numbers(
    columns: Sequence[Sequence[int | float | str | None]], names: tuple[str, ...] | None
) -> tuple[list[Int64[np.ndarray, "_"]], tuple[str, ...]] | str:
    """Labels as class numbers from 0 (-1 for none), and the class names; or what the column has that is no classes.

    ``columns`` are the train labels and, if there are any, the test labels. Classes need two that occur and, unless
    they have ``names``, two images in each on average. Negative numbers mean that there is no label.
    """
    if names is None:
        values = {value for column in columns for value in column if value is not None}
        if any(isinstance(value, float) for value in values):
            return "has numbers that are not whole"
        if len({isinstance(value, str) for value in values}) > 1:
            return "has numbers in some files and words in others"
        values = sorted(value for value in values if _is_one(value))
        number = {value: index for index, value in enumerate(values)}
        names = tuple(str(value) for value in values)
        if 2 * len(names) > len(columns[0]):
            return f"has {len(names)} values for {len(columns[0])} images, too many for classes"
    else:
        number: dict[int | float | str, int] = {index: index for index in range(len(names))}
    arrays = [np.array([-1 if v is None else number.get(v, -1) for v in column], np.int64) for column in columns]
    found = len(set(arrays[0].tolist()) - {-1})
    return (arrays, names) if found >= 2 else "has one class only" if found else "names no class"


def names_a_class(labels: Iterable[int | float | str | None]) -> bool:
    """Whether any of the values of a column of labels is one: no null, NaN or negative number."""
    return any(value is not None and _is_one(value) for value in labels)


def _is_one(label: int | float | str) -> bool:
    return isinstance(label, str) or label >= 0


def give_labels(
    sources: Sequence[Source], column: str, found: tuple[list[Int64[np.ndarray, "_"]], tuple[str, ...]] | str
) -> None:
    """Give each source what :func:`class_numbers` found in its ``column`` of labels, or the reason for none."""
    if isinstance(found, str):
        for source in sources:
            source.unlabelled = f"the column {column!r} {found}"
        return
    for source, labels in zip(sources, found[0], strict=True):
        source.classes = found[1]
        if (labels >= 0).any():
            source.labels = labels
        else:
            source.unlabelled = f"the column {column!r} names no class"
