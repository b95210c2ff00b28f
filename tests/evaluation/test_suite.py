import json

import numpy as np
import pytest

from openjepa.evaluation.features import Features
from openjepa.evaluation.intervals import Difference, wilson
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.suite import (
    LAST,
    LAST_FOUR,
    PIXELS,
    RANDOM,
    TARGET,
    Comparison,
    Entry,
    Evaluation,
    evaluate,
    judge,
    run_suite,
)


def parts(signal: float, seed: int, width: int = 8) -> tuple[Features, Features]:
    """Features whose classes stand apart by ``signal``; the labels are the same for every seed."""
    labels = np.random.default_rng(0).integers(3, size=900)
    generator = np.random.default_rng(seed)
    values = signal * np.eye(3, width)[labels] + generator.normal(size=(900, width))
    return Features(values[:600], labels[:600], "any"), Features(values[600:], labels[600:], "any")


def table(target: float, random: float, pixels: float) -> dict[str, tuple[Features, Features]]:
    return {TARGET: parts(target, 1), RANDOM: parts(random, 2), PIXELS: parts(pixels, 3, 20)}


def test_rows_keep_the_format_of_the_run_folder():
    found = evaluate(table(3, 1, 2))
    assert [(row["features"], row["evaluator"]) for row in found.rows] == [
        (name, evaluator) for evaluator in ("k-NN", "linear probe") for name in (TARGET, RANDOM, PIXELS)
    ]
    for row in found.rows:
        assert row["metric"] == "accuracy"
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["dimensions"] == (20 if row["features"] == PIXELS else 8)
        assert (row["low"], row["high"]) == wilson(round(300 * row["value"]), 300)
        assert set(row["settings"]) == ({"k"} if row["evaluator"] == "k-NN" else {"C"})
    assert set(found.spectrum) == {TARGET, RANDOM}
    assert 1 < found.spectrum[TARGET]["rankme"] <= 8.01
    assert json.loads(json.dumps(found.record())) == found.record()


def test_a_good_encoder_is_said_to_be_above():
    found = evaluate(table(4, 0, 0))
    said = found.summary()
    assert said.count("points above a random encoder (95% interval") == 2
    assert said.count("points above raw pixels (95% interval") == 2
    assert found.record()["summary"] == said


def test_a_poor_encoder_is_said_to_be_below():
    said = evaluate(table(0.5, 3, 3), [KNN()]).sentence("k-NN")
    assert "points below a random encoder" in said
    assert "points below raw pixels" in said
    assert "above" not in said


def test_equal_encoders_are_not_told_apart():
    same = parts(1, 1)
    said = evaluate({TARGET: same, RANDOM: same, PIXELS: same}, [LinearProbe()]).sentence("linear probe")
    assert "no clear difference from a random encoder (+0.0 points" in said
    assert "no clear difference from raw pixels" in said


def test_the_sentence_gives_the_numbers_in_the_readers_direction():
    row = {"features": TARGET, "evaluator": "k-NN", "value": 0.784}
    above = Difference(value=0.071, low=0.05, high=0.092)
    below = Difference(value=-0.02, low=-0.036, high=-0.004)
    found = Evaluation(
        rows=[row],
        comparisons=tuple(
            Comparison(features=TARGET, against=name, evaluator="k-NN", difference=difference)
            for name, difference in ((RANDOM, above), (PIXELS, below))
        ),
        spectrum={},
    )
    assert found.sentence("k-NN") == (
        "By k-NN the trained encoder is right for 78.4% of the test images: 7.1 points above a random encoder "
        "(95% interval 5.0 to 9.2) and 2.0 points below raw pixels (95% interval 0.4 to 3.6)."
    )


def test_an_evaluator_with_other_measures_fits_the_same_rows():
    class Retrieval:
        name = "retrieval"

        def __call__(self, train: Features, test: Features) -> dict[str, float]:
            return {"mAP": 0.5, "mAP_low": 0.4, "mAP_high": 0.6, "mAP at 10": 0.7, "mAP at 10_low": 0.6,
                    "mAP at 10_high": 0.8, "depth": 100.0}  # fmt: skip

    found = evaluate(table(1, 1, 1), [Retrieval()])
    assert [row["metric"] for row in found.rows] == ["mAP", "mAP at 10"] * 3
    assert found.rows[0]["settings"] == {"depth": 100.0}
    assert found.summary() == ""  # it does not answer image by image, so nothing is compared


def test_the_last_four_blocks_stand_beside_the_pixels_which_are_judged_once():
    asked: list[tuple[str, str]] = []

    def judged(evaluator, train, test):
        asked.append((evaluator.name, train.name))
        return judge(evaluator, train, test)

    entries = [Entry(key="l", evaluator=LinearProbe()), Entry(key="l", evaluator=LinearProbe(name="f"), view=LAST_FOUR)]
    blocks = {name: {LAST: parts(1, 1), LAST_FOUR: parts(2, 1, width=32)} for name in (TARGET, RANDOM)}
    found = run_suite({**blocks, PIXELS: {LAST: parts(1, 2)}}, entries, judged=judged)
    probe = "linear probe"
    assert asked == [(probe, TARGET), (probe, RANDOM), (probe, PIXELS), ("f", TARGET), ("f", RANDOM)]
    rows = {(row["evaluator"], row["features"]): row for row in found.rows}
    assert rows["f", PIXELS] == rows[probe, PIXELS] | {"evaluator": "f"}
    assert (rows["f", TARGET]["dimensions"], rows[probe, TARGET]["dimensions"]) == (32, 8)
    # An encoder without blocks leaves the pixels alone, so they are not told either.
    plain = {name: {LAST: views[LAST]} for name, views in blocks.items()}
    found = run_suite({**plain, PIXELS: {LAST: parts(1, 2)}}, entries)
    assert {row["evaluator"] for row in found.rows} == {probe}


def test_the_baselines_stand_always_beside():
    with pytest.raises(ValueError, match="random encoder"):
        evaluate({TARGET: parts(1, 1), PIXELS: parts(1, 2)})
    with pytest.raises(ValueError, match="an encoder and both"):
        evaluate({RANDOM: parts(1, 1), PIXELS: parts(1, 2)})


def test_features_of_other_images_are_refused():
    train, test = parts(1, 1)
    other = Features(test.values, np.roll(test.labels, 1), "any")
    with pytest.raises(ValueError, match="'raw pixels' are of other images"):
        evaluate({TARGET: (train, test), RANDOM: (train, test), PIXELS: (train, other)})


def test_two_evaluators_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"2 evaluators are called 'k-NN': give each a name of its own"):
        evaluate(table(1, 1, 1), (KNN(k=1), KNN(k=40)))
    assert len(evaluate(table(1, 1, 1), (KNN(k=1, name="nearest"), KNN(k=40))).rows) == 6
