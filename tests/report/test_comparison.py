"""The page of a comparison calls better what its intervals call better, and names what is there."""

from typing import Any

import numpy as np
import pytest

from openjepa.comparing import summarise
from openjepa.evaluation.answers import packed
from openjepa.report.comparison import render
from openjepa.report.series import Line, mean_line

FACTS = {
    "data": {"name": "shapes", "labelled": True},
    "masks": {"context_tokens": 2},
    "grid": [2, 3],
    "parameters": {"encoder": 1200, "predictor": 300},
    "flops_per_image": {"step": 4e6},
    "epochs": 3.0,
}


def content(asked: int = 2, images: int = 0, worth: float = 1, **values: list[float]) -> dict[str, Any]:
    """A comparison of the named objectives, each with the k-NN accuracies of its finished seeds, of so many images."""
    runs = [_run(name, seed, value, images, worth) for name, each in values.items() for seed, value in enumerate(each)]
    request = {"objectives": list(values), "seeds": asked, "minutes": None, "flops": 2e11, "steps": None}
    return {
        "request": request | {"epochs": None},
        "command": "openjepa compare",
        "plans": {name: {"facts": FACTS, "experiment": {"recipe": "small"}} for name in values},
        "runs": runs,
        "summary": summarise(runs, list(values)),
    }


def _run(objective: str, seed: int, value: float, images: int, worth: float) -> dict[str, Any]:
    row = {"task": "classes", "features": "trained encoder", "evaluator": "k-NN", "metric": "accuracy", "value": value}
    if images:  # the objectives are right on images that have nothing to do with one another
        order = np.random.default_rng(list(map(ord, objective))).permutation(images)
        row |= {"answers": packed(order < round(value * images), worth)}
    curve = [{"seconds": 1.0 + seed, "flops": 1e11, "knn": 0.4}, {"seconds": 2.0 + seed, "flops": 2e11, "knn": value}]
    costs = {"steps": 20, "seconds": 2.0, "images_per_s": 100.0, "flops": 2e11, "peak_memory": None, "joules": None}
    return {"objective": objective, "seed": seed, "folder": objective, "curve": curve, "rows": [row]} | costs


def test_bold_is_what_is_clearly_above_every_other():
    apart = content(3, ijepa=[0.6, 0.61, 0.62], mae=[0.7, 0.71, 0.72], denoising=[0.8, 0.81, 0.82])
    assert "<b>81.0% ± 1.0</b>" in (page := render(apart))
    assert page.count("<b>7") == page.count("<b>6") == 0
    level = content(3, ijepa=[0.6, 0.61, 0.62], mae=[0.7, 0.71, 0.72], denoising=[0.70, 0.72, 0.74])
    assert "<b>7" not in render(level)  # the two best are apart from the first, not from one another


@pytest.mark.parametrize(("mae", "clear"), [([0.64, 0.65, 0.66], True), ([0.6, 0.64, 0.68], False)])
def test_bold_and_the_sentence_agree_and_the_interval_is_shown(mae, clear):
    page = render(content(3, ijepa=[0.6, 0.61, 0.62], mae=mae))
    assert ("<b>6" in page) is clear
    assert ("not clear" in page) is not clear
    low, high = (
        content(3, ijepa=[0.6, 0.61, 0.62], mae=mae)["summary"][0]["differences"]["mae"][x] for x in ("low", "high")
    )
    assert f"{100 * low:.1f} to {100 * high:.1f}".replace("-", "−") in page.split("Every measure")[1]


