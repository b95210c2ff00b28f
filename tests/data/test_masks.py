import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, features

from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import BadImage
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


def test_what_white_is_in_arrays_is_settled_by_all_images_together(tmp_path):
    (tmp_path / "images").mkdir()
    for name, level in (("bright", 200.0), ("dark", 1.0)):
        np.save(tmp_path / "images" / f"{name}.npy", np.full((20, 30), level, np.float32))
        save(tmp_path / "masks" / f"{name}.png", blocks(0, 1).astype(np.uint8))
    data = opened(tmp_path)
    assert [float(data.read(number, SEEN)[0].max()) for number in (0, 1)] == pytest.approx([200 / 255, 1 / 255])


def test_255_is_a_class_beside_one_other_and_unlabelled_beside_more(tmp_path):
    pair(tmp_path / "two", "a", blocks(0, 255))
    assert opened(tmp_path / "two").values == (0, 255)
    pair(tmp_path / "three", "a", blocks(0, 1, 255))
    data = opened(tmp_path / "three")
    assert data.values == (0, 1)
    assert "255 is taken as not labelled" in data.sentence
    assert set(data.read(0, SEEN)[1].ravel()) == {0, 1, UNLABELLED}


def stray(value: int, pixels: int = 1) -> np.ndarray:
    mask = blocks(0, 255)
    mask[0, :pixels] = value
    return mask


def test_a_stray_value_in_masks_of_0_and_255_does_not_make_all_foreground_unlabelled(tmp_path):
    for number in range(12):
        pair(tmp_path, str(number), stray(128) if number == 5 else blocks(0, 255))
    said = refused(tmp_path)
    assert said.startswith("11 of the masks in ")
    assert f"for example {tmp_path / 'masks' / '5.png'} 128 (in 1 of its 600 pixels)" in said
    assert "set each of their pixels to 0 or 255, or number the classes 0, 1, 2" in said
    pair(tmp_path, "5", blocks(0, 255))
    assert opened(tmp_path).values == (0, 255)


def test_masks_of_0_and_1_among_as_many_of_0_and_255_are_refused(tmp_path):
    for number in range(6):
        pair(tmp_path, str(number), blocks(0, 255 if number % 2 else 1))
    assert "3 of the masks in" in refused(tmp_path)


@pytest.mark.parametrize("steps", [5, 1])
def test_smoothed_masks_of_0_and_255_are_refused(tmp_path, steps):
    """With some dozens of values between, which could be classes by their number, and with all of them."""
    for number in range(4):
        small = np.random.default_rng(number).integers(0, 2, (6, 6), dtype=np.uint8) * np.uint8(255)
        soft = np.asarray(Image.fromarray(small).resize((60, 60), Image.Resampling.BILINEAR)) // steps * steps
        pair(tmp_path, str(number), soft, size=(60, 60))
    said = refused(tmp_path)
    assert "smoothed" in said
    assert str(tmp_path / "masks") in said


def test_255_round_objects_is_unlabelled_though_some_masks_hold_nothing_else(tmp_path):
    """As in PASCAL VOC, where a thing too small to be named is all border."""
    for number in range(9):
        pair(tmp_path, str(number), blocks(0, 255) if number in (0, 4) else blocks(0, 15 + number % 3, 0, 255))
    data = opened(tmp_path)
    assert data.values == (0, 15, 16, 17)
    assert "255 is taken as not labelled (29% of the pixels)" in data.sentence
    pair(tmp_path / "two", "a", blocks(0, 255))
    pair(tmp_path / "two", "b", blocks(0, 7, 255))
    assert opened(tmp_path / "two").values == (0, 7)
    for number in range(9):
        pair(tmp_path / "rare", str(number), blocks(0, 255) if number < 2 else blocks(0, 1 + number % 3))
    assert opened(tmp_path / "rare").void


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


