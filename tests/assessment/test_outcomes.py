"""What evaluators found is found again without being worked out again, and only where nothing has changed."""

import os
from dataclasses import replace

import numpy as np
import pytest

from openjepa.assessment import outcomes
from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.outcomes import remembering
from openjepa.evaluation.features import Features
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.retrieval import Retrieval
from openjepa.evaluation.suite import LAST, PIXELS, RANDOM, TARGET, Entry, judge, run_suite


def features(seed: int, count: int = 60) -> Features:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return Features(random.normal(size=(count, 5)) + labels[:, None], labels, "encoder")


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The evaluators that were really run."""
    run = []
    monkeypatch.setattr(outcomes, "judge", lambda e, *parts: run.append(e.name) or judge(e, *parts))
    return run


@pytest.fixture
def cache(tmp_path) -> FeatureCache:
    return FeatureCache(folder=tmp_path / "features")


@pytest.mark.parametrize("evaluator", [KNN(k=5), LinearProbe(), Retrieval()])
def test_what_was_found_is_found_again_to_the_last_bit(evaluator, cache, counted):
    train, test = features(0), features(1)
    first = remembering(cache)(evaluator, train, test)
    again = remembering(cache)(evaluator, train, test)
    assert counted == [evaluator.name]
    assert first.scores == again.scores == judge(evaluator, train, test).scores
    assert first.rows("a", "b") == again.rows("a", "b")
    assert first.differences(again) == first.differences(first)


def test_other_features_labels_or_settings_are_judged_anew(cache, counted):
    train, test = features(0), features(1)
    ask = remembering(cache)
    ask(KNN(k=5), train, test)
    ask(KNN(k=6), train, test)
    ask(KNN(k=5), replace(train, values=train.values + 1e-3), test)
    ask(KNN(k=5), train, replace(test, labels=test.labels[::-1]))
    assert len(counted) == 4
    ask(KNN(k=5), replace(train, name="another name"), test)
    assert len(counted) == 4


@pytest.mark.parametrize("size", [100, 0])
def test_a_damaged_result_is_worked_out_again(cache, counted, size):
    train, test = features(0), features(1)
    remembering(cache)(KNN(k=5), train, test)
    (kept,) = (cache.folder / "outcomes").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:size])
    assert remembering(cache)(KNN(k=5), train, test).scores == judge(KNN(k=5), train, test).scores
    assert len(counted) == 2
    remembering(cache)(KNN(k=5), train, test)
    assert len(counted) == 2


def test_the_oldest_results_go_first(cache, monkeypatch):
    monkeypatch.setattr(outcomes, "MOST", 3)
    mine = cache.folder / "outcomes" / "mine.npz"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    os.utime(mine, (0, 0))
    for seed in range(5):
        remembering(cache)(KNN(k=5), features(seed), features(9))
    assert len(list((cache.folder / "outcomes").glob("*.npz"))) == 3 + 1
    assert mine.read_bytes() == b"mine"


def test_a_comparison_judges_its_baselines_once(cache, counted):
    entries = [Entry(key="knn", evaluator=KNN(k=5))]
    same = {RANDOM: {LAST: (features(0), features(1))}, PIXELS: {LAST: (features(2), features(3))}}
    for seed in (4, 6):
        subjects = {TARGET: {LAST: (features(seed), features(seed + 1))}, **same}
        run_suite(subjects, entries, judged=remembering(cache))
    assert len(counted) == 4
