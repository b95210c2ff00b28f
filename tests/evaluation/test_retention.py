"""What a linear map reads of the pictures: known answers, and scikit-learn's ridge regression on the same halves."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from openjepa import draws
from openjepa.evaluation.retention import components, pixel_r2, thumbnails


def pictures(count: int = 200, side: int = 20) -> torch.Tensor:
    """Noise in which low frequencies are strong, as in photographs."""
    noise = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_components_are_those_of_the_singular_values():
    found = components(thumbnails(pictures()))
    assert found.shape == (200, 8)
    torch.testing.assert_close(found.T @ found / 200, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.mean(0), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-9)
    small = torch.nn.functional.adaptive_avg_pool2d(pictures(), 16).flatten(1).double()
    centred = small - small.mean(0)
    along = (centred.T @ found).norm(dim=0) / 200**0.5
    torch.testing.assert_close(along, torch.linalg.svdvals(centred)[:8], rtol=1e-5, atol=0)


def test_small_pictures_stay_as_they_are_and_wide_ones_are_averaged():
    x = pictures(3, side=8)
    torch.testing.assert_close(thumbnails(x), x.flatten(1))
    assert thumbnails(torch.zeros(2, 1, 8, 64)).shape == (2, 8 * 16)
    assert thumbnails(torch.arange(64.0).reshape(1, 1, 1, 64)).tolist() == [[1.5 + 4 * i for i in range(16)]]


def test_pictures_that_do_not_differ_have_no_components():
    assert components(torch.full((50, 30), 0.3)).shape == (50, 0)
    assert components(normal(50, 2) @ normal(2, 30)).shape == (50, 2)
    with pytest.raises(ValueError, match="200 and 0"):
        pixel_r2(normal(200, 5), torch.zeros(200, 0))


def test_features_that_hold_the_pictures_tell_all_and_those_that_do_not_tell_nothing():
    wanted = components(thumbnails(pictures()))
    assert pixel_r2(wanted.float(), wanted) == pytest.approx(1, abs=0.03)
    assert pixel_r2(1000 + 5 * wanted.float() @ normal(8, 8), wanted) > 0.9
    assert abs(pixel_r2(torch.full((200, 6), 7.0), wanted)) < 0.03
    assert abs(pixel_r2(torch.zeros(200, 6), wanted)) < 0.03
    assert pixel_r2(normal(200, 6), wanted) < 0.03
    half = torch.cat([wanted[:, :4].float(), normal(200, 4)], 1)
    assert pixel_r2(half, wanted) == pytest.approx(0.5, abs=0.1)


def test_it_is_ridge_regression():
    wanted = components(thumbnails(pictures()))
    values = (wanted.float() @ normal(8, 5) + normal(200, 5, seed=2)) * torch.tensor([1.0, 10, 0.1, 3, 1]) + 4
    order, missed = draws.permutation(200, "pixel r2"), 0.0
    for learn, test in ((order[:100], order[100:]), (order[100:], order[:100])):
        mean, deviation = values[learn].mean(0).numpy(), values[learn].std(0, correction=0).numpy()
        x = (values.numpy() - mean) / deviation
        fitted = Ridge(alpha=0.1 * 100).fit(x[learn], wanted[learn].numpy())
        missed += np.square(wanted[test].numpy() - fitted.predict(x[test])).sum()
    assert pixel_r2(values, wanted) == pytest.approx(1 - missed / (200 * 8), rel=1e-6)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="got 3 and 2"):
        pixel_r2(normal(3, 5), torch.zeros(3, 2))
