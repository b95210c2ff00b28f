"""Spoilt images, and what is left of an accuracy on them."""

import numpy as np
import pytest
import torch

from openjepa.assessment import assess, extraction, outcomes
from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import panel_of
from openjepa.assessment.extraction import Chosen
from openjepa.assessment.robustness import (
    CORRUPTIONS,
    Corruption,
    Spoilt,
    _summary,
    assess_robustness,
    correct_by_part,
    white_of,
)
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Splits
from openjepa.data.idx import ArraySource
from openjepa.data.sources import open_data
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.evaluation.answers import shares
from openjepa.evaluation.features import Features
from openjepa.evaluation.intervals import Difference, paired_difference
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.pretrained import Pretrained


def test_noise_has_its_spread_and_is_each_images_own():
    noise = Corruption(kind="noise", amount=0.1)
    grey = torch.full((40, 1, 28, 28), 0.5)
    spoilt = noise(grey, np.arange(40))
    assert (spoilt - grey).std().item() == pytest.approx(0.1, rel=0.02)
    torch.testing.assert_close(noise(grey[:7], np.arange(13, 20)), spoilt[13:20])
    assert not torch.equal(spoilt[0], spoilt[1])


def test_blur_keeps_the_mean_and_takes_the_detail():
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    weak, strong = (Corruption(kind="blur", amount=amount)(image, np.arange(2)) for amount in (0.03, 0.1))
    assert strong.var() < 0.5 * weak.var() < 0.5 * image.var()
    assert strong.mean().item() == pytest.approx(image.mean().item(), abs=0.01)


def source(count: int, name: str = "greys") -> ArraySource:
    """Three classes told apart by their brightness."""
    labels = np.arange(count) % 3
    images = np.random.default_rng(count).normal(50 + 80 * labels[:, None, None, None], 25, (count, 16, 16, 1))
    return ArraySource(name, images.clip(0, 255).astype(np.uint8), labels, ("a", "b", "c"))


def ours(seed: int = 3) -> Pretrained:
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=3)
    preprocessing = Preprocessing(size=(16, 16), channels=1, mean=(0.5,), std=(0.25,))
    return Pretrained(Encoder(config, generator=torch.Generator().manual_seed(seed)), preprocessing)


def test_every_image_is_spoilt_by_its_place_whatever_is_asked_for_with_it(damaged):
    """Eight bits become shares of the full range, and what cannot be read does not shift the others' noise."""
    clean = Chosen(source=source(30), indices=np.arange(3, 30), name="test")
    spoilt = Spoilt.by(CORRUPTIONS[0], clean)

    def images(indices: np.ndarray) -> torch.Tensor:
        return torch.cat([batch.images for batch in spoilt.batches(indices, ours().preprocessing)])

    every = images(clean.indices)
    assert every.dtype == torch.float32
    assert 0 == every.min() < every.max() == 1
    original = torch.from_numpy(clean.source.images[3:].transpose(0, 3, 1, 2)) / 255
    torch.testing.assert_close(every, CORRUPTIONS[0](original, np.arange(27)))
    torch.testing.assert_close(images(clean.indices[5:9]), every[5:9])
    with damaged(lambda _, index: index == 7):
        torch.testing.assert_close(images(clean.indices), torch.cat([every[:4], every[5:]]))


def test_noise_is_in_proportion_to_what_twelve_bits_in_sixteen_reach(tmp_path):
    dark = np.random.default_rng(0).normal(1000, 250, (8, 16, 16, 1)).clip(0).astype(np.uint16)
    for number, image in enumerate(dark):
        np.save(tmp_path / f"{number}.npy", image)
    clean = Chosen(source=open_data(str(tmp_path)).train, indices=np.arange(8), name="test")
    preparation = ours().preprocessing  # whose mean and spread are of other images
    white = white_of(clean.source, preparation)
    assert white == pytest.approx(2000 / 65535, rel=0.05)
    assert white_of(source(8), preparation) == 1
    spoilt = Spoilt.by(CORRUPTIONS[0], clean, white)
    assert spoilt.content != Spoilt.by(CORRUPTIONS[0], clean).content
    (batch,) = spoilt.batches(clean.indices, preparation)
    noise = batch.images - torch.from_numpy(dark.astype(np.float32).transpose(0, 3, 1, 2)) / 65535
    assert noise.std().item() == pytest.approx(0.1 * 2000 / 65535, rel=0.05)


def test_a_second_run_takes_all_from_the_cache_and_says_the_same(tmp_path, monkeypatch):
    cache, seen, judged = FeatureCache(folder=tmp_path / "features"), [], []
    compute, judge = extraction._compute, outcomes.judge

    def counted(panel, part, missing, count):
        seen.append((part.name, sorted(kind.subject for kind in missing)))
        return compute(panel, part, missing, count)

    monkeypatch.setattr(extraction, "_compute", counted)
    monkeypatch.setattr(outcomes, "judge", lambda *given: judged.append(given[0].name) or judge(*given))
    splits = Splits(train=source(60), test=source(30), sentence="Two parts.")

    def assessed(cache: FeatureCache | None, kind="noise", amount=0.1, seed=3) -> dict:
        found = assess_robustness(
            panel_of(ours(seed)), splits, corruptions=[Corruption(kind=kind, amount=amount)], cache=cache
        )
        return found | {"seconds": 0}

    first = assessed(cache)
    assert [part for part, _ in seen] == ["train", "test", "test, noise 10%"]
    assert assessed(cache) == first
    assert (len(seen), len(judged)) == (3, 2 * 3), "nothing was computed or judged again"
    assert assessed(None) == first
    del seen[:]
    every = ["random encoder", "raw pixels", "trained encoder"]
    assessed(cache, amount=0.2)
    assessed(cache, kind="blur")
    assert seen == [("test, noise 20%", every), ("test, blur 10%", every)]
    del seen[:]
    assessed(cache, seed=4)
    assert seen == [(part, ["trained encoder"]) for part in ("train", "test", "test, noise 10%")]
    # Clean images are those that whole images are judged by.
    del seen[:]
    assess(ours(), splits, cache=cache)
    assert all(len(kinds) == 2 for _, kinds in seen), "the last four blocks, and not the last layer again"
    # Of several losses the largest is told, with the interval that holds for all of them.
    noisy, lost = assessed(cache, amount=0.8), list[Difference]()
    for name in ("k-NN", "linear probe"):
        own = [row for row in noisy["rows"] if (row["evaluator"], row["features"]) == (name, "trained encoder")]
        before, after = (shares(row["answers"]) > 0.5 for row in own)
        lost.append(paired_difference(before, after, among=2))
    worst = max(lost, key=lambda one: one.value)
    assert f"(95% interval {100 * worst.low:.1f} to {100 * worst.high:.1f}, of all 2 losses" in noisy["summary"]


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


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (-0.1, "loses nothing"),
        (
            0.1,
            "loses most with noise 10%: 10.0 points on the k-NN (95% interval 4.0 to 16.0, of all 2 losses at once).",
        ),
    ],
)
def test_what_is_lost_is_lost_on_spoilt_images(lost, said):
    found = {"noise 10%": (lost, lost - 0.06, lost + 0.06), "blur 4%": (-0.2, -0.26, -0.14)}
    found = {name: Difference(value=value, low=low, high=high) for name, (value, low, high) in found.items()}
    assert said in _summary({(name, "k-NN"): value for name, value in found.items()}, "e")
