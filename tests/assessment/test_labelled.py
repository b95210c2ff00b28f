"""How images were told apart, and what is said of it only where it is known."""

import numpy as np
import pytest
import torch

from openjepa.assessment import assess, extraction
from openjepa.assessment.labelled import assess_given
from openjepa.assessment.parts import HELD_OUT, IN_FOLDS, chosen_parts
from openjepa.assessment.precomputed import Given
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Splits
from openjepa.data.idx import ArraySource
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.evaluation.catalogue import choose, quick
from openjepa.evaluation.features import Features
from openjepa.pretrained import Pretrained

SEEN = "saw these images in training"


def source(labels: list[int] | None, seed: int = 0, classes: int = 4) -> ArraySource:
    """Grey images whose brightness is their class."""
    random = np.random.default_rng(seed)
    kinds = np.array(labels if labels is not None else [0] * 30)
    images = random.normal(40 + 50 * kinds[:, None, None, None], 15, (len(kinds), 16, 16, 1))
    numbers = None if labels is None else kinds
    return ArraySource("greys", images.clip(0, 255).astype(np.uint8), numbers, tuple("abcdefgh"[:classes]))


def ours() -> Pretrained:
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=3)
    preprocessing = Preprocessing(size=(16, 16), channels=1, mean=(0.5,), std=(0.25,))
    return Pretrained(Encoder(config, generator=torch.Generator().manual_seed(3)), preprocessing)


@pytest.mark.parametrize(("trained_on", "known"), [("own", True), ("", False), ("another", False)])
def test_that_the_encoder_saw_the_images_is_said_only_where_it_is_known(trained_on, known):
    train = source([0, 1, 2] * 20)
    fingerprint = train.fingerprint if trained_on == "own" else trained_on
    splits = Splits(train=train, test=None, sentence="")
    for folded, begin in ((False, HELD_OUT), (True, IN_FOLDS)):
        sentence = chosen_parts(splits, 300, folded=folded, trained_on=fingerprint).sentence
        assert sentence.startswith(begin)
        assert (SEEN in sentence) == known


def test_of_a_test_part_of_its_own_nothing_is_said_that_holds_of_the_train_part():
    train = source([0, 1, 2] * 20)
    splits = Splits(train=train, test=source([0, 1, 2] * 5, 1), sentence="Two parts.")
    parts = chosen_parts(splits, 300, folded=True, trained_on=train.fingerprint)
    assert (parts.sentence, parts.folded) == ("Two parts.", False)


def test_a_test_part_without_labels_is_not_passed_over_in_silence():
    train = source([0, 1, 2] * 20)
    splits = Splits(train=train, test=source(None), sentence="Two parts.")
    parts = chosen_parts(splits, 100, folded=True)  # 60 are more than the 25 that may be tested on
    assert parts.sentence.startswith("Two parts. But the test images have no labels")
    assert HELD_OUT in parts.sentence
    assert parts.held.source is train
    assert not set(parts.learn.indices) & set(parts.held.indices)
    assert SEEN not in parts.sentence
    assert SEEN in chosen_parts(splits, 100, trained_on=train.fingerprint).sentence


@pytest.mark.parametrize(
    ("learn", "held", "chosen_among", "tested"),
    [
        ([0, 1, 2] * 20, [0, 1, 2] * 5, 3, 3),  # four have names
        ([0, 1, 2] * 20 + [3], [0, 1, 2, 3] * 5, 3, 3),  # of one there is nothing to learn
        ([0, 1, 2, 3] * 15, [0, 1, 2] * 10, 4, 3),  # three are asked about
        ([0, 1, 2, 3] * 15, [1] * 10, 4, 1),
        (list(range(8)) * 8, [0, 1] * 6, 8, 2),
    ],
)
def test_the_classes_counted_are_those_among_which_an_evaluator_chooses(learn, held, chosen_among, tested):
    splits = Splits(train=source(learn, classes=8), test=source(held, 1, 8), sentence="Two parts.")
    found = assess(ours(), splits)
    assert found["classes"] == chosen_among
    notes = " ".join(found["notes"])
    fewer = f"Of the {chosen_among} classes learned {tested} occur among the test images."
    assert (fewer in notes) == (tested < chosen_among)
    # Those asked about are even, also where to name always one of them is better than guessing among those learned.
    assert "uneven" not in notes
    assert not any(row["metric"] == "balanced accuracy" for row in found["rows"])
    best = max(held.count(number) for number in set(held)) / len(held)
    assert found.get("chance") == ({"classes": best} if tested < chosen_among - 1 else None)
    assert ("To name always the commonest would be right for" in notes) == ("chance" in found)


