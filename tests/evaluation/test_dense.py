import numpy as np
import pytest
import torch
from torch.nn import functional as F

from openjepa.evaluation.dense import LinearSegmentation, Patches, PatchKNN, Segmenter, class_shares, to_pixels
from openjepa.evaluation.overlap import IGNORE, Overlap

GRID, PATCH, SIZE = (6, 6), (4, 4), (24, 24)
SEGMENTERS = [PatchKNN(), LinearSegmentation()]


def masks(images: int, classes: int = 3, seed: int = 0) -> torch.Tensor:
    """Masks that are whole patches of one class, class 0 the commonest."""
    generator = np.random.default_rng(seed)
    share = np.array([0.6, *[0.4 / (classes - 1)] * (classes - 1)])
    patches = generator.choice(classes, size=(images, *GRID), p=share).astype(np.uint8)
    return torch.from_numpy(patches.repeat(4, 1).repeat(4, 2))


def one_hot(mask: torch.Tensor, classes: int = 3, noise: float = 0.0) -> torch.Tensor:
    """Features of patches that are their class, perhaps in noise."""
    shares = class_shares(mask, classes, PATCH)
    return shares + noise * torch.randn(shares.shape, generator=torch.Generator().manual_seed(1))


def learn(segmenter: Segmenter, tokens: torch.Tensor, mask: torch.Tensor, classes: int = 3):
    shares = class_shares(mask, classes, PATCH).flatten(0, 1)
    owner = torch.arange(len(mask)).repeat_interleave(tokens.shape[1])
    every = Patches(values=tokens.flatten(0, 1), shares=shares, image=owner)
    return segmenter.fit(every.take(shares.sum(1) > 0))


def miou(predicted: torch.Tensor, mask: torch.Tensor, classes: int = 3) -> float:
    return Overlap.of(predicted, mask, classes).miou()


def test_shares_are_of_the_labelled_pixels():
    mask = torch.zeros(1, 4, 8, dtype=torch.uint8)
    mask[0, :, :1], mask[0, :2, 1:4], mask[0, :, 4:] = 2, IGNORE, IGNORE
    assert class_shares(mask, 3, PATCH)[0].tolist() == [pytest.approx([0.6, 0, 0.4]), [0, 0, 0]]


def test_scores_are_interpolated_between_patch_centres():
    scores = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert to_pixels(scores, (1, 2), (4, 8))[0].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 4


@pytest.mark.parametrize("segmenter", SEGMENTERS, ids=lambda one: one.name)
def test_features_that_are_the_label_are_read_off(segmenter):
    learned, asked = masks(20), masks(8, seed=1)
    fitted = learn(segmenter, one_hot(learned, noise=0.05), learned)
    scores = fitted.score(one_hot(asked, noise=0.05))
    patches = torch.from_numpy(np.asarray(asked)[:, ::4, ::4].reshape(8, -1)).long()
    assert (scores.argmax(2) == patches).float().mean() > 0.99
    # Whole areas, so that hardly a pixel lies near a border.
    wide = F.interpolate(torch.randint(3, (8, 1, 2, 2), generator=torch.Generator().manual_seed(2)).float(), SIZE)
    wide = wide[:, 0].to(torch.uint8)
    assert miou(to_pixels(fitted.score(one_hot(wide)), GRID, SIZE), wide) > 0.95


@pytest.mark.parametrize("segmenter", SEGMENTERS, ids=lambda one: one.name)
def test_constant_features_name_the_commonest_class(segmenter):
    learned, asked = masks(20), masks(8, seed=1)
    fitted = learn(segmenter, torch.ones(20, 36, 5), learned)
    found = miou(to_pixels(fitted.score(torch.ones(8, 36, 5)), GRID, SIZE), asked)
    if segmenter.name == "linear segmentation":
        assert found == pytest.approx((asked == 0).float().mean().item() / 3)
    assert found < 0.35


def test_nearest_patches_vote_with_their_shares():
    values = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    shares = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    bank = Patches(values=values, shares=shares, image=torch.arange(3))
    score = PatchKNN(k=2, temperature=1.0).fit(bank).score(torch.tensor([[[1.0, 0.0]]]))[0, 0]
    similar = torch.tensor([1.0, 0.9 / np.hypot(0.9, 0.1)]).softmax(0)
    assert score.tolist() == pytest.approx([similar[0].item() / 2 + similar[1].item(), similar[0].item() / 2])


def test_the_bank_is_bounded_and_its_choice_has_a_seed():
    learned = masks(20)
    one, same, other = (learn(PatchKNN(bank=50, seed=seed), one_hot(learned, noise=1), learned) for seed in (0, 0, 1))
    assert one.settings == {"k": 20.0, "patches": 50.0}
    asked = one_hot(masks(2, seed=1), noise=1)
    assert one.score(asked).equal(same.score(asked))
    assert not one.score(asked).equal(other.score(asked))


def test_a_class_that_is_not_in_the_train_part_is_never_named():
    learned = masks(20, classes=3)
    fitted = learn(LinearSegmentation(), one_hot(learned, noise=0.1), learned, classes=5)
    scores = fitted.score(one_hot(masks(4, seed=1), noise=2))
    assert scores.shape == (4, 36, 5)
    assert scores.isfinite().all()
    assert set(to_pixels(scores, GRID, SIZE).unique().tolist()) == {0, 1, 2}
    lonely = learn(LinearSegmentation(), torch.randn(4, 36, 3), torch.ones(4, 24, 24, dtype=torch.uint8))
    assert (to_pixels(lonely.score(torch.randn(2, 36, 3)), GRID, SIZE) == 1).all()


def test_strength_is_chosen_on_images_held_out():
    """Many features of pure noise, few images: a free model remembers them, a bound one generalises."""
    learned = masks(10, classes=2)
    signal = one_hot(learned, 2)[..., :1]
    noise = torch.randn(10, 36, 300, generator=torch.Generator().manual_seed(3))
    chosen = learn(LinearSegmentation(), torch.cat([signal, noise], 2), learned, 2).settings["C"]
    assert chosen < 1
    for wrong in ({"strengths": ()}, {"strengths": (0.0,)}):
        with pytest.raises(ValueError, match="strengths"):
            LinearSegmentation(**wrong)
