"""The list of a folder's files: its order, and when it is remembered."""

import os
import random

import numpy as np
import pytest
from PIL import Image

from openjepa.data import listing
from openjepa.data.listing import Files, scan
from openjepa.data.sources import open_data


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder; lists of three files or more are remembered, as if all had been written a minute ago."""
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "REMEMBERED_FROM", 3)
    monkeypatch.setattr(listing, "_SETTLED", -60.0)
    return tmp_path / "cache" / "listings"


def grow(folder, names):
    """Files of one byte below ``folder``."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def walks(monkeypatch):
    """Counts how often a folder is walked."""
    seen = []
    whole = listing._walk
    monkeypatch.setattr(listing, "_walk", lambda root: (seen.append(root), whole(root))[1])
    return seen


@pytest.mark.parametrize("seed", range(5))
def test_paths_are_sorted_whatever_the_tree(tmp_path, cache, seed):
    chosen = random.Random(seed)
    parts = ["a", "a-1", "a.b", "ab", "b", "Z", "é", "0"]
    names = set()
    for _ in range(60):
        folders = [chosen.choice(parts) for _ in range(chosen.randrange(4))]
        names.add("/".join([*folders, f"{chosen.choice(parts)}{chosen.randrange(5)}.png"]))
    grow(tmp_path / "data", names)
    assert list(scan(str(tmp_path / "data")).images) == sorted(names)
    again = scan(str(tmp_path / "data")).images
    assert list(again) == sorted(names) == [again[number] for number in range(len(again))]


def test_files_as_given_and_parts_of_them():
    paths = ["b/2.png", "b/1.png", "a.png", "b/3.png"]
    files = Files.of(paths)
    assert list(files) == paths
    assert list(files.runs()) == [("b/", 0, 2), ("", 2, 3), ("b/", 3, 4)]
    assert list(files.part([("b/", 3, 4), ("b/", 0, 2)])) == ["b/3.png", "b/2.png", "b/1.png"]
    assert list(files.part([])) == list(Files.of([])) == []
    with pytest.raises(IndexError, match="file 4 of 4"):
        files[4]


def test_a_list_is_remembered_while_nothing_changes(tmp_path, cache, monkeypatch):
    grow(tmp_path / "data", [f"{kind}/{number}.png" for kind in "ab" for number in range(3)])
    (tmp_path / "data" / "notes.txt").write_text("hello")
    seen = walks(monkeypatch)
    first = open_data(tmp_path / "data").train
    assert len(list(cache.iterdir())) == len(seen) == 1
    second = open_data(tmp_path / "data").train
    assert len(seen) == 1
    assert [first.reference(n) for n in range(6)] == [second.reference(n) for n in range(6)]
    assert (first.fingerprint, first.skipped, first.classes) == (second.fingerprint, second.skipped, second.classes)
    np.testing.assert_array_equal(first.labels, second.labels)


@pytest.mark.parametrize("change", ["added", "unpacked", "removed", "renamed", "damaged", "moved"])
def test_a_change_is_noticed(tmp_path, cache, monkeypatch, change):
    data = tmp_path / "data"
    grow(data, [f"{kind}/{number}.png" for kind in "ab" for number in range(3)])
    before = open_data(data).train.fingerprint
    seen = walks(monkeypatch)
    if change == "added":
        (data / "b" / "3.png").write_bytes(b"x")
    elif change == "unpacked":  # by a program that sets the folder's time back afterwards, as tar does
        was = (data / "b").stat()
        (data / "b" / "3.png").write_bytes(b"x")
        os.utime(data / "b", ns=(was.st_atime_ns, was.st_mtime_ns))
    elif change == "removed":
        (data / "b" / "1.png").unlink()
    elif change == "renamed":
        (data / "b" / "1.png").rename(data / "b" / "9.png")
    elif change == "damaged":
        (kept,) = cache.iterdir()
        kept.write_bytes(kept.read_bytes()[:100])
    else:
        data = data.rename(tmp_path / "elsewhere")
    after = open_data(data).train
    assert len(seen) == 1
    assert len(after) == 6 + (change in ("added", "unpacked")) - (change == "removed")
    assert (after.fingerprint == before) == (change in ("damaged", "moved"))


def test_a_file_that_is_overwritten_in_place_changes_the_fingerprint(tmp_path, cache, monkeypatch):
    grow(tmp_path / "data", [f"{number}.png" for number in range(4)])
    before = open_data(tmp_path / "data").train.fingerprint
    seen = walks(monkeypatch)
    (tmp_path / "data" / "2.png").write_bytes(b"longer")
    assert open_data(tmp_path / "data").train.fingerprint != before
    assert not seen


@pytest.mark.parametrize("content", [bytes(100), b"PK" * 400], ids=["zeros", "half a header"])
def test_any_damage_to_a_list_is_survived(tmp_path, cache, content):
    grow(tmp_path / "data", [f"{number}.png" for number in range(4)])
    scan(str(tmp_path / "data"))
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    chosen = random.Random(0)
    for _ in range(150):
        start = chosen.randrange(len(whole))
        kept.write_bytes(whole[:start] + content[: chosen.randrange(1, 9)] + whole[start + 4 :])
        assert len(scan(str(tmp_path / "data")).images) == 4


@pytest.mark.parametrize("passing", ["a broken link", "an empty file"])
def test_what_may_be_mended_tomorrow_is_not_remembered(tmp_path, cache, passing):
    data = tmp_path / "data"
    grow(data, [f"{number}.png" for number in range(4)])
    if passing == "a broken link":
        (data / "drive").symlink_to(tmp_path / "drive")
    else:
        (data / "nameless").touch()
    assert len(scan(str(data)).images) == 4
    grow(tmp_path / "drive", ["5.png"])
    Image.new("L", (8, 8)).save(data / "nameless", "PNG")
    assert len(scan(str(data)).images) == 5 + (passing == "a broken link")


def test_a_folder_that_may_still_be_changing_is_not_remembered(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(listing, "_SETTLED", 2.0)
    grow(tmp_path / "data", [f"{number}.png" for number in range(4)])
    scan(str(tmp_path / "data"))
    assert not cache.exists()


def test_nothing_is_written_for_a_small_folder_or_without_a_place(tmp_path, cache, monkeypatch, homeless):
    grow(tmp_path / "small", ["1.png", "2.png"])
    grow(tmp_path / "large", [f"{number}.png" for number in range(4)])
    scan(str(tmp_path / "small"))
    assert not cache.exists()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "file"))
    assert len(scan(str(tmp_path / "large")).images) == 4

    homeless()
    assert len(scan(str(tmp_path / "large")).images) == 4
