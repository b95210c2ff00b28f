from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data.augmentation import Preprocessing
from openjepa.data.masks import UNLABELLED, open_masked, read_mask
from openjepa.errors import InputError

SEEN = Preprocessing(size=(16, 16), channels=1, mean=(0.0,), std=(1.0,))


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image = image.convert("P")
        image.putdata(array.ravel().tolist())
        image.putpalette([number for value in range(256) for number in (value, 255 - value, 7)])
    image.save(path)


def pair(folder: Path, name: str, mask: np.ndarray, mode: str | None = None, size: tuple[int, int] = (20, 30)) -> None:
    save(folder / "images" / f"{name}.jpg", np.full((*size, 3), 90, np.uint8))
    save(folder / "masks" / f"{name}.png", mask.astype(np.uint8), mode)


def blocks(*values: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.array(values)[np.arange(size[1]) * len(values) // size[1]][None].repeat(size[0], 0)


def opened(folder: Path):
    return open_masked(folder / "images", folder / "masks")


def test_values_become_classes_in_their_order(tmp_path):
    pair(tmp_path, "a", blocks(0, 40, 7))
    pair(tmp_path, "b", blocks(7, 3, 0), mode="P")
    data = opened(tmp_path)
    assert data.values == (0, 3, 7, 40)
    assert not data.void
    pixels, mask = data.read(0, SEEN)
    assert pixels.shape == (1, 16, 16)
    assert sorted(set(mask.ravel())) == [0, 2, 3]
    assert sorted(set(data.read(1, SEEN)[1].ravel())) == [0, 1, 2]


def test_255_is_a_class_beside_one_other_and_unlabelled_beside_more(tmp_path):
    pair(tmp_path / "two", "a", blocks(0, 255))
    assert opened(tmp_path / "two").values == (0, 255)
    pair(tmp_path / "three", "a", blocks(0, 1, 255))
    data = opened(tmp_path / "three")
    assert data.values == (0, 1)
    assert "255 is taken as not labelled" in data.sentence
    assert set(data.read(0, SEEN)[1].ravel()) == {0, 1, UNLABELLED}


def test_what_does_not_fit_is_counted_and_said(tmp_path):
    pair(tmp_path, "a", blocks(0, 1))
    pair(tmp_path, "b", blocks(0, 1, size=(10, 15)))
    save(tmp_path / "images" / "c.jpg", np.zeros((20, 30, 3), np.uint8))
    save(tmp_path / "masks" / "d.png", np.zeros((20, 30), np.uint8))
    data = opened(tmp_path)
    assert len(data) == 2
    assert "1 images without a mask and 1 masks without an image" in data.sentence
    assert "1 masks were of another size" in data.sentence
    assert (data.read(0, SEEN)[1] == data.read(1, SEEN)[1]).mean() > 0.9


def test_the_mask_is_cut_and_sized_as_its_image(tmp_path):
    """An image that shows its own mask still does so after both were prepared."""
    rows, columns = np.mgrid[:90, :140]
    truth = ((rows - 40) ** 2 + (columns - 80) ** 2 < 900).astype(np.uint8)
    save(tmp_path / "images" / "a.png", truth * 255)
    save(tmp_path / "masks" / "a.png", truth)
    for size in ((32, 32), (24, 48), (180, 120)):
        seen = Preprocessing(size=size, channels=1, mean=(0.0,), std=(1.0,))
        pixels, mask = opened(tmp_path).read(0, seen)
        assert ((pixels[0].numpy() > 127) == mask).mean() > 0.98, size
        assert 0.1 < mask.mean() < 0.7


def test_masks_are_read_without_loss(tmp_path):
    deep = np.array([[0, 300], [70, 1]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_mask(tmp_path / "deep.png"), deep)
    np.save(tmp_path / "m.npy", deep.astype(np.int32))
    assert np.array_equal(read_mask(tmp_path / "m.npy"), deep)
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bits.png")
    assert read_mask(tmp_path / "bits.png").tolist() == [[0, 1]]
    colour = np.array([[[255, 0, 0], [0, 0, 255]], [[9, 9, 9], [0, 0, 0]]], np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    assert read_mask(tmp_path / "colour.png").tolist() == [[255 << 16, 255], [(9 << 16) + (9 << 8) + 9, 0]]


def test_names_may_lie_in_other_folders(tmp_path):
    save(tmp_path / "images" / "day" / "a.png", np.zeros((8, 8), np.uint8))
    save(tmp_path / "masks" / "a.png", blocks(0, 1, size=(8, 8)).astype(np.uint8))
    assert len(opened(tmp_path)) == 1


def refused(folder: Path, masks: str = "masks") -> str:
    with pytest.raises(InputError) as error:
        open_masked(folder / "images", folder / masks)
    return str(error.value)


def test_mistakes_are_told(tmp_path):
    random = np.random.default_rng(0)
    pair(tmp_path, "a", blocks(0, 1))
    assert "there is no folder" in refused(tmp_path, "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no masks" in refused(tmp_path, "empty")
    save(tmp_path / "photos" / "a.png", random.integers(0, 255, (20, 30, 3), np.uint8))
    said = refused(tmp_path, "photos")
    assert "does not hold masks" in said
    assert "600 different values" in said
    save(tmp_path / "others" / "x_mask.png", np.zeros((4, 4), np.uint8))
    said = refused(tmp_path, "others")
    assert "a.jpg" in said
    assert "x_mask.png" in said
    save(tmp_path / "flat" / "a.png", np.zeros((20, 30), np.uint8))
    assert "one value (0,)" in refused(tmp_path, "flat")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert "a.png" in refused(tmp_path, "broken")
    save(tmp_path / "double" / "a.png", np.zeros((4, 4), np.uint8))
    save(tmp_path / "double" / "a.tif", np.zeros((4, 4), np.uint8))
    assert "two masks of one name" in refused(tmp_path, "double")