def test_what_is_clear_over_seeds_is_not_on_few_test_images():
    accuracies = {"ijepa": [0.6, 0.6, 0.61], "mae": [0.65, 0.66, 0.66], "denoising": [0.86, 0.87, 0.87]}
    few, many, seeds = (render(content(3, images, **accuracies)) for images in (100, 10_000, 0))
    assert "MAE is 5.3 points above I-JEPA (95% interval over seeds and the 100 test images −" in few
    assert "over seeds and the 10,000 test images +3." in many
    assert "over seeds alone" not in few.split("which is said", 1)[1]
    assert "over seeds alone +4." in seeds
    assert "4.0 to 6.6, over seeds alone" in seeds.split("which is said", 1)[1]
    plain, folded = (content(3, 100, worth, **accuracies)["summary"][0]["differences"]["mae"] for worth in (1, 2 / 3))
    assert folded["high"] - folded["low"] > 1.1 * (plain["high"] - plain["low"])
    clear = [page.split("By <b>k-NN")[1].split("</p>")[0].count("not clear") for page in (few, many, seeds)]
    assert clear == [1, 0, 0]
    assert all("<b>86.7%" in page for page in (few, many, seeds))


def test_bold_goes_by_images_for_every_pair_and_older_comparisons_by_seeds():
    accuracies = {"ijepa": [0.4, 0.4, 0.41], "mae": [0.8, 0.81, 0.81], "denoising": [0.86, 0.87, 0.87]}
    whole = content(3, 100, **accuracies)
    assert "<b>8" not in render(whole)  # clear against the first one, but not against the other
    for row in whole["summary"]:
        del row["pairs"]
        for each in row["differences"].values():
            del each["test_images"]
    old = render(whole)
    assert "<b>86.7%" in old
    assert "over seeds alone" in old


def test_a_comparison_that_is_not_whole_says_of_whom_it_speaks():
    page = render(content(2, ijepa=[0.6, 0.62], mae=[0.7]))
    assert "MAE, 1 of 2 seeds" in page
    assert "I-JEPA, 2 of 2" not in page
    assert "with one seed of MAE nothing can be said" in page
    assert "MAE has the MAE paper&#x27;s betas" in page
    assert "denoising" not in page
    assert "with equal care: those of I-JEPA by many trials" in page
    assert "and those of MAE by four learning rates." in page
    assert "with equal care" not in render(content(1, mae=[0.7]))
    assert "1 run is not finished; its numbers are missing here." in page
    assert "<b>7" not in page


def test_how_settings_were_chosen_is_told_of_the_recipe_of_which_it_is_known():
    own, large = (content(1, ijepa=[0.6], mae=[0.7]) for _ in range(2))
    own["request"]["experiment"] = {"method": "ijepa"}
    large["plans"]["mae"]["experiment"] = {"recipe": "standard"}
    for page in map(render, (own, large)):
        assert "Their settings were not chosen with equal care." in page
        assert "learning rates." not in page
    assert "are this project&#x27;s own, but for I-JEPA&#x27;s, of the experiment given." in render(own)
    assert "of the experiment given" not in render(large)


def test_operations_have_one_unit():
    page = render(content(1, ijepa=[0.6], mae=[0.7]))
    assert "0.200 TFLOP" in page
    assert "TFLOP of training" in page
    assert "GFLOP" not in page


def test_lines_begin_with_the_untrained_encoder_where_it_was_measured():
    measured = content(2, ijepa=[0.6, 0.62], mae=[0.7, 0.72])
    older = render(measured)
    assert "A random encoder and raw pixels were not measured so" in older
    assert "stroke-dasharray" not in older
    for run in measured["runs"]:
        run["untrained"] = {"knn": 0.25, "rankme": 3.0}
    page = render(measured)
    assert "They begin with the encoder before its first step" in page
    assert page.count("stroke-dasharray") == 2  # over time and over compute
    line = Line(objective="ijepa", x=np.array([1.0, 2.0]), y=np.array([0.4, 0.6]), before=0.25).whole()
    assert (line.x.tolist(), line.y.tolist()) == ([0.0, 1.0, 2.0], [0.25, 0.4, 0.6])


def test_the_mean_over_seeds_is_read_between_their_points():
    lines = [
        Line(objective="mae", x=np.array([0.0, 2.0, 4.0]) + shift, y=np.array([0.0, 0.2, 0.4])) for shift in (0, 1)
    ]
    mean = mean_line(lines)
    assert (mean.x[0], mean.x[-1]) == (1, 4)
    np.testing.assert_allclose(mean.y, 0.1 * (mean.x - 0.5))
