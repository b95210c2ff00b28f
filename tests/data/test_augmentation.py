"""Crops are drawn as they should be, channels convert fairly, sizes and numbers come out right."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa import draws
from openjepa.data.augmentation import (
    NUMBERS,
    Augmentation,
    Preprocessing,
    augment,
    augment_array,
    crop_box,
    with_channels,
)
from openjepa.data.base import BadImage

GENERATOR = np.random.default_rng(0)
NOISE = GENERATOR.integers(0, 256, (40, 56, 3), dtype=np.uint8)


def plain(size=(28, 28), channels=3) -> Preprocessing:
    return Preprocessing(size=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)


def numbers(count: int) -> np.ndarray:
    return draws.uniform("crop", 0, np.arange(count)[:, None], np.arange(NUMBERS))


def boxes(height, width, size, augmentation, count=4000) -> np.ndarray:
    return np.array([crop_box(height, width, size, augmentation, u) for u in numbers(count).tolist()])


def uniform_distance(values: np.ndarray) -> float:
    """Kolmogorov and Smirnov's distance from the uniform distribution on [0, 1]."""
    ordered = np.sort(values)
    return float(np.abs(ordered - (np.arange(len(values)) + 0.5) / len(values)).max())


@pytest.mark.parametrize("size", [(224, 224), (100, 300)])
def test_area_is_uniform_aspect_log_uniform_and_place_uniform(size):
    aspect = size[1] / size[0]
    height, width = 30_000, round(30_000 * aspect)
    top, left, tall, wide = boxes(height, width, size, Augmentation(crop_scale=(0.2, 0.7))).T
    assert uniform_distance((tall * wide / (height * width) - 0.2) / 0.5) < 0.03
    log_ratio = np.log(wide / tall / aspect)
    assert uniform_distance((log_ratio - np.log(3 / 4)) / (np.log(4 / 3) - np.log(3 / 4))) < 0.03
    assert uniform_distance(top / (height - tall)) < 0.03
    assert uniform_distance(left / (width - wide)) < 0.03
    assert abs(np.corrcoef(tall * wide, log_ratio)[0, 1]) < 0.05


def test_where_no_crop_fits_the_largest_of_fair_aspect_lies_anywhere():
    """A standing picture in a lying input: as large as can be, and not always the same."""
    top, left, tall, wide = boxes(6000, 4000, (100, 200), Augmentation(crop_scale=(0.8, 1.0)), 2000).T
    assert set(wide.tolist()) == {4000}
    assert set(tall.tolist()) == {2667}
    assert set(left.tolist()) == {0}
    assert uniform_distance(top / (6000 - 2667)) < 0.04


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 500), (500, 2), (28, 28), (37, 53)])
def test_crops_lie_inside_any_image(height, width):
    for scale in ((0.3, 1.0), (1e-6, 1e-5), (1.0, 1.0)):
        top, left, tall, wide = boxes(height, width, (28, 28), Augmentation(crop_scale=scale), 300).T
        assert top.min() >= 0
        assert left.min() >= 0
        assert min(tall.min(), wide.min()) >= 1
        assert (top + tall).max() <= height
        assert (left + wide).max() <= width


def test_every_border_is_reached_and_the_fallback_is_of_fair_aspect():
    found = boxes(28, 28, (28, 28), Augmentation())
    assert found[:, 0].min() == found[:, 1].min() == 0
    assert (found[:, 0] + found[:, 2]).max() == (found[:, 1] + found[:, 3]).max() == 28
    # A crop of the whole area and a quarter to twice its aspect never fits into a line.
    lines = boxes(10, 1000, (28, 28), Augmentation(crop_scale=(1.0, 1.0)), 400)
    assert (lines[:, [0, 2, 3]] == [0, 10, 13]).all()
    assert uniform_distance(lines[:, 1] / (1000 - 13)) < 0.08


