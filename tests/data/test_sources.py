"""What open_data makes of folders, files and names, and what it says when it cannot."""

import os
import pickle
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import telling
from openjepa.data.sources import BadImage, FolderSource, in_full, open_data
from openjepa.errors import InputError


def put(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number, 0, 0)).save(path)


def references(source) -> list[str]:
    return [source.reference(index) for index in range(len(source))]


def test_flat_nested_and_deep_layouts(tmp_path):
    put(tmp_path, "b.png", "a.JPG", "deep/er/c.webp", "d.tiff", "e.bmp", "f.gif")
    np.save(tmp_path / "g.npy", np.zeros((4, 4, 5), np.uint8))
    (tmp_path / ".hidden.png").write_bytes(b"no")
    (tmp_path / ".cache").mkdir()
    put(tmp_path / ".cache", "h.png")
    (tmp_path / "notes.txt").write_text("hello")
    splits = open_data(str(tmp_path))
    assert references(splits.train) == ["a.JPG", "b.png", "d.tiff", "deep/er/c.webp", "e.bmp", "f.gif", "g.npy"]
    assert splits.test is None
    assert splits.train.labels is None
    assert [tuple(skip) for skip in splits.train.skipped] == [("notes.txt", "not an image")]
    assert [splits.train.read(index) is not None for index in range(7)] == [True] * 7
    with pytest.raises(IndexError):
        splits.train.read(7)


def test_class_folders_give_labels(tmp_path):
    put(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "dog/3.png")
    source = open_data(str(tmp_path)).train
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1, 1]


