"""Few images: each is asked about once, by what was learned on the others."""

import numpy as np
import pytest
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from openjepa.evaluation.attentive import AttentiveProbe
from openjepa.evaluation.catalogue import full
from openjepa.evaluation.features import Features, Part, Tokens
from openjepa.evaluation.folds import WORTH, by_class, in_folds
from openjepa.evaluation.intervals import equal_grades, paired_difference, wilson
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.lowshot import LowShot
from openjepa.evaluation.retrieval import Retrieval
from openjepa.evaluation.split import FOLDS, folds
from openjepa.evaluation.suite import Found, judge

LABELS = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [40, 31, 20]))


def features(labels: np.ndarray = LABELS, spread: float = 0.8) -> Features:
    values = np.eye(3)[labels] + spread * np.random.default_rng(2).normal(size=(len(labels), 3))
    return Features(values, labels, "own")


def test_answers_are_those_of_scikit_learns_cross_validation_on_the_same_folds():
    own = features()
    found = in_folds(judge)(KNN(k=1), own, own)
    unit = own.values / np.linalg.norm(own.values, axis=1, keepdims=True)
    theirs = cross_val_predict(KNeighborsClassifier(1), unit, own.labels, cv=PredefinedSplit(folds(own.labels)))
    assert np.array_equal(found.correct["accuracy"], theirs == own.labels)
    right = int((theirs == own.labels).sum())
    assert 40 < right < 85
    assert found.scores["accuracy"] == right / len(LABELS)
    bounds = found.scores["accuracy_low"], found.scores["accuracy_high"]
    assert bounds == equal_grades(right / len(LABELS), WORTH * len(LABELS))
    low, high = wilson(right, len(LABELS))
    assert bounds[1] - bounds[0] == pytest.approx(1.22 * (high - low), rel=0.02)
    guessed = in_folds(judge)(KNN(k=30, temperature=50.0), own, own)
    apart, plain = (
        found.differences(guessed)["accuracy"],
        paired_difference(*(one.correct["accuracy"] for one in (found, guessed))),
    )
    assert apart.value == pytest.approx(plain.value)
    assert apart.high - apart.low == pytest.approx(1.22 * (plain.high - plain.low), rel=0.05)
    assert found.settings == {"k": 1.0}


def asked(evaluator, train: Part, test: Part) -> list[tuple[Part, Part, Found]]:
    """What was asked of each fold, and found."""
    seen = []

    def watched(evaluator, train, test):
        seen.append((train, test, judge(evaluator, train, test)))
        return seen[-1][2]

    seen.append((train, test, in_folds(watched)(evaluator, train, test)))
    return seen


@pytest.mark.parametrize("entry", [one for one in full() if one.key != "attentive"], ids=lambda one: one.evaluator.name)
def test_every_evaluators_answers_come_back_in_the_images_order(entry):
    own = features()
    *each, (_, _, found) = asked(entry.evaluator, own, own)
    dealt = folds(own.labels)
    assert len(each) == FOLDS
    for fold, (train, test, part) in enumerate(each):
        assert np.array_equal(train.values, own.values[dealt != fold])
        assert np.array_equal(test.values, own.values[dealt == fold])
        for name, right in part.correct.items():
            assert np.array_equal(found.correct[name][dealt == fold], right)
        for name, grades in part.grades.items():
            assert np.array_equal(found.grades[name][:, dealt == fold], grades)
    assert set(found.scores) == set(each[0][2].scores)
    for name, value in found.settings.items():
        assert value in [part.settings[name] for _, _, part in each]
    for name, right in found.correct.items():
        assert found.scores[name] == pytest.approx(right.mean())
        assert found.scores[f"{name}_low"] < found.scores[name] < found.scores[f"{name}_high"]


def test_tokens_are_dealt_like_images():
    own = features()
    tokens = Tokens(np.repeat(own.values[:, None].astype(np.float16), 4, 1), own.labels, "own")
    found = in_folds(judge)(AttentiveProbe(epochs=2), tokens, tokens)
    assert len(found.correct["accuracy"]) == len(own)
    assert found.dimensions == 3


def test_the_smallest_set_that_can_be_judged():
    own = features(np.array([0, 1] * 5))
    for evaluator in (KNN(), Retrieval(), LowShot()):
        found = in_folds(judge)(evaluator, own, own)
        for right in (*found.correct.values(), *(grades.mean(0) for grades in found.grades.values())):
            assert len(right) == 10


def test_test_images_that_are_there_several_times_fall_into_the_fold_of_theirs():
    own = features()
    spoilt = Features(np.concatenate([own.values, own.values + 5]), np.tile(own.labels, 2), "own")
    for train, test, _ in asked(KNN(k=1), own, spoilt)[:-1]:
        known = set(map(bytes, train.values))
        assert not known & set(map(bytes, test.values))
        assert not known & set(map(bytes, (test.values - 5)[len(test) // 2 :]))
        assert len(test) == 2 * (len(own) - len(train))
    with pytest.raises(ValueError, match="of other labels"):
        by_class(own, features(LABELS[::-1].copy()))


def test_an_evaluator_without_answers_image_by_image_is_asked_once():
    class Alone:
        name = "alone"

        def __call__(self, train, test):
            return {"images": float(len(test)), "share": 0.5, "share_low": 0.4, "share_high": 0.6}

    found = in_folds(judge)(Alone(), features(), features())
    assert found.scores == {"images": 19.0, "share": 0.5, "share_low": 0.4, "share_high": 0.6}


def test_what_some_folds_alone_can_measure_is_left_out():
    labels = np.repeat([0, 1], [187, 30])  # 1% is two or three images of the 173 or 174 outside a fold
    values = np.random.default_rng(0).normal(size=(217, 4)) + 3 * labels[:, None]
    part = Features(values, labels, "few")
    alone = LowShot(shots=(1,), repeats=2)
    learn, _ = by_class(part, part)
    measured = {"1%" in str(alone.grade(part.take(np.flatnonzero(learn != fold)), part).measures) for fold in range(5)}
    assert measured == {True, False}
    found = in_folds(judge)(alone, part, part)
    assert set(found.grades) == {"accuracy, 1 per class"}
    assert not any("1%" in name for name in found.scores)
