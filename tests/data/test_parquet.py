"""Images in Parquet: columns, labels, splits, nulls, and both ways to read in random order."""

import io
import json
import os
import pickle
import shutil
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from openjepa.data import parquet
from openjepa.data.sources import BadImage, ParquetSource, open_data
from openjepa.errors import InputError


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (5, 4), value).save(file, "PNG")
    return file.getvalue()


def write(path: Path, values, labels=None, *, names=None, plain=False, rows=3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [None if value is None else encoded(value) for value in values]
    columns = {"image": data if plain else [{"bytes": item, "path": "p"} for item in data]}
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)


def values(source) -> list[int]:
    return [int(np.asarray(source.read(index))[0, 0]) for index in range(len(source))]


@pytest.mark.parametrize("pictures", [1, 3])
def test_pictures_beside_parquet_files(tmp_path, pictures):
    """A card's preview is no data set, and neither is a table beside more pictures; whichever is left out is said."""
    write(tmp_path / "data" / "train.parquet", [7, 8])
    pq.write_table(pa.table({"caption": ["none"] * 9}), tmp_path / "captions.parquet")
    for number in range(pictures):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    if pictures < 2:
        (tmp_path / "captions.parquet").unlink()
        source = open_data(str(tmp_path)).train
        assert values(source) == [7, 8]
        assert [tuple(skip) for skip in source.skipped] == [
            ("0.png", "a picture beside Parquet files that hold more images")
        ]
    else:
        source = open_data(str(tmp_path)).train
        assert values(source) == [0, 1, 2]
        assert [skip.reference for skip in source.skipped] == ["captions.parquet", "data/train.parquet"]


@pytest.mark.parametrize("plain", [False, True])
def test_one_file(tmp_path, plain):
    write(tmp_path / "x.parquet", range(10), plain=plain)
    splits = open_data(str(tmp_path / "x.parquet"))
    assert splits.test is None
    assert splits.train.labels is None
    assert values(splits.train) == list(range(10))
    assert splits.train.header(3)[:3] == (4, 5, 1)
    assert splits.train.reference(7) == "x.parquet, row 7"


@pytest.mark.parametrize("layout", ["train-00000-of-00002.parquet", "data/train/a.parquet"])
def test_folder_with_splits_labels_and_class_names(tmp_path, layout):
    write(tmp_path / layout, range(4), [0, 1, 0, 1], names=["cat", "dog", "emu"])
    write(tmp_path / layout.replace("00000-of", "00001-of").replace("a.p", "b.p"), range(4, 8), [0, 1, 2, -1])
    write(tmp_path / "validation.parquet", range(8, 10), [2, 0])
    write(tmp_path / "other.parquet", range(3), [2, 0, 1])
    splits = open_data(str(tmp_path))
    assert values(splits.train) == list(range(8))
    assert splits.train.reference(5) == f"{splits.train.files[1]}, row 1"
    assert values(splits.test) == [8, 9]
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 2, -1]
    assert splits.test.labels.tolist() == [2, 0]
    assert splits.train.classes == ("cat", "dog", "emu")
    assert "train and validation; 1 other files" in splits.sentence
    assert [skip.reference for skip in splits.train.skipped] == ["other.parquet"]


def test_labels_without_metadata(tmp_path):
    write(tmp_path / "words.parquet", range(6), ["b", "a", None, "b", "a", "a"])
    source = open_data(str(tmp_path / "words.parquet")).train
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [1, 0, -1, 1, 0, 0]
    write(tmp_path / "numbers.parquet", range(6), [70, 7, -1, 70, 7, 7])
    source = open_data(str(tmp_path / "numbers.parquet")).train
    assert source.classes == ("7", "70")
    assert source.labels.tolist() == [1, 0, -1, 1, 0, 0]
    write(tmp_path / "captions.parquet", range(6), list("abcdef"))
    assert open_data(str(tmp_path / "captions.parquet")).train.labels is None