def turned_photo(path: Path, upright: np.ndarray, orientation: int) -> np.ndarray:
    """Save a photo that its EXIF turns upright; returns its pixels as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}[orientation].copy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(path, exif=exif)
    return stored


def agreement(folder: Path, index: int = 0) -> float:
    """How far a mask lies where the bright part of its photo is."""
    pixels, mask = opened(folder).read(index, SEEN)
    return float(((pixels[0].numpy() > 127) == mask).mean())


def corner(height: int, width: int) -> np.ndarray:
    """A bright corner, another one whichever way it is turned or mirrored."""
    truth = np.zeros((height, width), np.uint8)
    truth[: height // 2, : width // 4] = 1
    return truth


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("shrink", [1, 2])
def test_a_mask_made_on_a_photos_stored_pixels_is_turned_with_it(tmp_path, orientation, shrink):
    truth = corner(60, 40)
    stored = turned_photo(tmp_path / "images" / "a.png", truth * 255, orientation)
    save(tmp_path / "masks" / "a.png", stored[::shrink, ::shrink] // 255)
    assert "1 masks lie as their image is stored" in opened(tmp_path).sentence
    assert agreement(tmp_path) > 0.95


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_mask_made_on_the_upright_photo_stays(tmp_path, orientation):
    truth = corner(60, 40)
    turned_photo(tmp_path / "images" / "a.png", truth * 255, orientation)
    save(tmp_path / "masks" / "a.png", truth)
    assert "EXIF" not in opened(tmp_path).sentence
    assert agreement(tmp_path) > 0.95


@pytest.mark.parametrize(("orientation", "size"), [(3, (60, 40)), (6, (40, 40))])
def test_masks_whose_size_does_not_tell_how_they_lie_stay_and_are_told(tmp_path, orientation, size):
    truth = corner(*size)
    for name in "ab":
        turned_photo(tmp_path / "images" / f"{name}.png", truth * 255, orientation)
        save(tmp_path / "masks" / f"{name}.png", truth)
    assert "2 images are turned by their EXIF orientation in a way that" in opened(tmp_path).sentence
    assert agreement(tmp_path) > 0.95


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("size", [(60, 40), (40, 40)])
def test_a_mask_with_an_orientation_of_its_own_is_turned_by_that(tmp_path, orientation, size):
    truth = corner(*size)
    turned_photo(tmp_path / "images" / "a.png", truth * 255, orientation)
    turned_photo(tmp_path / "masks" / "a.png", truth, orientation)
    assert "EXIF" not in opened(tmp_path).sentence
    assert agreement(tmp_path) > 0.95


def one_bit(folder: Path, name: str, mask: np.ndarray) -> None:
    pair(folder, name, mask)
    Image.fromarray(mask.astype(bool)).save(folder / "masks" / f"{name}.png")


@pytest.mark.parametrize(("others", "values"), [((0, 255), (0, 255)), ((0, 1), (0, 1)), ((0, 1, 2), (0, 1, 2))])
def test_masks_of_one_bit_fit_in_with_others(tmp_path, others, values):
    one_bit(tmp_path, "a", blocks(0, 1))
    pair(tmp_path, "b", blocks(*others))
    data = opened(tmp_path)
    assert data.values == values
    assert not data.void
    halves = data.read(0, SEEN)[1]
    assert halves[:, 0].tolist() == [0] * 16
    assert halves[:, -1].tolist() == [1] * 16
    if len(others) == 2:
        np.testing.assert_array_equal(halves, data.read(1, SEEN)[1])


def test_masks_of_one_bit_alone_are_0_and_1(tmp_path):
    one_bit(tmp_path, "a", blocks(0, 1))
    pair(tmp_path, "b", blocks(0, 1))
    (tmp_path / "masks" / "b.png").unlink()
    np.save(tmp_path / "masks" / "b.npy", blocks(0, 1).astype(bool))
    data = opened(tmp_path)
    assert data.values == (0, 1)
    np.testing.assert_array_equal(data.read(0, SEEN)[1], data.read(1, SEEN)[1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b.jpg", {"quality": 100}),
        ("b.webp", {"lossless": False}),
        ("b.webp", {"lossless": False, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),  # in an extended file
        ("b.tif", {"compression": "jpeg"}),
        ("b.avif", {"quality": 100}),
    ],
)
def test_lossy_masks_are_refused_by_name(tmp_path, name, options):
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    pair(tmp_path, "a", blocks(0, 1))
    pair(tmp_path, "b", blocks(0, 1))
    (tmp_path / "masks" / "b.png").unlink()
    Image.fromarray(blocks(0, 255).astype(np.uint8)).save(tmp_path / "masks" / name, **options)
    said = refused(tmp_path)
    assert str(tmp_path / "masks" / name) in said
    assert "lossy" in said
    assert "save masks as PNG" in said


def test_fractions_are_refused_by_name_and_whole_floats_are_numbers(tmp_path):
    pair(tmp_path, "a", blocks(0, 1))
    pair(tmp_path, "b", blocks(0, 1))
    (tmp_path / "masks" / "b.png").unlink()
    np.save(tmp_path / "masks" / "b.npy", (blocks(0, 1) * 0.7).astype(np.float32))
    said = refused(tmp_path)
    assert f"{tmp_path / 'masks' / 'b.npy'}: holds 0.7 (300 of its 600 values are no whole numbers)" in said
    with (tmp_path / "masks" / "b.npy").open("wb") as file:
        np.savez(file, mask=blocks(0, 1))
    assert "b.npy: is an archive of arrays (.npz)" in refused(tmp_path)
    np.save(tmp_path / "masks" / "b.npy", np.where(blocks(0, 1), np.nan, 0))
    assert "holds nan (300 of its 600" in refused(tmp_path)
    np.save(tmp_path / "masks" / "b.npy", blocks(0, 1).astype(np.float64))
    assert opened(tmp_path).values == (0, 1)
    for scale, whole in ((0.7, False), (300, True)):
        Image.fromarray((blocks(0, 1) * scale).astype(np.float32)).save(tmp_path / "f.tif")
        if whole:
            assert np.unique(read_mask(tmp_path / "f.tif")).tolist() == [0, 300]
        else:
            with pytest.raises(BadImage, match="no whole numbers"):
                read_mask(tmp_path / "f.tif")


def test_tiles_without_data_beside_tiles_of_classes_are_read(tmp_path):
    """Of three there is nothing but background and 255, of the others one holds a class and 255."""
    for name, values in {"a": (0, 255), "b": (0, 255), "c": (0, 255), "d": (0, 1), "e": (2, 255)}.items():
        pair(tmp_path, name, blocks(*values))
    assert opened(tmp_path).values == (0, 1, 2)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_in_the_transparency_is_refused_by_name(tmp_path, mode):
    pair(tmp_path, "a", blocks(0, 1))
    plain = Image.fromarray(blocks(0, 1).astype(np.uint8)).convert(mode)
    plain.save(tmp_path / "masks" / "a.png")
    assert opened(tmp_path).values == (0, 1)
    plain.putalpha(Image.fromarray(blocks(0, 255).astype(np.uint8)))
    plain.save(tmp_path / "masks" / "a.png")
    assert opened(tmp_path).values == (0, 1), "its colours say the same"
    alpha = Image.fromarray(blocks(0, 255).astype(np.uint8))
    plain = Image.new(mode, plain.size)
    plain.putalpha(alpha)
    plain.save(tmp_path / "masks" / "a.png")
    said = refused(tmp_path)
    assert f"{tmp_path / 'masks' / 'a.png'}: has transparency that differs where its colours do not (from 0 to" in said
    assert "save the mask without transparency" in said


def test_masks_of_several_pages_are_refused_by_name_and_smaller_versions_are_no_pages(tmp_path):
    pair(tmp_path, "a", blocks(0, 1))
    (tmp_path / "masks" / "a.png").unlink()
    mask, path = blocks(0, 1).astype(np.uint8), tmp_path / "masks" / "a.tif"
    tifffile.imwrite(path, np.stack([mask, 1 - mask]), photometric="minisblack")
    assert f"{path}: has 2 pages" in refused(tmp_path)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(mask)
        tiff.write(mask[::2, ::2], subfiletype=1)
    assert np.array_equal(read_mask(path), mask)


@pytest.mark.parametrize("options", [{}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
def test_lossless_webp_masks_are_read(tmp_path, options):
    Image.fromarray(blocks(0, 3, 9).astype(np.uint8)).save(tmp_path / "a.webp", lossless=True, **options)
    assert np.array_equal(read_mask(tmp_path / "a.webp"), blocks(0, 3, 9))


def test_names_may_lie_in_other_folders(tmp_path):
    save(tmp_path / "images" / "day" / "a.png", np.zeros((8, 8), np.uint8))
    save(tmp_path / "masks" / "a.png", blocks(0, 1, size=(8, 8)).astype(np.uint8))
    assert len(opened(tmp_path)) == 1


def test_one_mask_does_not_serve_two_images_of_its_name(tmp_path):
    for folder in "ab":
        save(tmp_path / "images" / folder / "0.png", np.zeros((8, 8), np.uint8))
    save(tmp_path / "masks" / "0.png", blocks(0, 1, size=(8, 8)).astype(np.uint8))
    said = refused(tmp_path)
    assert f"two images, a{os.sep}0.png and b{os.sep}0.png, for the one mask 0.png" in said
    save(tmp_path / "masks" / "a" / "0.png", blocks(0, 1, size=(8, 8)).astype(np.uint8))
    assert len(opened(tmp_path)) == 1


def test_pairs_that_cannot_be_read_are_kept_with_the_reason(tmp_path):
    for name in "abcd":
        pair(tmp_path, name, blocks(0, 1))
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    damaged = tmp_path / "masks" / "c.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    data = opened(tmp_path)
    assert len(data) == 4
    assert [data.bad[number].reference for number in sorted(data.bad)] == ["a.jpg", str(damaged)]
    assert "the file is empty" in data.bad[0].reason
    for number in (0, 2):
        with pytest.raises(BadImage) as error:
            data.read(number, SEEN)
        assert (error.value.reference, error.value.reason) == data.bad[number]
    for number in (1, 3):
        assert set(data.read(number, SEEN)[1].ravel()) == {0, 1}
    for name in "bd":
        (tmp_path / "images" / f"{name}.jpg").write_bytes(b"")
    assert "none of the 4 images with masks can be read, for example a.jpg (" in refused(tmp_path)


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