@pytest.mark.parametrize("size", [(28, 28), (20, 44), (64, 48)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_crop_and_resize_are_as_exact_as_pillows(size, channels):
    u = numbers(1)[0]
    noise = NOISE[..., [0, 1, 2, 0, 1][:channels]]
    found = augment(noise, plain(size, channels), Augmentation(), u)
    top, left, tall, wide = crop_box(40, 56, size, Augmentation(), u.tolist())
    cut = noise[top : top + tall, left : left + wide]
    bands = [Image.fromarray(cut[..., band].copy()) for band in range(channels)]
    pillows = torch.from_numpy(np.stack([band.resize(size[::-1], Image.Resampling.BICUBIC) for band in bands]))
    doubles = torch.from_numpy(cut.copy()).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(doubles, size, mode="bicubic", antialias=True).clamp(0, 255)[0]
    assert found.dtype == torch.uint8
    assert found.shape == (channels, *size)
    off, pillows_off = ((one - exact).abs() for one in (found, pillows))
    assert off.mean() < 1.01 * pillows_off.mean()
    assert off.max() < pillows_off.max() + 1
    assert (found.int() - pillows.int()).abs().float().mean() < 0.1


def test_twelve_bits_in_sixteen_are_shown_up_to_their_brightest():
    deep = torch.tensor([0.0, 0.01, 0.02, 0.04]).view(1, 1, 2, 2)
    assert plain((2, 2), 1).pictures(deep).ravel().tolist() == [0, 64, 128, 255]
    for as_they_are in (deep * 20, (deep * 255).to(torch.uint8)):
        shown = plain((2, 2), 1).pictures(as_they_are)
        assert shown.ravel().tolist() == (
            [0, 51, 102, 204] if as_they_are.is_floating_point() else as_they_are.ravel().tolist()
        )


def test_a_picture_and_its_array_become_the_same_pixels_and_what_is_transparent_colours_nothing():
    u = numbers(1)[0]
    array, picture = (augment(one, plain((28, 28)), Augmentation(), u) for one in (NOISE, Image.fromarray(NOISE)))
    assert torch.equal(array, picture)
    seen = np.zeros((40, 56, 4), np.uint8)
    seen[:, :28] = (200, 100, 50, 255)
    seen[:, 28:] = (0, 255, 0, 0)
    fitted = plain((10, 14), 4).fit(Image.fromarray(seen))
    visible = fitted[3] > 20  # fainter ones have few levels of colour
    assert (fitted[:3].permute(1, 2, 0)[visible].int() - torch.tensor([200, 100, 50])).abs().max() <= 6


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("channels", "out"), [(1, 1), (1, 3), (3, 3), (5, 5)])
def test_many_at_once_equal_one_by_one(channels, out, flip):
    # Away from black and white, where Pillow's 8 bits between its two passes would cut the cubic's overshoot.
    images = GENERATOR.integers(80, 176, (64, 28, 32, channels), dtype=np.uint8)
    preprocessing, augmentation = plain((24, 28), out), Augmentation(flip=flip)
    u = numbers(64)
    together = augment_array(images, preprocessing, augmentation, u)
    assert together.is_contiguous()
    for row in range(64):
        alone = augment(images[row], preprocessing, augmentation, u[row])
        assert (together[row].int() - alone.int()).abs().max() <= 2
        assert (together[row].int() - alone.int()).abs().float().mean() < 0.6
    with pytest.raises(BadImage, match=f"has {channels} channels, 4 are wanted"):
        augment_array(images, plain(channels=4), augmentation, u)


def test_flip_mirrors_half_of_the_images():
    half = np.zeros((20, 20, 3), np.uint8)
    half[:, 10:] = 255
    settings = {flip: Augmentation(flip=flip, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)) for flip in (False, True)}
    mirrored = 0
    for u in numbers(400):
        straight, perhaps = (augment(half, plain((20, 20)), settings[flip], u) for flip in (False, True))
        if not torch.equal(straight, perhaps):
            assert torch.equal(straight.flip(-1), perhaps)
            mirrored += 1
    assert 160 < mirrored < 240


@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (28, 28), (10, 90), (3, 2)])
@pytest.mark.parametrize("size", [(28, 28), (14, 42)])
def test_fit_covers_and_takes_the_centre(shape, size):
    image = np.zeros((*shape, 3), np.uint8)
    centre = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image[..., 0] = np.clip(128 + 2 * (rows - centre[0]), 0, 255)
    image[..., 1] = np.clip(128 + 2 * (columns - centre[1]), 0, 255)
    found = plain(size).fit(image)
    assert found.shape == (3, *size)
    assert abs(found[0].float().mean() - 128) < 2
    assert abs(found[1].float().mean() - 128) < 2


