"""Copies of large images: near enough to them, written once, gone on with, checked, and given up where damaged."""

import shutil
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from openjepa.data import copies as module
from openjepa.data.base import BadImage
from openjepa.data.copies import Copies
from openjepa.data.pixels import extent_of, with_channels
from openjepa.data.sources import open_data
from openjepa.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Large photographs (smooth colours), a small one, one with alpha, one of 16 bits, and one that is damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((800, 600), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=95)
    coarse.resize((80, 60)).save(folder / "small.png")
    alpha = coarse.convert("RGBA").resize((800, 600))
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8)).resize((800, 600)))
    alpha.save(folder / "alpha.png")
    Image.fromarray(rng.integers(0, 2**16, (300, 300), dtype=np.uint16)).save(folder / "sixteen.png")
    (folder / "bad.jpg").write_bytes((folder / "0.jpg").read_bytes()[:3000])
    return folder


def made(folder, tmp_path, at_least=(100, 100)) -> Copies:
    return Copies(open_data(str(folder)).train, at_least, tmp_path / "copies")


def by_name(source) -> dict[str, int]:
    return {source.reference(index): index for index in range(len(source))}


def test_copies_are_as_small_as_may_be_and_look_like_the_images(folder, tmp_path, monkeypatch):
    copies = made(folder, tmp_path)
    seen = []
    copies.write(lambda done, total: seen.append((done, total)))
    assert seen == [(14, 14)]
    assert copies.done == len(copies) == 14
    numbers = by_name(copies)
    monkeypatch.setattr(copies.source, "read", lambda *_: pytest.fail("the original was read"))
    for number in range(10):
        copy = copies.read(numbers[f"{number}.jpg"], (100, 100))
        assert np.asarray(copy).shape == (100, 134, 3)
        whole = Image.open(folder / f"{number}.jpg").resize((134, 100), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(copy, float) - np.asarray(whole, float)).mean() < 3
    seen_through = copies.read(numbers["alpha.png"], (100, 100))
    assert (seen_through.mode, seen_through.size) == ("RGBA", (134, 100))
    over_white = [
        np.asarray(with_channels(image.resize((134, 100), Image.Resampling.BICUBIC), 3), float)
        for image in (seen_through, Image.open(folder / "alpha.png"))
    ]
    assert np.abs(over_white[0] - over_white[1]).max() <= 2


def test_what_has_no_copy_is_read_itself(folder, tmp_path):
    copies, plain = made(folder, tmp_path), open_data(str(folder)).train
    copies.write()
    numbers = by_name(copies)
    for name in ("small.png", "sixteen.png"):
        one, other = (np.asarray(source.read(numbers[name], (100, 100))) for source in (copies, plain))
        np.testing.assert_array_equal(one, other)
    with pytest.raises(BadImage):
        copies.read(numbers["bad.jpg"], (100, 100))
    assert extent_of(copies.read(numbers["1.jpg"], (300, 300)))[0] >= 300  # more than the copy holds
    assert extent_of(copies.read(numbers["1.jpg"])) == (600, 800)
    assert copies.fingerprint == plain.fingerprint
    assert copies.estimate() == pytest.approx(copies.size, rel=1e-6)


def test_the_size_is_estimated_from_a_few_images(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LOOKED_AT", 7)
    copies = made(folder, tmp_path)
    guess = copies.estimate()
    copies.write()
    assert 0.5 * copies.size < guess < 1.5 * copies.size


def test_a_stopped_writer_goes_on_and_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    straight = made(folder, tmp_path / "straight")
    straight.write()
    monkeypatch.setattr(module, "_TOGETHER", 4)
    copies = made(folder, tmp_path / "parts")

    def stop(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copies.write(stop)
    assert copies.done == 8
    with open(copies.place / "images", "ab") as file:  # what a power cut leaves: copies that no record speaks of ...
        file.write(b"half a copy")
    with open(copies.place / "index", "ab") as file:  # ... a record of zeros, and half a one
        file.write(bytes(12) + b"\0\1\2")
    seen = []
    made(folder, tmp_path / "parts").write(lambda done, total: seen.append(done))
    assert seen == [12, 14]
    for name in ("images", "index"):
        assert (copies.place / name).read_bytes() == (straight.place / name).read_bytes()


def test_why_there_are_no_labels_is_what_the_images_say(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "loose.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    source = open_data(tmp_path / "images").train
    assert "1 of the images lie beside the 2 folders" in source.unlabelled
    assert Copies(source, (4, 4), tmp_path / "copies").unlabelled == source.unlabelled


def test_how_the_images_are_read_is_what_they_say_themselves(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        np.save(tmp_path / "images" / f"{number}.npy", np.full((8, 8), 200.0 * number, np.float32))
    first, second = (Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (0, 9))
    first.save(tmp_path / "images" / "pages.tif", save_all=True, append_images=[second])
    source = open_data(str(tmp_path / "images")).train
    copies = Copies(source, (4, 4), tmp_path / "copies")
    assert copies.float_white == source.float_white == 65535
    told = [copies.remarks(number) for number in range(4)]
    assert told == [source.remarks(number) for number in range(4)] != [()] * 4


def test_a_damaged_copy_gives_way_to_its_image(folder, tmp_path):
    copies = made(folder, tmp_path)
    copies.write()
    blob = bytearray((copies.place / "images").read_bytes())
    blob[200] ^= 1
    (copies.place / "images").write_bytes(blob)
    again = made(folder, tmp_path)
    numbers = by_name(again)
    assert extent_of(again.read(numbers["0.jpg"], (100, 100))) != (100, 134)
    assert extent_of(again.read(numbers["1.jpg"], (100, 100))) == (100, 134)


def test_other_images_and_sizes_have_copies_of_their_own(folder, tmp_path):
    first = made(folder, tmp_path)
    assert made(folder, tmp_path, (64, 64)).place != first.place
    shutil.copy(folder / "1.jpg", folder / "another.jpg")
    second = made(folder, tmp_path)
    assert second.place != first.place
    size = (folder / "1.jpg").stat().st_size
    (folder / "1.jpg").write_bytes((folder / "2.jpg").read_bytes()[:size].ljust(size, b"\0"))  # as long as before
    third = made(folder, tmp_path)
    assert third.place != second.place
    assert third.fingerprint == second.fingerprint


def test_writing_leaves_warnings_as_they_were(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TOGETHER", 4)
    before = list(warnings.filters)
    made(folder, tmp_path).write()
    assert list(warnings.filters) == before


def test_what_a_file_says_beside_its_pixels_is_not_copied(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        image = Image.fromarray(rng.integers(0, 256, (400, 400), dtype=np.uint8))
        image.save(folder / f"{number}.gif", comment=b"long " * 14_000)
    turned = Image.fromarray(rng.integers(0, 256, (400, 300, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif, icc_profile=b"long " * 14_000)
    copies = made(folder, tmp_path)
    copies.write()
    assert copies.complete
    assert copies.size < 3 * 40_000 + 80_000
    assert copies.read(by_name(copies)["turned.png"], (100, 100)).size == (134, 100), "upright, and not turned again"


def test_two_writers_do_not_mix(folder, tmp_path):
    copies, refused = made(folder, tmp_path), []

    def second(done, total):
        if done != 8:
            return

        def write():
            with pytest.raises(InputError, match="another process"):
                made(folder, tmp_path).write()
            refused.append(done)

        other = threading.Thread(target=write)
        other.start()
        other.join()

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(module, "_TOGETHER", 8)
        copies.write(second)
    assert refused == [8]
