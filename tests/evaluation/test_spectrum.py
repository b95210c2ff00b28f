import math

import pytest
import torch

from openjepa.evaluation.spectrum import rankme, uniformity


def orthonormal(n: int, d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q


@pytest.mark.parametrize("d", [1, 2, 48, 192])
def test_orthonormal_columns_have_full_rank(d):
    assert rankme(orthonormal(400, d)) == pytest.approx(d, rel=1e-3)
    assert 1 <= rankme(orthonormal(400, d)) <= d


def test_rank_one_is_one():
    values = torch.randn(300, 1, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 2, 64)
    # 63 directions at 1e-7 each add 63 * 1e-7 * ln(1e7) to the entropy
    assert rankme(values) == pytest.approx(1, abs=2e-4)


def test_known_singular_values():
    s = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    values = orthonormal(100, 4) * s @ orthonormal(4, 4).T
    entropy = sum(-p * math.log(p) for p in (0.5 + 1e-7, 0.25 + 1e-7, 0.125 + 1e-7, 0.125 + 1e-7))
    assert rankme(values) == pytest.approx(math.exp(entropy), rel=1e-12)
    assert rankme(1000 * values) == pytest.approx(rankme(values), rel=1e-12)


def test_an_encoder_that_says_the_same_of_all_has_rank_one():
    assert rankme(torch.ones(50, 8)) == pytest.approx(1, abs=1e-4)
    assert rankme(torch.zeros(50, 8)) == 1
    assert [uniformity(torch.full((50, 8), value)) for value in (0.0, 1.0)] == pytest.approx([0, 0], abs=1e-9)


def test_an_empty_matrix_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 8\)"):
        rankme(torch.zeros(0, 8))
