"""What a linear map reads of the pictures: known answers, and scikit-learn's ridge regression on all images but one."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from openjepa.evaluation.pixel_r2 import components, pixel_r2, thumbnails


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
    assert components(torch.zeros(50, 30)).shape == (50, 0)
    assert components(normal(50, 2) @ normal(2, 30)).shape == (50, 2)
    faint = normal(50, 2) @ (torch.tensor([[1.0], [0.01]]) * normal(2, 30))
    assert components(faint).shape == (50, 1), "noise is no component"
    with pytest.raises(ValueError, match="200 and 0"):
        pixel_r2(normal(200, 5), torch.zeros(200, 0))
    with pytest.raises(ValueError, match="got 1 and 2"):
        pixel_r2(normal(1, 5), torch.zeros(1, 2))


def test_features_that_hold_the_pictures_tell_all_and_those_that_do_not_tell_nothing():
    wanted = components(thumbnails(pictures()))
    held = wanted.float()
    assert pixel_r2(held, wanted) > 0.999
    assert pixel_r2(1000 + 5 * held @ normal(8, 8), wanted) > 0.999
    assert pixel_r2(torch.full((200, 6), 7.0), wanted) == 0
    assert pixel_r2(torch.zeros(200, 6), wanted) == 0
    assert pixel_r2(3 + 1e-8 * normal(200, 64), wanted) < 0.02, "rounding holds nothing"
    assert pixel_r2(normal(200, 64), wanted) < 0.02
    assert pixel_r2(normal(200, 300), wanted) < 0.02
    half = torch.cat([held[:, :4], normal(200, 4)], 1)
    assert pixel_r2(half, wanted) == pytest.approx(0.5, abs=0.06)


def test_a_feature_of_one_image_does_no_harm():
    wanted = components(thumbnails(pictures()))
    lonely = torch.zeros(200, 1)
    lonely[7] = 1e3
    assert pixel_r2(torch.cat([wanted.float(), lonely], 1), wanted) > 0.98


@pytest.mark.parametrize(("n", "width"), [(200, 40), (400, 96)])
def test_another_basis_of_the_same_features_tells_as_much(n, width):
    """Whitening leaves a linear probe what it has, and makes RankMe the highest there is."""
    wanted = components(thumbnails(pictures(n)))
    strengths = torch.logspace(1, -1, width)
    hidden = torch.cat([wanted.float(), normal(n, width - 8)], 1)
    mixed = hidden @ torch.linalg.qr(normal(width, width)).Q * strengths
    centred = mixed - mixed.mean(0)
    whitened = torch.linalg.svd(centred, full_matrices=False)[0]
    assert pixel_r2(mixed, wanted) > 0.9
    assert pixel_r2(whitened, wanted) == pytest.approx(pixel_r2(mixed, wanted), abs=0.05)


def test_it_is_the_best_ridge_regression_on_all_images_but_one():
    wanted = components(thumbnails(pictures(60)))
    values = (wanted.float() @ normal(8, 5) + normal(60, 5, seed=2)) * torch.tensor([1.0, 10, 0.1, 3, 1]) + 4
    x = ((values - values.mean(0)) / values.std(0, correction=0)).double().numpy()
    found = []
    for power in range(-8, 5):
        ridge = Ridge(alpha=60 * 10 ** (power / 2))
        told = cross_val_predict(ridge, x, wanted.numpy(), cv=LeaveOneOut())
        found.append(1 - np.square(wanted.numpy() - told).mean())
    assert pixel_r2(values, wanted) == pytest.approx(max(found), abs=2e-3)