@pytest.mark.parametrize(
    ("kind", "given", "classes"),
    [
        (pa.large_string(), ["b", "a", None, "b", "a", "a"], ("a", "b")),
        (pa.string_view(), ["b", "a", None, "b", "a", "a"], ("a", "b")),
        (pa.dictionary(pa.int8(), pa.large_string()), ["b", "a", None, "b", "a", "a"], ("a", "b")),
        (pa.bool_(), [True, False, None, True, False, False], ("False", "True")),
        (pa.float64(), [7.0, 3.0, float("nan"), 7.0, 3.0, 3.0], ("3", "7")),
        (pa.float32(), [7.0, 3.0, None, 7.0, 3.0, 3.0], ("3", "7")),
    ],
)
def test_labels_as_other_libraries_write_them(tmp_path, kind, given, classes):
    write(tmp_path / "x.parquet", range(6), pa.array(given, kind))
    source = open_data(str(tmp_path / "x.parquet")).train
    assert source.classes == classes
    assert source.labels.tolist() == [1, 0, -1, 1, 0, 0]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([3] * 6, "the column 'label' has one class only"),
        ([None] * 6, "the column 'label' names no class"),
        (list("abcdef"), "the column 'label' has 6 values for 6 images, too many for classes"),
        ([0.5, 1.0, 1.0, 1.0, 1.0, 0.5], "the column 'label' has numbers that are not whole"),
        (None, "no class folders, no label column"),
    ],
)
def test_a_column_that_is_no_classes_is_said(tmp_path, given, why):
    write(
        tmp_path / "x.parquet",
        range(6),
        None if given is None else pa.array(given, pa.int8() if given[0] is None else None),
    )
    source = open_data(str(tmp_path / "x.parquet")).train
    assert source.labels is None
    assert source.classes == ()
    assert source.unlabelled == why


def test_labels_that_are_numbers_in_one_file_and_words_in_another_are_no_classes(tmp_path):
    write(tmp_path / "a.parquet", range(4), pa.array([0, 1, 0, 1]))
    write(tmp_path / "b.parquet", range(4), pa.array(list("abab")))
    source = open_data(str(tmp_path)).train
    assert source.labels is None
    assert source.unlabelled == "the column 'label' has numbers in some files and words in others"


def test_a_measure_does_not_hide_a_column_of_classes(tmp_path):
    table = {"image": [encoded(1)] * 4, "target": [0.1, 0.2, 0.3, 0.4], "fine_label": [0, 1, 0, 1]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    assert open_data(str(tmp_path / "x.parquet")).train.labels.tolist() == [0, 1, 0, 1]


def test_missing_bytes_are_a_bad_image(tmp_path):
    for plain in (False, True):
        write(tmp_path / "x.parquet", [1, None, 2], plain=plain)
        source = open_data(str(tmp_path / "x.parquet")).train
        with pytest.raises(BadImage, match=r"x\.parquet, row 1: the row holds no image bytes"):
            source.read(1)


@pytest.mark.parametrize("in_memory", [True, False])
def test_random_order_after_prepare(tmp_path, monkeypatch, in_memory):
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "cache"))
    if not in_memory:
        monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    write(tmp_path / "data" / "a.parquet", [*range(5), None])
    write(tmp_path / "data" / "b.parquet", range(6, 11))
    for _ in range(2):  # the second one finds the copy
        source = open_data(str(tmp_path / "data")).train
        source.prepare()
        assert [values_at(source, index) for index in (10, 0, 7, 3)] == [10, 0, 7, 3]
        with pytest.raises(BadImage):
            source.read(5)
    copies = list((tmp_path / "cache").rglob("*.bytes"))
    assert bool(copies) is not in_memory
    again = pickle.loads(pickle.dumps(source))  # as a worker that is not forked gets it
    groups = []
    read = again._column
    monkeypatch.setattr(again, "_column", lambda group: groups.append(group) or read(group))
    assert [values_at(again, index) for index in (9, 0, 8, 2)] == [9, 0, 8, 2]
    assert groups == ([0, 1, 2, 3] if in_memory else []), "each row group once, or none"
    assert list((tmp_path / "cache").rglob("*.bytes")) == copies


