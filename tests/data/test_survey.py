"""What is said of a data set before training is true of it."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from openjepa.data.sources import ArraySource, open_data
from openjepa.data.survey import levels, survey
from openjepa.errors import InputError


def test_sizes_modes_and_bad_headers(tmp_path):
    for number, (height, width) in enumerate([(10, 20), (10, 20), (30, 12), (50, 60)]):
        Image.new("L" if number else "RGB", (width, height)).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = survey(open_data(str(tmp_path)).train)
    assert (found.images, found.looked_at) == (5, 5)
    assert (found.smallest, found.median, found.largest) == ((10, 12), (20, 20), (50, 60))
    assert found.common[0] == ((10, 20), 2)
    assert found.sizes == "10x12 to 50x60"
    assert found.modes == {"L": 3, "RGB": 1}
    assert found.channels == 3
    assert found.bits == 8
    assert [error.reference for error in found.bad] == ["bad.png"]


@pytest.mark.parametrize(
    ("lying", "standing", "typical"),
    [(10, 0, (40, 60)), (0, 10, (60, 40)), (9, 1, (40, 60)), (8, 2, (40, 40)), (5, 5, (40, 40)), (3, 7, (40, 40))],
)
def test_images_that_lie_and_stand_are_typically_square(tmp_path, lying, standing, typical):
    for number in range(lying + standing):
        Image.new("L", (60, 40) if number < lying else (40, 60)).save(tmp_path / f"{number}.png")
    assert survey(open_data(str(tmp_path)).train).typical == typical


def test_images_that_stand_by_a_little_do_not_count(tmp_path):
    """Words cut out of lines, of which some are a letter."""
    for number in range(10):
        Image.new("L", (100, 32) if number < 7 else (28, 32)).save(tmp_path / f"{number}.png")
    assert survey(open_data(str(tmp_path)).train).typical == (32, 100)


@pytest.mark.parametrize(
    ("mode", "channels", "bits"),
    [("L", 1, 8), ("1", 1, 8), ("LA", 1, 8), ("P", 3, 8), ("RGB", 3, 8), ("RGBA", 3, 8), ("I;16", 1, 16)],
)
def test_natural_channels(tmp_path, mode, channels, bits):
    Image.new(mode, (8, 6)).save(tmp_path / "x.png")
    found = survey(open_data(str(tmp_path)).train)
    assert (found.channels, found.bits, found.sizes) == (channels, bits, "6x8")


def test_natural_channels_of_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((6, 8, 5), np.uint16))
    found = survey(open_data(str(tmp_path)).train)
    assert (found.channels, found.bits) == (5, 16)


def test_the_sample_is_limited_and_repeatable():
    images = np.random.default_rng(0).integers(0, 256, (300, 6, 6, 1), dtype=np.uint8)
    source = ArraySource("noise", images)
    assert survey(source, limit=20).looked_at == 20
    first, again, other = (levels(source, (6, 6), 1, limit=20, seed=seed) for seed in (0, 0, 1))
    assert (first.mean, first.std) == (again.mean, again.std) != (other.mean, other.std)


def test_statistics_are_the_pixels_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    images[..., 2] = 51
    found = levels(ArraySource("noise", images), (8, 8), 3)
    mean, std = found.mean, found.std
    unit = images / 255
    np.testing.assert_allclose(mean, unit.mean((0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(std[:2], unit.std((0, 1, 2))[:2], atol=1e-9)
    assert std[2] == 1


def test_statistics_of_deep_images_and_bad_ones(tmp_path):
    Image.fromarray(np.full((8, 8), 65535 // 4, np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.full((8, 8), 65535 * 3 // 4, np.uint16)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    found = levels(open_data(str(tmp_path)).train, (8, 8), 1)
    mean, std = found.mean, found.std
    assert mean[0] == pytest.approx(0.5, abs=1e-4)
    assert std[0] == pytest.approx(0.25, abs=1e-4)


def test_levels_name_what_is_flat_and_what_cannot_be_read(tmp_path):
    noise = np.random.default_rng(0).integers(1000, 1200, (10, 8, 8), dtype=np.uint16)
    for number, image in enumerate(noise):
        np.save(tmp_path / f"{number}.npy", np.full_like(image, 1100 + number) if number < 3 else image)
    np.save(tmp_path / "broken.npy", np.full((8, 8), np.nan))
    source = open_data(str(tmp_path)).train
    found = levels(source, (8, 8), 1)
    assert found.looked_at == 11
    assert found.flat == ("0.npy", "1.npy", "2.npy")
    assert [str(error) for error in found.bad] == [
        "broken.npy: holds NaN (64 of 64 values): fill them with numbers, or leave the image out"
    ]
    assert (found.low * 65535, found.high * 65535) == pytest.approx((1000, 1199))
    colours = ArraySource("colours", np.tile(np.array([[[[5, 90, 200]]]], np.uint8), (2, 8, 8, 1)))
    assert len(levels(colours, (8, 8), 3).flat) == 2


FIRST, CHANNELS = "several pages, of which only the first is read", "pages are read as channels"
ALPHA = "the last channel is transparency, laid over white"


@pytest.mark.parametrize(
    ("shape", "options", "told"),
    [
        ((5, 9, 8), {"photometric": "minisblack"}, (CHANNELS,)),
        ((20, 9, 2), {"photometric": "minisblack"}, ("pages are read as rows, and their width as channels",)),
        ((5, 9, 8), {"photometric": "minisblack", "metadata": None}, (FIRST,)),
        ((5, 9, 8), {"imagej": True, "metadata": {"axes": "ZYX"}}, (FIRST,)),
        ((5, 9, 8), {"imagej": True, "metadata": {"axes": "CYX"}}, (CHANNELS,)),
        ((5, 9, 8, 3), {"photometric": "rgb"}, (FIRST,)),
        ((9, 8), {}, ()),
        ((9, 8, 6), {"photometric": "minisblack", "planarconfig": "contig"}, ()),
        ((6, 9, 8), {"photometric": "minisblack", "planarconfig": "separate"}, ()),
        ((9, 8, 4), {"photometric": "rgb"}, (ALPHA,)),
        ((9, 8, 4), {"photometric": "rgb", "extrasamples": ["unspecified"]}, ()),
        ((9, 8, 3), {"photometric": "rgb"}, ()),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_how_pages_and_transparency_are_read_is_told(tmp_path, shape, options, told, dtype):
    tifffile.imwrite(tmp_path / "x.tif", np.random.default_rng(0).integers(0, 250, shape).astype(dtype), **options)
    found = survey(open_data(str(tmp_path)).train)
    if dtype == np.uint8 and told == (ALPHA,):  # of more bits it lies over white already
        told = (f"{ALPHA}; --channels 4 keeps it",)
    assert found.remarks == dict.fromkeys(told, 1)
    assert found.remarked == 1


def test_remarks_of_other_formats(tmp_path):
    Image.new("LA", (8, 6)).save(tmp_path / "x.png")
    assert survey(open_data(str(tmp_path)).train).remarks == {f"{ALPHA}; --channels 2 keeps it": 1}
    frames = [Image.fromarray(np.full((6, 8), value, np.uint8)) for value in (0, 200)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        tiff.write(np.zeros((6, 8), np.uint8))
        tiff.write(np.zeros((3, 4), np.uint8), subfiletype=1)
    np.save(tmp_path / "x.npy", np.zeros((6, 8), np.uint8))
    found = survey(open_data(str(tmp_path)).train)
    assert found.remarks == {FIRST: 1, f"{ALPHA}; --channels 2 keeps it": 1}
    assert found.remarked == 4


def test_nothing_readable_is_said(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    source = open_data(str(tmp_path)).train
    with pytest.raises(InputError, match=r"none of the 2 images.*a\.png: is not an image"):
        survey(source)
    with pytest.raises(InputError, match=r"none of the 2 images.*a\.png: is not an image"):
        levels(source, (8, 8), 1)
    np.save(tmp_path / "c.npy", np.zeros((6, 8, 5), np.uint8))
    with pytest.raises(InputError, match="has 5 channels, 3 are wanted"):
        levels(open_data(str(tmp_path / "c.npy")).train, (8, 8), 3)
