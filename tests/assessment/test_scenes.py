"""Scenes: judged by the evaluators of the suite, and their features computed once."""

from types import SimpleNamespace

import pytest
import torch

from openjepa.assessment import Tasks, extraction, judge
from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import panel_of
from openjepa.assessment.scenes import assess_scenes
from openjepa.cli.evaluation import _asked
from openjepa.data.augmentation import Preprocessing
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.evaluation.catalogue import choose, full, quick
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.suite import PIXELS, RANDOM, TARGET, Entry
from openjepa.pretrained import Pretrained

NEAREST = (Entry(key="knn", evaluator=KNN()),)


def ours(seed: int = 3) -> Pretrained:
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=3)
    preprocessing = Preprocessing(size=(16, 16), channels=1, mean=(0.5,), std=(0.25,))
    return Pretrained(Encoder(config, generator=torch.Generator().manual_seed(seed)), preprocessing)


def test_evaluators_of_whole_images_judge_scenes_and_the_bound_on_tokens_is_said(monkeypatch):
    monkeypatch.setattr(extraction, "TOKEN_BYTES", 150 * 2 * 16 * 24)
    entries = (*choose("full", ("attentive", "retrieval")), *NEAREST)
    tasks = Tasks(names=("scenes",), scene_count=(220, 200), entries=entries)
    found = judge(panel_of(ours()), None, entries=(), tasks=tasks)
    rows = [(row["task"], row["evaluator"], row["features"]) for row in found["rows"] if row["metric"] == "accuracy"]
    for task in ("count", "nearest distance", "position"):
        own = [(one, name) for where, one, name in rows if where == f"scenes: {task}"]
        assert own == [
            *(("attentive probe", name) for name in (TARGET, RANDOM, PIXELS)),
            *(("k-NN", name) for name in (TARGET, RANDOM, PIXELS)),
        ]
    assert {row["task"] for row in found["rows"] if row["evaluator"] == "retrieval"} == {task for task, _, _ in rows}
    images = {row["settings"]["images"] for row in found["rows"] if row["evaluator"] == "attentive probe"}
    assert max(images) == 150
    assert "scenes: count: Tokens of trained encoder are of 150 train images, to bound the memory." in found["notes"]


@pytest.mark.parametrize(
    ("suite", "only", "judged", "whole"),
    [
        ("quick", (), quick(), True),
        ("full", (), full(), True),
        ("quick", ("scenes",), quick(), False),
        ("full", ("scenes",), full(), False),
        ("quick", ("scenes", "knn"), choose("full", ("knn",)), True),
    ],
)
def test_the_suite_says_by_what_scenes_are_judged_and_only_chooses(suite, only, judged, whole):
    names, both, evaluators = _asked(SimpleNamespace(suite=suite, only=only, segmentation=None))
    assert ("scenes" in names) == ("scenes" in only or suite == "full")
    assert (evaluators("cpu"), both) == (judged, whole)


def test_a_second_run_takes_scenes_from_the_cache(tmp_path, monkeypatch):
    cache, seen = FeatureCache(folder=tmp_path / "features"), []
    compute = extraction._compute

    def counted(panel, part, missing, count):
        seen.append((part.name, len(part.indices), [kind.subject for kind in missing]))
        return compute(panel, part, missing, count)

    monkeypatch.setattr(extraction, "_compute", counted)

    def assessed(encoder: int = 3, cache: FeatureCache | None = cache, **more) -> dict:
        asked = {"train": 210, "test": 200} | more
        return assess_scenes(panel_of(ours(encoder)), entries=NEAREST, cache=cache, **asked) | {"seconds": 0}

    first, every = assessed(), [TARGET, RANDOM, PIXELS]
    assert seen == [("train", 210, every), ("test", 200, every)]
    assert assessed() == first
    assert len(seen) == 2
    assert assessed(cache=None) == first
    del seen[:]
    assessed(encoder=4)
    assert seen == [("train", 210, [TARGET]), ("test", 200, [TARGET])]
    del seen[:]
    assessed(train=211)
    assert seen == [("train", 211, every)]
    del seen[:]
    assert assessed(seed=1)["rows"] != first["rows"]
    assert [count for _, count, _ in seen] == [210, 200]
