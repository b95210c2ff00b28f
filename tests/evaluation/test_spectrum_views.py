"""LiDAR, alpha-ReQ, uniformity, alignment and the variance over images and positions, where the answer is known."""

import math

import pytest
import torch

from openjepa.evaluation.spectrum import alignment, alpha_req, lidar, uniformity, variance_shares


def orthonormal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """n x d, columns orthonormal and each of mean zero."""
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn - drawn.mean(0)).Q


def pairs(means: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
    """Two views of each image, at its mean plus and minus ``away``."""
    return torch.stack([means + away, means - away], 1)


def entropy_rank(eigenvalues) -> float:
    p = [value / sum(eigenvalues) + 1e-7 for value in eigenvalues]
    return math.exp(-sum(x * math.log(x) for x in p))


def test_lidar_of_equal_ratios_is_their_number():
    means = orthonormal(400, 6) * 400**0.5
    assert lidar(pairs(means, 0.3 * orthonormal(400, 6, 1) * 400**0.5)) == pytest.approx(6, rel=1e-4)


def test_lidar_of_known_ratios():
    between, within = torch.tensor([9.0, 4.0, 1.0]), torch.tensor([1.0, 0.25, 2.0])
    # The second basis is orthogonal to the first, so that views and means share no accident.
    basis = orthonormal(300, 6) * 300**0.5
    views = pairs(basis[:, :3] * between.sqrt(), basis[:, 3:] * within.sqrt())
    expected = entropy_rank([b / (w + 1e-4) for b, w in zip(between.tolist(), within.tolist(), strict=True)])
    assert lidar(views) == pytest.approx(expected, rel=1e-6)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    assert lidar(views @ turn) == pytest.approx(expected, rel=1e-6)


def test_lidar_does_not_count_directions_that_only_views_differ_in():
    basis = orthonormal(300, 12) * 300**0.5
    means = torch.cat([basis[:, :2], torch.zeros(300, 4, dtype=torch.float64)], 1)
    assert lidar(pairs(means, basis[:, 6:])) == pytest.approx(2, rel=1e-4)


def test_lidar_of_orthogonal_classes_whose_views_agree():
    """m classes at the corners of a simplex: m - 1 directions, all alike."""
    views = torch.eye(8)[:, None].expand(8, 3, 8)
    assert lidar(views) == pytest.approx(7, rel=1e-4)


def test_lidar_of_constant_features_is_one():
    assert lidar(torch.ones(20, 3, 5)) == 1


@pytest.mark.parametrize("shape", [(1, 4, 3), (4, 1, 3), (4, 2, 0)])
def test_lidar_needs_images_and_views(shape):
    with pytest.raises(ValueError, match="LiDAR needs"):
        lidar(torch.zeros(shape))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
def test_alpha_of_a_power_law_is_its_exponent(alpha):
    values = orthonormal(500, 40) * torch.arange(1, 41, dtype=torch.float64) ** (-alpha / 2)
    assert alpha_req(values) == pytest.approx(alpha, abs=1e-9)
    assert alpha_req(7 * values + 3) == pytest.approx(alpha, abs=1e-6)


def test_alpha_is_infinite_where_there_is_no_spectrum():
    assert alpha_req(torch.ones(30, 8)) == math.inf
    assert alpha_req(torch.randn(30, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(8)) == math.inf
    with pytest.raises(ValueError, match="at least 2"):
        alpha_req(torch.zeros(1, 8))


def test_uniformity_of_known_points():
    assert uniformity(torch.ones(10, 4)) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.eye(9)) == pytest.approx(-4, rel=1e-6)  # |x - y|^2 = 2, t = 2
    opposite = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8, rel=1e-6)
    mixed = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert uniformity(mixed) == pytest.approx(math.log((2 * 1 + 4 * math.exp(-4)) / 6), rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        uniformity(torch.zeros(1, 4))


def test_alignment_of_known_views():
    assert alignment(torch.ones(3, 4, 5)) == pytest.approx(0, abs=1e-9)
    assert alignment(torch.eye(4)[None].repeat(2, 1, 1)) == pytest.approx(2, rel=1e-6)
    assert alignment(torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])) == pytest.approx(4, rel=1e-6)
    with pytest.raises(ValueError, match="2 views"):
        alignment(torch.zeros(3, 1, 4))


def test_the_variance_of_tokens_is_split_into_images_and_positions():
    image, place = orthonormal(60, 4) * 60**0.5, orthonormal(9, 4) * 9**0.5
    by_place = place[None].expand(60, 9, 4)
    assert variance_shares(by_place) == pytest.approx((0, 1), abs=1e-12)
    by_image = image[:, None].expand(60, 9, 4)
    assert variance_shares(by_image) == pytest.approx((1, 0), abs=1e-12)
    assert variance_shares(3 * by_image + 0.5 * by_place + 7) == pytest.approx((9, 0.25), rel=1e-9)
    tokens = torch.randn(20, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sum(variance_shares(tokens)) == pytest.approx(float(tokens.flatten(0, 1).var(0, correction=0).mean()))
    with pytest.raises(ValueError, match="no tokens"):
        variance_shares(torch.zeros(0, 9, 4))