@pytest.mark.parametrize(
    ("labels", "noted"),
    [([0] * 95 + [1] * 5, True), ([0] * 55 + [1] * 45, False), ([0] * 60 + [1, 2] * 20, True), ([0, 1, 2] * 30, False)],
)
def test_that_one_class_is_far_the_commonest_is_said_of_images_and_of_features(labels, noted):
    splits = Splits(train=source(labels), test=source(labels, 1), sentence="Two parts.")
    found = assess(ours(), splits)
    features = Features(np.random.default_rng(0).normal(size=(len(labels), 4)), np.array(labels), "given")
    both = Given(train=features, test=features, sentence="", images=(len(labels),), rows=None)
    given = assess_given(both, None, entries=quick())
    for record in (found, given):
        told = [note for note in record["notes"] if "uneven" in note]
        assert len(told) == noted
        assert all(f"would be right for {labels.count(0)}.0% of" in note for note in told)
        assert record.get("chance") == ({"classes": labels.count(0) / len(labels)} if noted else None)
        balanced = [row for row in record["rows"] if row["metric"] == "balanced accuracy"]
        subjects = dict.fromkeys(row["features"] for row in record["rows"])
        evaluators = dict.fromkeys(row["evaluator"] for row in record["rows"] if noted)
        assert [(row["evaluator"], row["features"]) for row in balanced] == [
            (evaluator, name) for evaluator in evaluators for name in subjects
        ]
        assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in balanced)
        apart = [row for row in record["differences"] if row["metric"] == "balanced accuracy"]
        assert len(apart) == len(balanced) - len(evaluators)  # of the encoder and each baseline
        values = {(row["evaluator"], row["features"]): row["value"] for row in balanced}
        for one in apart:
            mine, other = (values[one["evaluator"], one[name]] for name in ("features", "against"))
            assert one["value"] == pytest.approx(mine - other)


@pytest.mark.parametrize("parts", ["two", "folds"])
def test_copies_of_images_learned_on_are_told(parts):
    """Of two parts three images are in both; in folds three are there twice."""
    train, test = source([0, 1, 2] * 20), source([0, 1, 2] * 5, 1)
    same = np.concatenate([train.images[:3], test.images[3:]])
    if parts == "two":
        splits = Splits(train=train, test=ArraySource("t", same, test.labels, test.classes), sentence="Two parts.")
    else:
        whole = np.concatenate([train.images, same]), np.concatenate([train.labels, test.labels])
        splits = Splits(train=ArraySource("greys", *whole, train.classes), test=None, sentence="")
    counted = "3 of 15" if parts == "two" else "6 of 75"
    notes = assess(ours(), splits)["notes"]
    assert [note for note in notes if "look just like" in note] == [
        f"{counted} test images look just like others that were learned on (at 16x16 px): if they are copies, "
        "accuracies are too high, so remove them."
    ]
    clean = Splits(train=train, test=test, sentence="Two parts.")
    assert not any("look just like" in note for note in assess(ours(), clean)["notes"])


def test_test_images_of_a_class_of_which_no_train_image_can_be_read_are_left_out(damaged):
    splits = Splits(train=source([0, 1, 2] * 20), test=source([0, 1, 2] * 5, 1), sentence="Two parts.")
    splits.train.name = "train"
    with damaged(lambda source, index: source.name == "train" and source.labels[index] == 2):
        found = assess(ours(), splits, bad_images=0.5)
    assert (found["train_images"], found["test_images"], found["classes"]) == (40, 10, 2)
    assert "Not judged: 1 of 3 classes, of too few readable images (c)." in found["notes"]
    assert "20 of 75 images could not be read (first: train, image 2: is damaged)." in found["notes"]


@pytest.mark.parametrize(
    ("labels", "begin", "tested"),
    [
        ([0] * 5 + [1] * 5, IN_FOLDS, 10),
        ([0] * 6 + [1] * 4 + [2] * 2, IN_FOLDS, 10),
        # Eight of ten images are of classes with two outside every fold: too few for folds, and judged all the same.
        ([0] * 4 + [1] * 4 + [2] * 2, HELD_OUT, 2),
        ([0] * 5 + [1] * 4, HELD_OUT, 2),
    ],
)
def test_a_handful_is_judged_in_folds_or_else_by_a_fifth(labels, begin, tested):
    found = assess(ours(), Splits(train=source(labels), test=None, sentence=""), entries=choose("full", ("retrieval",)))
    assert found["split"].startswith(begin)
    assert (found["test_images"], found["classes"]) == (tested, 2)
    assert ("folds" in found) == (begin == IN_FOLDS)
    assert ("Not judged: 1 of 3 classes" in found["split"]) == (2 in labels)


@pytest.mark.parametrize(("tokens_of", "judged"), [(30, True), (6, False)])
def test_tokens_of_fewer_images_are_dealt_for_themselves(tokens_of, judged, monkeypatch):
    monkeypatch.setattr(extraction, "TOKEN_BYTES", 2 * 16 * 24 * tokens_of)
    splits = Splits(train=source([0, 1, 2] * 20), test=None, sentence="")
    found = assess(ours(), splits, entries=choose("full", ("attentive", "knn")))
    notes = " ".join(found["notes"])
    assert f"Tokens of trained encoder are of {tokens_of} images, to bound the memory." in notes
    assert ("They are not judged: " in notes) != judged
    assert any(row["evaluator"] == "attentive probe" for row in found["rows"]) == judged
    assert found["test_images"] == 60
