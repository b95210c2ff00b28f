"""Spoilt images, and what is left of an accuracy on them."""

import numpy as np
import pytest
import torch

from openjepa.assessment.robustness import CORRUPTIONS, Corruption, correct_by_part, corrupted
from openjepa.evaluation.features import Features
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe


def test_noise_has_its_spread_and_is_each_images_own():
    noise = Corruption(kind="noise", amount=0.1)
    grey = torch.full((40, 1, 28, 28), 0.5)
    spoilt = noise(grey, 0)
    assert (spoilt - grey).std().item() == pytest.approx(0.1, rel=0.02)
    torch.testing.assert_close(noise(grey[:7], 13), spoilt[13:20])
    assert not torch.equal(spoilt[0], spoilt[1])
    batches = [(grey[:25], torch.zeros(25)), (grey[25:], torch.zeros(15))]
    torch.testing.assert_close(torch.cat([images for images, _ in corrupted(iter(batches), noise)]), spoilt)


def test_blur_keeps_the_mean_and_takes_the_detail():
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    weak, strong = (Corruption(kind="blur", amount=amount)(image, 0) for amount in (0.03, 0.1))
    assert strong.var() < 0.5 * weak.var() < 0.5 * image.var()
    assert strong.mean().item() == pytest.approx(image.mean().item(), abs=0.01)


def test_eight_bit_images_become_shares_of_the_full_range():
    images = torch.full((3, 1, 8, 8), 255, dtype=torch.uint8)
    ((spoilt, _),) = corrupted(iter([(images, torch.zeros(3))]), CORRUPTIONS[0])
    assert spoilt.dtype == torch.float32
    assert 0 <= spoilt.min() < 1
    assert spoilt.max() == 1


@pytest.mark.parametrize("evaluator", [KNN(), LinearProbe()], ids=lambda one: one.name)
def test_a_part_among_others_is_judged_as_it_is_alone(evaluator):
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    values = np.eye(3)[labels] + 0.3 * random.normal(size=(300, 3))
    train, clean = Features(values[:200], labels[:200], "own"), Features(values[200:], labels[200:], "own")
    spoilt = Features(clean.values + random.normal(size=clean.values.shape), clean.labels, "own")
    found = correct_by_part(evaluator, train, {"clean": clean, "spoilt": spoilt})
    for name, part in (("clean", clean), ("spoilt", spoilt)):
        np.testing.assert_array_equal(found[name], evaluator.classify(train, part).correct)
    assert found["spoilt"].mean() < found["clean"].mean() - 0.1