def test_class_folders_inside_one_folder_count_too(tmp_path):
    put(tmp_path, "unpacked/cat/1.png", "unpacked/cat/2.png", "unpacked/dog/1.png", "unpacked/dog/2.png")
    assert open_data(str(tmp_path)).train.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "loose.png"), "1 of the images lie beside the 2 folders"),
        (("cat/1.png", "cat/2.png", "dog/sub/1.png", "dog/sub/2.png"), "2 folders that might be classes hold folders"),
        (("cat/1.png", "cat/2.png"), "no class folders"),
        (("a/1.png", "b/1.png", "c/1.png"), "3 class folders with fewer than two images each"),
    ],
)
def test_folders_that_are_no_classes(tmp_path, names, why):
    put(tmp_path, *names)
    source = open_data(str(tmp_path)).train
    assert len(source) == len(names)
    assert source.labels is None
    assert source.classes == ()
    assert why in source.unlabelled


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "Validation", "test_images", "val2017", "testset"])
def test_split_folders(tmp_path, test_name):
    train = [f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    test = [f"{test_name}/{name}/{number}.png" for name in ("cat", "dog", "emu") for number in range(2)]
    put(tmp_path, *train, *test, "extra/1.png")
    splits = open_data(str(tmp_path))
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (6, 6)
    assert splits.train.classes == splits.test.classes == ("cat", "dog", "emu")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert f"train and {test_name}" in splits.sentence
    assert "1 images outside" in splits.sentence
    assert [skip.reference for skip in splits.train.skipped] == ["extra/1.png"]


def test_a_split_without_classes_has_no_labels(tmp_path):
    put(tmp_path, *(f"train/{name}/{number}.png" for name in "ab" for number in range(3)), "test/1.png", "test/2.png")
    splits = open_data(str(tmp_path))
    assert splits.train.labels is not None
    assert splits.test.labels is None
    assert "the test images have no labels (no class folders, no label column), so accuracies" in splits.said
    assert splits.sentence in splits.said


def test_train_alone_and_a_class_called_train_are_no_splits(tmp_path):
    put(tmp_path / "one", *(f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(2)))
    splits = open_data(str(tmp_path / "one"))
    assert splits.test is None
    assert splits.train.classes == ("cat", "dog")
    put(tmp_path / "two", *(f"{name}/{number}.png" for name in ("boat", "train", "valley") for number in range(2)))
    splits = open_data(str(tmp_path / "two"))
    assert splits.test is None
    assert splits.train.classes == ("boat", "train", "valley")


def test_test_comes_before_val_and_val_is_not_trained_on(tmp_path):
    put(tmp_path, "train/1.png", "val/1.png", "test/1.png", "test/2.png")
    splits = open_data(str(tmp_path))
    assert (len(splits.train), len(splits.test)) == (1, 2)


def test_a_val_with_classes_comes_before_a_test_without(tmp_path):
    classed = [f"{part}/{name}/{number}.png" for part in ("train", "val") for name in "ab" for number in range(2)]
    put(tmp_path, *classed, "test/1.png", "test/2.png")
    splits = open_data(str(tmp_path))
    assert splits.test is not None
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    assert "the folders train and val; 2 images outside" in splits.sentence


def test_raw_files_are_named_before_what_is_no_image(tmp_path):
    put(tmp_path, "photo.png")
    for name in ("a.txt", "b.CR3"):
        (tmp_path / name).write_bytes(b"bytes")
    source = open_data(str(tmp_path)).train
    assert telling(source.skipped) == ("b.CR3", "a camera's raw file, which is not read: convert it to JPEG or TIFF")
    (tmp_path / "photo.png").unlink()
    with pytest.raises(InputError, match=r"2 files were looked at, for example b\.CR3 \(a camera's raw file"):
        open_data(str(tmp_path))


@pytest.mark.parametrize(
    ("folders", "chosen"),
    [
        (("train2017", "val2017"), ("train2017", "val2017")),
        (("train2014", "train2017", "val2014", "val2017"), ("train2017", "val2017")),
        (("train", "train_v2", "val", "val_256"), ("train", "val")),
        (("Training_2", "test-256"), ("Training_2", "test-256")),
        (("train_images", "train_masks", "test_images", "test_masks"), ("train_images", "test_images")),
        (("train_labels", "val_labels"), None),
        (("train_station", "test_tube", "dog"), None),
        (("trains", "tester"), None),
    ],
)
def test_split_folders_with_a_year_or_a_version(tmp_path, folders, chosen):
    put(tmp_path, *(f"{folder}/{number}.png" for folder in folders for number in range(2)))
    splits = open_data(str(tmp_path))
    if chosen is None:
        assert splits.test is None
    else:
        assert "the folders {} and {}".format(*chosen) in splits.sentence
        assert references(splits.train) == [f"{chosen[0]}/0.png", f"{chosen[0]}/1.png"]


def test_links_loops_and_odd_entries(tmp_path):
    put(tmp_path, "real/1.png")
    put(tmp_path.with_name(tmp_path.name + "-other"), "2.png")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "broken.png").symlink_to("nothing.png")
    (tmp_path / "other").symlink_to(tmp_path.with_name(tmp_path.name + "-other"))
    os.mkfifo(tmp_path / "pipe.png")
    source = open_data(str(tmp_path)).train
    assert references(source) == ["other/2.png", "real/1.png"]
    assert {skip.reference for skip in source.skipped} == {"broken.png", "pipe.png", "self"}


def test_names_that_are_not_unicode_and_images_without_suffix(tmp_path):
    put(tmp_path, "ok.png")
    os.rename(tmp_path / "ok.png", os.fsencode(tmp_path) + b"/\xff\xfe.png")
    Image.new("L", (4, 4)).save(tmp_path / "plain", "PNG")
    (tmp_path / "README").write_text("not an image")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("not an image")
    source = open_data(str(tmp_path)).train
    assert len(source) == 2
    assert [skip.reference for skip in source.skipped] == ["README", "\ufffd.txt"]
    assert [source.read(index).size for index in range(2)] == [(4, 4), (8, 6)]
    assert len(source.fingerprint) == 64