@pytest.mark.parametrize("lost", ["*.bytes", "*.ends.npy"])
def test_a_copy_is_of_the_files_as_they_are(tmp_path, monkeypatch, lost):
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    path = tmp_path / "x.parquet"

    def held() -> list[int]:
        source = open_data(str(path)).train
        source.prepare()
        return [values_at(source, index) for index in range(3)]

    write(path, [1, 2, 3])
    size = path.stat().st_size
    assert held() == [1, 2, 3]
    for first in range(4, 200):  # other images under the same name, until they take as many bytes
        others = [first, first + 1, first + 2]
        write(path, others)
        if path.stat().st_size == size:
            break
    assert path.stat().st_size == size
    os.utime(path, ns=(1, 1))
    assert held() == others
    assert len(list((tmp_path / "cache").rglob("*.bytes"))) == 1, "the copy of the files as they were is gone"
    for part in (tmp_path / "cache").rglob(lost):  # as a person might to free some space
        part.unlink()
    assert held() == others


def values_at(source, index: int) -> int:
    return int(np.asarray(source.read(index))[0, 0])


def test_what_a_killed_copy_left_goes_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    write(tmp_path / "x.parquet", range(5))
    source = open_data(str(tmp_path / "x.parquet")).train
    folder = tmp_path / "cache" / "parquet"
    folder.mkdir(parents=True)
    left = [folder / f".{source.fingerprint}-{version}.bytes.0123abcd.part" for version in ("old", "living")]
    for draft in left:
        draft.write_bytes(b"half of a copy")
    os.utime(left[0], (1, 1))
    source.prepare()
    assert [draft.exists() for draft in left] == [False, True]


def test_a_file_that_is_gone_is_named(tmp_path):
    write(tmp_path / "x.parquet", range(5))
    source = open_data(str(tmp_path / "x.parquet")).train
    (tmp_path / "x.parquet").unlink()
    for look in (lambda: source.fingerprint, lambda: source.version, source.prepare):
        with pytest.raises(InputError, match=r"x\.parquet cannot be read any more \(No such file"):
            look()


def test_copy_on_disk_needs_a_place(tmp_path, monkeypatch, homeless):
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    write(tmp_path / "x.parquet", range(5))
    homeless()
    with pytest.raises(InputError, match="set OPENJEPA_CACHE"):
        open_data(str(tmp_path / "x.parquet")).train.prepare()


def test_copy_on_disk_needs_room(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    write(tmp_path / "x.parquet", range(5))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(InputError, match=r"a copy of .*x\.parquet, to be read .*, would take about .*OPENJEPA_CACHE"):
        open_data(str(tmp_path / "x.parquet")).train.prepare()


def test_errors(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as Parquet"):
        open_data(str(tmp_path / "x.parquet"))
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "y.parquet")
    with pytest.raises(InputError, match=r"no column of encoded images.*text \(string\), n \(int64\)"):
        open_data(str(tmp_path / "y.parquet"))


def test_files_with_other_columns_are_named(tmp_path):
    write(tmp_path / "data" / "a.parquet", range(3))
    write(tmp_path / "data" / "b.parquet", range(3), plain=True)
    with pytest.raises(InputError, match=r"b\.parquet"):
        open_data(str(tmp_path / "data"))


def test_damaged_rows_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    pq.write_table(pa.table({"image": [noise, noise]}), tmp_path / "x.parquet", compression="snappy")
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4:60] = bytes(56)
    (tmp_path / "x.parquet").write_bytes(content)
    source = open_data(str(tmp_path / "x.parquet")).train
    assert isinstance(source, ParquetSource)
    with pytest.raises(InputError, match=r"row group 0 of .*x\.parquet cannot be read"):
        source.read(0)


@pytest.mark.parametrize("labels", [None, [-1, -1]])
def test_of_several_to_test_on_the_first_with_labels_counts(tmp_path, labels):
    write(tmp_path / "train.parquet", [1, 2, 3, 4], [0, 1, 0, 1])
    write(tmp_path / "test.parquet", [5, 6], labels)
    write(tmp_path / "validation.parquet", [7, 8, 9], [0, 1, 1])
    splits = open_data(str(tmp_path))
    assert splits.test is not None
    assert values(splits.test) == [7, 8, 9]
    assert splits.test.labels.tolist() == [0, 1, 1]
    assert "files named train and validation; 1 other files are left out" in splits.sentence