def test_fit_leaves_the_wanted_size_alone():
    image = NOISE[:28, :28]
    assert np.array_equal(plain().fit(Image.fromarray(image)).permute(1, 2, 0), image)
    assert np.array_equal(plain().fit(image).permute(1, 2, 0), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_arrays_of_every_type_resize_like_each_other(dtype, channels):
    smooth = np.broadcast_to(np.linspace(0.1, 0.9, 60, dtype=np.float32)[:, None, None], (60, 50, channels))
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    found = plain((20, 20), channels).fit((smooth * white).astype(dtype))
    assert found.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    values = found.float() / (255 if dtype == np.uint8 else 1)
    expected = plain((20, 20), channels).fit(smooth)
    assert (values - expected).abs().max() < 0.006


def test_channels_of_pillow_images():
    colour = Image.fromarray(NOISE)
    grey = with_channels(colour, 1)
    assert np.array_equal(np.asarray(grey), np.asarray(colour.convert("L")))
    assert with_channels(grey, 3).mode == "RGB"
    assert with_channels(grey, 4).mode == "RGBA"
    assert with_channels(colour.convert("LA"), 2).mode == "LA"
    with pytest.raises(BadImage, match=r"has 3 channels \(RGB\), 5 are wanted"):
        with_channels(colour, 5)


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert np.asarray(with_channels(clear, 3)).min() == 255
    assert np.asarray(with_channels(clear, 1)).min() == 255
    assert np.asarray(with_channels(clear.convert("LA"), 1)).min() == 255
    solid = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    assert np.asarray(with_channels(solid, 3))[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "LAB", "HSV", "PA", "La"])
def test_images_that_a_user_hands_over_in_other_modes(mode):
    image = Image.fromarray(NOISE).convert("L").convert(mode) if mode in ("1", "P") else Image.new(mode, (40, 56))
    assert plain().fit(image).shape == (3, 28, 28)


def test_channels_of_arrays():
    assert np.array_equal(with_channels(NOISE[..., :1], 3), np.repeat(NOISE[..., :1], 3, 2))
    grey = np.asarray(with_channels(NOISE, 1))[..., None]
    deep = with_channels(NOISE.astype(np.uint16) * 257, 1)
    assert np.abs(grey / 255 - deep).max() < 0.005
    opaque = np.asarray(with_channels(NOISE, 4))
    assert np.array_equal(opaque[..., :3], NOISE)
    assert (opaque[..., 3] == 255).all()
    for has, wanted in ((5, 3), (4, 3), (2, 1)):
        with pytest.raises(BadImage, match=f"has {has} channels, {wanted} are wanted"):
            with_channels(np.zeros((4, 4, has), np.uint8), wanted)


def test_normalise_and_back():
    preprocessing = Preprocessing(size=(4, 4), channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normal = preprocessing.normalise(images)
    assert torch.equal(normal, preprocessing.normalise(images.float() / 255))
    assert torch.allclose(normal[:, 2], (images[:, 2] / 255 - 0.3) / 2)
    assert np.array_equal(preprocessing.pictures(preprocessing.denormalise(normal)), images.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="1 channels, the preprocessing is for 3"):
        preprocessing.normalise(images[:, :1])


def test_preprocessing_survives_json():
    preprocessing = Preprocessing(size=(28, 56), channels=2, mean=(0.1, 1 / 3), std=(0.5, 0.25))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


@pytest.mark.parametrize(
    "change",
    [{"size": (0, 4)}, {"channels": 2}, {"std": (0.0,)}, {"mean": (float("nan"),)}, {"std": (-1.0,)}],
)
def test_impossible_preprocessing_is_refused(change):
    with pytest.raises(ValueError, match=r"got|channels"):
        Preprocessing(**{"size": (4, 4), "channels": 1, "mean": (0.0,), "std": (1.0,), **change})


@pytest.mark.parametrize("change", [{"crop_scale": (0.0, 1.0)}, {"crop_scale": (0.5, 1.5)}, {"crop_ratio": (2.0, 1.0)}])
def test_impossible_augmentation_is_refused(change):
    with pytest.raises(ValueError, match="got"):
        Augmentation(**change)


def test_at_least_keeps_every_crop_from_being_enlarged():
    augmentation = Augmentation()
    height, width = augmentation.at_least((100, 100))
    _, _, tall, wide = boxes(height, width, (100, 100), augmentation, 500).T
    assert min(tall.min(), wide.min()) >= 99
