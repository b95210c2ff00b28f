"""The variance of targets over images and over positions, from tokens that stand at drawn places."""

import pytest
import torch

from openjepa.objectives.spread import spread_by_place

GENERATOR = torch.Generator().manual_seed(0)
AT = torch.randint(0, 49, (200, 4, 9), generator=GENERATOR)
PLACE = torch.randn(49, 32, generator=GENERATOR)
IMAGE = torch.randn(200, 1, 1, 32, generator=GENERATOR).expand(200, 4, 9, 32)


def test_what_depends_on_the_place_alone_has_no_variance_over_images():
    over_images, over_positions = spread_by_place(PLACE[AT], AT, 49)
    assert float(over_images) == pytest.approx(0, abs=1e-10)
    assert float(over_positions) == pytest.approx(float(PLACE.var(0).mean()), rel=0.05)


def test_what_does_not_depend_on_the_place_has_no_variance_over_positions():
    """However few images there are: the places' means then differ by chance, which is taken out."""
    for rows in (8, 200):
        noise = torch.randn(rows, 4, 9, 32, generator=torch.Generator().manual_seed(1))
        over_images, over_positions = spread_by_place(noise, AT[:rows], 49)
        assert float(over_images) == pytest.approx(1, rel=0.1)
        assert float(over_positions) < 0.02


def test_both_are_there_at_once():
    over_images, over_positions = spread_by_place(IMAGE + 2 * PLACE[AT], AT, 49)
    assert float(over_images) == pytest.approx(float(IMAGE.var(0).mean()), rel=0.1)
    assert float(over_positions) == pytest.approx(4 * float(PLACE.var(0).mean()), rel=0.1)


def test_constant_features_have_none():
    assert [float(v) for v in spread_by_place(torch.ones(4, 2, 3, 5), AT[:4, :2, :3], 49)] == [0, 0]
