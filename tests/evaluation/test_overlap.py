import numpy as np
import pytest
import torch

from openjepa.evaluation.intervals import wilson
from openjepa.evaluation.overlap import IGNORE, Overlap


def drawn(images: int, classes: int, right: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and predictions that are right for about a share of the pixels, a share of its own for every image."""
    generator = np.random.default_rng(seed)
    masks = generator.integers(classes, size=(images, 12, 12))
    share = np.clip(generator.normal(right, 0.15, (images, 1, 1)), 0, 1)
    predicted = np.where(generator.random(masks.shape) < share, masks, generator.integers(classes, size=masks.shape))
    return torch.from_numpy(predicted), torch.from_numpy(masks.astype(np.uint8))


def test_miou_of_a_hand_computed_confusion():
    masks = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 2, 2]]], dtype=torch.uint8)
    named = torch.tensor([[[0, 0, 1, 1]], [[1, 2, 2, 0]]])
    found = Overlap.of(named, masks, 4)
    # Class 0: 2 of {3 labelled + 1 more}; 1: 2 of {3 + 1}; 2: 1 of {2 + 1}; 3 is nowhere and does not count.
    assert found.iou()[:3].tolist() == pytest.approx([2 / 4, 2 / 4, 1 / 3])
    assert np.isnan(found.iou()[3])
    assert found.miou() == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    assert found.union.tolist() == [[3, 2, 0, 0], [1, 2, 3, 0]]


def test_a_pixel_without_a_class_counts_nowhere():
    masks = torch.tensor([[[0, 3]], [[1, 0]]], dtype=torch.uint8)
    named = torch.tensor([[[0, 1]], [[1, 0]]])
    found = Overlap.of(named, masks, 2)
    assert found.union.tolist() == [[1, 0], [1, 1]]
    assert found.miou() == 1
    signed = torch.where(masks == 3, -1, masks.long())
    assert Overlap.of(named, signed, 2).union.tolist() == found.union.tolist()
    with pytest.raises(ValueError, match="2 classes are 0 to 1"):
        Overlap.of(named + 1, masks, 2)


def test_miou_is_scikit_learns_jaccard_over_all_pixels():
    from sklearn.metrics import jaccard_score

    named, masks = drawn(9, 5, 0.6)
    masks[:, :3] = IGNORE
    known = masks != IGNORE
    expected = jaccard_score(masks[known], named[known], average=None)
    found = Overlap.of(named, masks, 5)
    assert found.iou() == pytest.approx(expected)
    assert found.miou() == pytest.approx(expected.mean())


def test_the_interval_covers_the_truth():
    truth = Overlap.of(*drawn(4000, 3, 0.6, seed=99), 3).miou()
    inside = 0
    for seed in range(60):
        low, high = Overlap.of(*drawn(50, 3, 0.6, seed), 3).interval()
        inside += low <= truth <= high
    assert 50 <= inside <= 60


@pytest.mark.parametrize("images", [2, 4, 8, 30])
def test_few_images_seldom_show_a_difference_that_is_not_there(images):
    random, clear = np.random.default_rng(0), 0
    for _ in range(200):
        right = random.integers(300, 500, (2, images, 2))
        both = [Overlap(intersection=own, union=own + random.integers(20, 200, own.shape)) for own in right]
        clear += both[0].difference(both[1]).verdict != "unclear"
    assert clear <= 20  # 5% are meant; of two images percentiles of the bootstrap would show half of them


def test_a_difference_is_of_the_same_images():
    named, masks = drawn(40, 3, 0.6)
    found = Overlap.of(named, masks, 3)
    mended = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0)) < 0.1
    better = Overlap.of(torch.where(mended, masks, named), masks, 3)
    same, more = found.difference(found), better.difference(found)
    assert (same.value, same.verdict) == (0, "unclear")
    assert -0.1 < same.low < 0 < same.high < 0.1
    assert more.verdict == "above"
    assert more.value == pytest.approx(better.miou() - found.miou())
    low, high = found.interval()
    assert more.high - more.low < (high - low) / 2
    with pytest.raises(ValueError, match="can't be paired"):
        found.difference(Overlap.of(named[:5], masks[:5], 3))


def test_where_every_pixel_is_right_the_interval_is_that_of_a_proportion():
    masks = drawn(12, 3, 0.6)[1]
    assert Overlap.of(masks.long(), masks, 3).interval() == wilson(12, 12)


def test_parts_join_and_nothing_labelled_is_refused():
    named, masks = drawn(6, 3, 0.5)
    joined = Overlap.joined([Overlap.of(named[:2], masks[:2], 3), Overlap.of(named[2:], masks[2:], 3)])
    assert np.array_equal(joined.union, Overlap.of(named, masks, 3).union)
    with pytest.raises(ValueError, match="labelled pixel"):
        Overlap.of(named, torch.full_like(masks, IGNORE), 3).miou()
