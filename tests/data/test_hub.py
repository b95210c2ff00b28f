"""Data sets of the `datasets` library, from memory and from a local folder; skipped without the extra `hub`."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from openjepa.data import hub
from openjepa.data.base import BadImage
from openjepa.data.hub import hub_splits, open_hub
from openjepa.errors import InputError

datasets = pytest.importorskip("datasets")


def encoded(value: int) -> dict:
    file = io.BytesIO()
    Image.new("L", (5, 4), value).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def split(values, labels):
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"photo": [None if value is None else encoded(value) for value in values], "kind": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def test_splits_labels_and_images():
    found = hub_splits("owner/name", {"train": split([1, 2, None], [0, 1, 1]), "validation": split([9, 8], [-1, -1])})
    assert found.test is not None
    assert [int(np.asarray(found.train.read(index))[0, 0]) for index in range(2)] == [1, 2]
    assert found.train.labels.tolist() == [0, 1, 1]
    assert found.train.classes == ("cat", "dog")
    assert found.test.labels is None
    assert found.test.unlabelled == "the column 'kind' names no class"
    assert found.test.header(1)[:3] == (4, 5, 1)
    assert "train and validation" in found.sentence
    with pytest.raises(BadImage, match="owner/name, train, row 2: the row holds no image"):
        found.train.read(2)
    again = pickle.loads(pickle.dumps(found.train))
    assert again.fingerprint == found.train.fingerprint
    assert again.read(0).size == (5, 4)


def test_a_row_names_files_among_the_downloads_alone(tmp_path, monkeypatch):
    files = [tmp_path / "downloads" / "a.png", tmp_path / "home" / "b.png", tmp_path / "downloads" / "link.png"]
    for path in files[:2]:
        path.parent.mkdir()
        Image.new("L", (5, 4), 7).save(path)
    files[2].symlink_to(files[1])
    features = datasets.Features({"photo": datasets.Image()})
    rows = {"photo": [{"bytes": None, "path": str(path)} for path in files]}
    monkeypatch.setattr(hub, "_downloads", lambda: (tmp_path / "downloads",))
    source = hub_splits("owner/name", {"train": datasets.Dataset.from_dict(rows, features=features)}).train
    assert np.asarray(source.read(0))[0, 0] == 7
    assert source.encoded(0) == files[0].read_bytes()
    for row in (1, 2):
        for read in (source.read, source.header, source.remarks, source.encoded):
            with pytest.raises(BadImage, match=r"row \d: the row names the file .*, which is not among"):
                read(row)


def test_of_several_to_test_on_the_first_with_labels_counts():
    labelled, unlabelled = split([9, 8, 7], [0, 1, 1]), split([6, 5], [-1, -1])
    bare = datasets.Dataset.from_dict({"photo": unlabelled["photo"]})
    for test in (unlabelled, bare):
        found = hub_splits("owner/name", {"train": split([1, 2], [0, 1]), "test": test, "validation": labelled})
        assert found.test.labels.tolist() == [0, 1, 1]
        assert "train and validation" in found.sentence
    found = hub_splits("owner/name", {"train": split([1, 2], [0, 1]), "test": bare})
    assert (len(found.test), found.test.labels) == (2, None)


def test_a_single_split_and_no_images():
    found = hub_splits("owner/name", {"all": split([1, 2, 3, 4], [0, 0, 1, 1])})
    assert found.test is None
    assert len(found.train) == 4
    one = hub_splits("owner/name", {"all": split([1, 2], [1, 1])}).train
    assert (one.labels, one.unlabelled) == (None, "the column 'kind' has one class only")
    with pytest.raises(InputError, match="no column of images; its columns: text"):
        hub_splits("owner/name", {"train": datasets.Dataset.from_dict({"text": ["a"]})})


def test_what_goes_wrong_in_the_library_itself_is_a_sentence(monkeypatch):
    def broken(_: str) -> None:
        raise datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(InputError, match="the Hugging Face hub did not give it: An error occurred while generating"):
        open_hub("owner/name")


def test_a_name_that_the_hub_does_not_give(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no file or folder no-such-owner/no-such-name, and the Hugging Face hub"):
        open_hub("no-such-owner/no-such-name")
