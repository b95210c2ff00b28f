"""Masks, feature colours and charts, checked pixel by pixel and number by number."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from openjepa.report.charts import Curve, curve_svg, thinned
from openjepa.report.formats import duration, listed, memory, percent, plain, points, scaled
from openjepa.report.pictures import (
    TARGET_COLOURS,
    VEIL,
    as_rgb,
    cell_size,
    feature_colours,
    feature_length,
    paint_masks,
    png_uri,
    principal_components,
    resized,
    upsampled,
)


def test_masks_are_painted_pixel_by_pixel():
    """1 x 3 tokens of 3 x 3 pixels: seen, predicted, neither."""
    image = np.full((3, 9, 3), 200, np.uint8)
    painted = paint_masks(image, (1, 3), np.array([0]), np.array([[1]]), line=1)
    orange, veil = np.array(TARGET_COLOURS[0]), np.array(VEIL)
    dimmed = np.rint(200 * 0.22 + veil * 0.78)
    tinted = np.rint(np.rint(200 * 0.44 + veil * 0.56) * 0.72 + orange * 0.28)
    expected = np.empty((3, 9, 3))
    expected[:, :3], expected[:, 3:6], expected[:, 6:] = 200, orange, dimmed
    expected[1, 4] = tinted  # the only pixel inside the outline
    np.testing.assert_array_equal(painted, expected)
    assert (image == 200).all()


def test_one_outline_runs_round_all_tokens_of_a_block():
    """2 x 2 tokens of 4 x 4 pixels, a block of the upper two: no line between them."""
    painted = paint_masks(np.zeros((8, 8, 3), np.uint8), (2, 2), np.array([2, 3]), np.array([[0, 1]]), line=1)
    outline = (painted == TARGET_COLOURS[0]).all(axis=-1)
    expected = np.zeros((8, 8), bool)
    expected[:4] = True
    expected[1:3, 1:7] = False
    np.testing.assert_array_equal(outline, expected)
    assert (painted[4:] == 0).all()  # the context, as it is


def test_overlapping_blocks_both_keep_an_outline_and_colours_come_round():
    blocks = np.arange(7)[:, None]
    painted = paint_masks(np.zeros((3, 21, 3), np.uint8), (1, 7), np.array([], np.int64), blocks, line=1)
    assert tuple(painted[0, 0]) == TARGET_COLOURS[0] == tuple(painted[0, 18])
    assert tuple(painted[0, 3]) == TARGET_COLOURS[1]
    both = paint_masks(np.zeros((6, 6, 3), np.uint8), (2, 2), np.array([3]), np.array([[0, 1], [0, 2]]), line=1)
    assert tuple(both[0, 5]) == TARGET_COLOURS[0]
    assert tuple(both[0, 0]) == TARGET_COLOURS[1] == tuple(both[5, 0])


def test_principal_components_of_a_known_case():
    """Tokens on two orthogonal axes with variances 9 to 1: found in that order, and a third that is nothing."""
    features = np.zeros((2, 2, 4), np.float32)
    features[0, :, 2], features[1, :, 0] = (3, -3), (1, -1)
    projected, shares = principal_components(features)
    np.testing.assert_allclose(shares, [0.9, 0.1, 0], atol=1e-12)
    np.testing.assert_allclose(projected[..., 0], [[3, -3], [0, 0]], atol=1e-9)
    np.testing.assert_allclose(projected[..., 1], [[0, 0], [1, -1]], atol=1e-9)
    assert (projected[..., 2] == 0).all()
    assert feature_length(features) == 2
    colours = feature_colours(projected, 2.0)
    np.testing.assert_array_equal(colours[0], [[255, 128, 128], [0, 128, 128]])
    np.testing.assert_array_equal(colours[1], [[128, 170, 128], [128, 85, 128]])  # a third as far, on the same scale


def test_components_agree_with_singular_values():
    features = np.random.default_rng(3).normal(size=(4, 5, 7)) * np.arange(1, 8)
    projected, shares = principal_components(features)
    rows = features.reshape(20, 7) - features.reshape(20, 7).mean(0)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(shares, (singular**2 / (singular**2).sum())[:3])
    np.testing.assert_allclose(np.abs(projected.reshape(20, 3)), np.abs(left * singular)[:, :3])


@pytest.mark.parametrize("width", [1, 2])
def test_fewer_features_than_colours(width):
    projected, shares = principal_components(np.arange(6 * width, dtype=np.float32).reshape(2, 3, width))
    assert projected.shape == (2, 3, 3)
    assert shares.sum() == pytest.approx(1)


def test_features_all_alike_are_grey_and_not_noise():
    projected, shares = principal_components(np.full((2, 3, 5), 0.1, np.float32))
    assert (feature_colours(projected, 0.2) == 128).all()
    assert (feature_colours(projected, 0.0) == 128).all()
    assert shares.sum() == 0


def coloured(features):
    return feature_colours(principal_components(features)[0], feature_length(features)).astype(int)


def test_features_nearly_alike_look_flat_whatever_their_little_differences_are():
    noise = np.random.default_rng(0).normal(size=(12, 64, 192))
    assert np.abs(coloured(1 + 1e-6 * noise) - 128).max() <= 1
    assert np.abs(coloured(1 + 0.02 * noise) - 128).max() <= 10
    assert np.ptp(coloured(noise), axis=(0, 1)).min() > 180  # no collapse: the whole range


def test_features_of_one_direction_have_one_hue_and_weak_components_are_faint():
    random = np.random.default_rng(1)
    strength, direction = random.normal(size=(12, 64, 1)), random.normal(size=192)
    one = coloured(strength * direction)
    assert np.ptp(one[..., 0]) == 255
    assert (one[..., 1:] == 128).all()
    weak = coloured(strength * direction + 0.1 * random.normal(size=(12, 64, 1)) * random.normal(size=192))
    assert np.ptp(weak[..., 0]) >= 250
    assert np.ptp(weak[..., 1]) < 50  # a hundredth of the variance


def test_tokens_become_rectangles_in_the_order_of_the_grid():
    tokens = np.arange(6, dtype=np.uint8)[:, None].repeat(3, axis=1)
    drawn = upsampled(tokens, (2, 3), (2, 1))
    np.testing.assert_array_equal(drawn[..., 0], [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]])


@pytest.mark.parametrize(
    ("grid", "patch", "cell"),
    [
        ((7, 7), (4, 4), (32, 32)),
        ((14, 14), (16, 16), (16, 16)),
        ((32, 32), (14, 14), (7, 7)),
        ((2, 4), (8, 16), (24, 48)),
    ],
)
def test_cells_make_pictures_of_one_size(grid, patch, cell):
    assert cell_size(grid, patch) == cell


def test_channels():
    image = np.arange(16, dtype=np.uint8).reshape(2, 2, 4)
    np.testing.assert_array_equal(as_rgb(image), image[..., :3])
    np.testing.assert_array_equal(as_rgb(image[..., :2])[..., 2], image[..., 0])


def test_small_images_grow_without_blur_and_png_keeps_every_pixel():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    large = resized(image, (12, 18))
    np.testing.assert_array_equal(large[::3, ::3], image)
    np.testing.assert_array_equal(large[2::3, 2::3], image)
    for pixels in (large, np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)):
        data = base64.b64decode(png_uri(pixels).removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), pixels)


def test_thinning_keeps_means_and_extremes():
    steps, values = np.arange(1000.0), np.zeros(1000)
    values[501] = 100
    line = thinned(steps, values, most=10)
    assert len(line.steps) == 10
    assert line.mean.sum() == pytest.approx(1)
    assert line.high.max() == 100
    assert line.steps[0] == pytest.approx(49.5)
    few = thinned(steps[:10], values[:10], most=10)
    np.testing.assert_array_equal(few.steps, steps[:10])


def test_a_chart_takes_its_colours_and_letters_from_the_page():
    curve = Curve(name="knn", steps=np.array([1.0, 2.0]), values=np.array([0.2, 0.4]), reference=(0.1, "guessing"))
    svg = curve_svg(curve, "a label")
    assert svg.startswith('<svg class="chart" role="img" aria-label="a label" viewBox=')
    assert "var(--accent)" in svg
    assert "guessing</text>" in svg
    for unwanted in ("#2462eb", "font:", "<metadata", "DOCTYPE", "http", "<style"):
        assert unwanted not in svg
    assert svg == curve_svg(curve, "a label")


def test_values_over_several_powers_of_ten_get_a_logarithmic_axis():
    def curve(*values):
        return Curve(name="loss", steps=np.arange(len(values), dtype=float), values=np.array(values))

    assert curve(0.2, 0.003).logarithmic
    assert not curve(0.2, 0.1).logarithmic
    assert not curve(0.2, 0.0).logarithmic
    assert not curve(0.2, -1.0).logarithmic
    stalled = Curve(name="images_per_s", steps=np.arange(2.0), values=np.array([900.0, 3.0]), from_zero=True)
    assert not stalled.logarithmic


def test_shares_have_whole_percents_and_all_curves_the_steps_of_the_run():
    steps = np.array([300.0, 600.0])
    curve = Curve(name="knn", steps=steps, values=np.array([0.464, 0.466]), as_percent=True, start=0.465, until=1000.0)
    ticks = re.findall(r">([^<>]+)</text>", curve_svg(curve, "k-NN"))
    assert {"0", "900"} <= set(ticks)
    percents = [tick for tick in ticks if tick.endswith("%")]
    assert len(percents) >= 3
    assert all(re.fullmatch(r"\d+%", tick) for tick in percents)


def test_numbers_as_people_read_them():
    assert [percent(v) for v in (0.5, 0.0, 0.0001, 1.0)] == ["50.0%", "0.0%", "under 0.1%", "100.0%"]
    given = 0.056, -0.01, 0.0001, -0.0001, 0.3025 - 0.265, 0.265 - 0.3025
    assert [points(v) for v in given] == ["+5.6", "−1.0", "0.0", "0.0", "+3.8", "−3.8"]
    assert [plain(v) for v in (0, 0.00379, 0.1, 10, 1234.5, 1e-6, -2.5)] == [
        "0",
        "0.00379",
        "0.100",
        "10.0",
        "1,234",
        "1.00e-6",
        "-2.50",
    ]
    assert [duration(v) for v in (0.5, 59.999, 60, 3599.6, 7261)] == [
        "0.500 s",
        "1 min 0 s",
        "1 min 0 s",
        "1 h 0 min",
        "2 h 1 min",
    ]
    assert [memory(v) for v in (2**20, 3 * 2**29)] == ["1.00 MiB", "1.50 GiB"]
    assert scaled(4.61e9, "FLOP") == "4.61 GFLOP"
    assert [listed(v) for v in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