@pytest.mark.parametrize(
    ("head", "is_one"),
    [
        (b"II+\0\x08\0\0\0", True), (b"MM\0+\0\x08\0\0", True), (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14", True),
        (b"\0\0\0\x20ftypavif\0\0\0\0", True), (b"\0\0\0\x18ftypheic\0\0\0\0", True), (b"P5\n# made by\n4 4", True),
        (b"P6 4 4 255\n", True), (b"\0\0\0\x20ftypisom\0\0\0\0", False), (b"P5 is a text", False), (b"P7\n1", False),
    ],
)  # fmt: skip
def test_images_without_suffix_are_told_by_their_first_bytes(head, is_one, tmp_path):
    (tmp_path / "plain").write_bytes(head)
    put(tmp_path, "ok.png")
    assert references(open_data(str(tmp_path)).train) == ["ok.png", *["plain"] * is_one]


def test_fingerprint_follows_names_and_sizes_not_the_place(tmp_path):
    for name in ("one", "two"):
        put(tmp_path / name, "a.png", "b.png")
    first, second = (open_data(str(tmp_path / name)).train.fingerprint for name in ("one", "two"))
    assert first == second
    (tmp_path / "two" / "b.png").rename(tmp_path / "two" / "c.png")
    assert open_data(str(tmp_path / "two")).train.fingerprint != first


def test_sources_can_be_pickled(tmp_path):
    put(tmp_path, "a.png", "b.png")
    source = open_data(str(tmp_path)).train
    again = pickle.loads(pickle.dumps(source))
    assert references(again) == references(source)
    assert again.fingerprint == source.fingerprint


def test_names_are_spelled_in_full_where_they_are_places(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert in_full("images") == in_full("~/images") == str(tmp_path / "images")
    assert [in_full(name) for name in ("fashion-mnist", "owner/name", None)] == ["fashion-mnist", "owner/name", None]


def test_names_that_no_file_can_have_are_a_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        open_data("x" * 300)
    assert in_full("x" * 300) == "x" * 300
    for name in ("~no-such-user-here/images", "~no-such-user-here"):
        with pytest.raises(InputError, match=r"home folder of a user who is not known .* \./~no-such-user-here"):
            open_data(name)


def test_data_under_a_name_that_is_not_unicode(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    put(folder, "a.png")
    assert open_data(str(folder)).train.name == f"{tmp_path}/\ufffd"
    assert len(open_data(in_full(str(folder))).train) == 1


def test_one_image_is_data_too(tmp_path):
    put(tmp_path, "a.png")
    assert len(open_data(str(tmp_path / "a.png")).train) == 1


def test_corrupt_image_is_bad_only_when_read(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "b.jpg").write_bytes(b"")
    source = open_data(str(tmp_path)).train
    assert isinstance(source, FolderSource)
    with pytest.raises(BadImage, match=r"b\.jpg: cannot be decoded: the file is empty"):
        source.read(1)


def test_errors_say_what_is_wrong(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="is empty"):
        open_data(str(empty))
    (empty / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"no images.*a\.txt"):
        open_data(str(empty))
    with pytest.raises(InputError, match="neither an image"):
        open_data(str(empty / "a.txt"))
    with pytest.raises(InputError, match="no file or folder '/no/such/place/here'"):
        open_data("/no/such/place/here")
    with pytest.raises(InputError, match="no file or folder 'nothing'"):
        open_data("nothing")


@contextmanager
def without_rights():
    """As nobody, since root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_said():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        put(root, "open/1.png", "shut/2.png", "shut.png")
        for name, mode in ((".", 0o755), ("shut", 0), ("shut.png", 0)):
            (root / name).chmod(mode)
        with without_rights():
            source = open_data(folder).train
            assert references(source) == ["open/1.png", "shut.png"]
            assert [tuple(skip) for skip in source.skipped] == [("shut/", "cannot be read: Permission denied")]
            assert source.read(0).size == (8, 6)
            with pytest.raises(BadImage, match=r"shut\.png: cannot be decoded: Permission denied"):
                source.read(1)
            for name in ("shut", "shut/deeper", "shut.png"):
                with pytest.raises((InputError, BadImage), match="Permission denied"):
                    open_data(str(root / name)).train.read(0)
        (root / "shut").chmod(0o755)


def test_hub_id_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"no file or folder owner/name.*pip install openjepa\[hub\]"):
        open_data("owner/name")


@pytest.mark.parametrize(("dtype", "bright", "as_read"), [(np.float32, 4000, 100 / 65535), (np.int32, 4000, 100)])
def test_a_dark_array_is_of_the_scale_of_the_others(tmp_path, dtype, bright, as_read):
    """By itself its highest value, 100, would be taken for one of 255."""
    for split, names in {"train": "abcd", "test": "ef"}.items():
        (tmp_path / split).mkdir()
        for name in names:
            np.save(tmp_path / split / f"{name}.npy", np.full((4, 4), 100 if name in "af" else bright, dtype))
    splits = open_data(str(tmp_path))
    assert splits.test is not None
    for source, dark in ((splits.train, 0), (pickle.loads(pickle.dumps(splits.test)), 1)):
        assert source.reference(dark).split("/")[1] in ("a.npy", "f.npy")
        assert np.asarray(source.read(dark)).max() == pytest.approx(as_read)
        assert source.header(dark).bits == source.header(1 - dark).bits == (32 if dtype == np.float32 else 16)


def test_an_array_of_another_scale_than_most_is_refused(tmp_path):
    """Not among those that settle the scale (every second one of 128), it is told and not shown too dark."""
    for number in range(128):
        value = 300.0 if number == 1 else 0.5
        np.save(tmp_path / f"{number:03}.npy", np.full((2, 2), value, np.float32))
    source = open_data(str(tmp_path)).train
    assert np.asarray(source.read(0)).max() == 0.5
    with pytest.raises(BadImage, match="up to 300 where other images of these data end at 1; save them all as uint8"):
        source.read(1)


def test_floats_up_to_2_are_of_one_scale_in_every_folder_and_nothing_of_them_is_cut(tmp_path):
    tops = {"all": (0.7, 1.3, 1.95), "some": (0.7, 1.0)}
    for folder, each in tops.items():
        (tmp_path / folder).mkdir()
        for number, highest in enumerate(each):
            ramp = np.linspace(0, highest, 64, dtype=np.float32).reshape(8, 8)
            np.save(tmp_path / folder / f"{number}.npy", ramp)
        source = open_data(str(tmp_path / folder)).train
        found = [np.asarray(source.read(number)) for number in range(len(each))]
        assert [float(picture.max()) for picture in found] == pytest.approx(each)
        assert all(len(np.unique(picture)) == 64 for picture in found)


def test_what_passes_1_in_floats_is_there_after_a_resize_and_nothing_else_passes_1(tmp_path):
    edge = np.zeros((16, 16), np.float32)
    for number, high in enumerate((1.0, 1.9)):
        edge[:, 8:] = high
        np.save(tmp_path / f"{number}.npy", edge)
    source = open_data(str(tmp_path)).train
    fit = Preprocessing(size=(12, 12), channels=1, mean=(0.5,), std=(0.25,)).fit
    resized = [fit(source.read(number)) for number in range(2)]
    # Bicubic interpolation would overshoot the edge by some percent.
    assert [float(pixels.max()) for pixels in resized] == pytest.approx([1.0, 1.9])
    assert min(float(pixels.min()) for pixels in resized) == 0


def test_an_image_that_was_not_looked_at_may_pass_1_as_reflectance_does(tmp_path):
    for number in range(128):
        np.save(tmp_path / f"{number:03}.npy", np.full((2, 2), 1.4 if number == 1 else 0.9, np.float32))
    source = open_data(str(tmp_path)).train
    assert [float(np.asarray(source.read(number)).max()) for number in (0, 1)] == pytest.approx([0.9, 1.4])


def test_cached_features_go_with_the_scale(tmp_path):
    """The same file is another image where others say that white is something else."""
    for folder, bright in (("one", 4000), ("other", 200)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", np.full((2, 2), 100.0))
        np.save(tmp_path / folder / "b.npy", np.full((2, 2), float(bright)))
    contents = [open_data(str(tmp_path / folder)).train.content(np.array([0])) for folder in ("one", "other")]
    assert contents[0] != contents[1]
