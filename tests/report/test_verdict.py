"""The headline and the answers say what the numbers say, in every case that numbers can make."""

import pytest

from openjepa.report.evaluation import evaluation_section
from openjepa.report.run_folder import read_run
from openjepa.report.verdict import Score, compare, judge
from openjepa.training.step import TrainingConfig
from openjepa.watching import affordable


def answers(parts) -> dict[str, tuple[str, str]]:
    return {answer.question: (answer.answer, answer.because) for answer in judge(read_run(parts.write())).answers}


@pytest.mark.parametrize(
    ("numbers", "half", "headline", "learned", "beside_pixels"),
    [
        ((0.8, 0.6, 0.7), 0.01, "Training helped:", "Yes", "ahead of them on k-NN and the linear probe"),
        ((0.6, 0.6, 0.6), 0.01, "No gain from training is shown:", "Not shown", "not clearly apart from them"),
        ((0.62, 0.6, 0.7), 0.02, "No gain from training is shown:", "Not shown", "behind them"),
        ((0.5, 0.6, 0.7), 0.01, "Training made the features worse:", "No", "behind them on k-NN and the linear probe"),
    ],
)
def test_headline(parts, numbers, half, headline, learned, beside_pixels):
    parts.score(*numbers, half=half)
    verdict = judge(read_run(parts.write()))
    assert verdict.headline.startswith(headline)
    assert f"k-NN {100 * numbers[0]:.1f}% against {100 * numbers[1]:.1f}%: " in verdict.answers[0].because
    assert verdict.answers[0].answer == learned
    assert ("other images to learn on, are not in the interval" in verdict.answers[0].because) == (
        learned != "Not shown"
    )
    collapse = next(one for one in verdict.answers if one.question == "Has it collapsed?")
    if headline.startswith("Training made"):
        assert (collapse.answer, collapse.standing) == ("The watch saw none", "mixed")
        assert collapse.because.endswith("Yet on k-NN and the linear probe the features are below a random encoder's.")
    else:
        assert (collapse.answer, collapse.standing) == ("No sign of it", "good")
    assert beside_pixels in verdict.qualification


def test_the_whole_sentence(parts):
    assert judge(read_run(parts.write())).headline == (
        "Training helped: the encoder is ahead of a random one of its shape on k-NN and the linear probe."
    )


def test_ahead_on_one_evaluator_only(parts):
    for row in parts.evaluation["rows"][3:]:
        row |= {"value": 0.7, "low": 0.69, "high": 0.71}
    verdict = judge(read_run(parts.write()))
    assert verdict.headline.startswith("Training helped in part: ")
    assert verdict.answers[0].answer == "In part"
    assert "ahead of them on k-NN and not clearly apart from them on the linear probe" in verdict.qualification


def test_behind_on_one_evaluator_and_level_on_the_other_is_no_gain(parts):
    parts.score(0.5, 0.6, 0.7)
    for row in parts.evaluation["rows"][3:]:
        row |= {"value": 0.7, "low": 0.69, "high": 0.71}
    verdict = judge(read_run(parts.write()))
    assert verdict.headline.startswith("No gain from training is shown")
    assert verdict.answers[0].answer == "No"
    assert "something against it" in verdict.answers[0].because
    collapse = next(one for one in verdict.answers if one.question == "Has it collapsed?")
    assert (collapse.answer, collapse.standing) == ("The watch saw none", "mixed")
    assert collapse.because.endswith("Yet on k-NN the features are below a random encoder's.")


@pytest.mark.parametrize(
    ("low", "high", "headline", "answer"),
    [
        (0.01, 0.03, "Training helped:", "Yes"),
        (-0.03, -0.01, "Training made the features worse:", "No"),
        (-0.01, 0.03, "No gain from training is shown:", "Not shown"),
    ],
)
def test_a_measured_difference_decides_where_the_intervals_overlap(parts, low, high, headline, answer):
    parts.score(0.62, 0.6, 0.7, half=0.02)
    difference = {"features": "trained encoder", "against": "random encoder", "value": 0.02, "low": low, "high": high}
    parts.evaluation["differences"] = [difference | {"evaluator": name} for name in ("k-NN", "linear probe")]
    verdict = judge(read_run(parts.write()))
    assert verdict.headline.startswith(headline)
    assert verdict.answers[0].answer == answer
    told = f"k-NN 62.0% against 60.0%: +2.0 points ({100 * low:.1f} to 3.0), "
    assert (told.replace("-1.0", "−1.0") in verdict.answers[0].because) or high < 0


def test_the_gap_of_raw_pixels_is_the_encoders_own_paired_difference_from_them(parts):
    """Their own intervals overlap: by these it would not be clear."""
    parts.score(0.72, 0.6, 0.7, half=0.02)
    difference = {"features": "trained encoder", "against": "raw pixels", "value": 0.02, "low": 0.012, "high": 0.027}
    parts.evaluation["differences"] = [difference | {"evaluator": name} for name in ("k-NN", "linear probe")]
    page = evaluation_section(read_run(parts.write()))
    assert page.count("encoder <b>+2.0 points</b><br> 1.2 to 2.7<") == 2
    assert page.count("encoder <b>+12.0 points</b><br> <") == 2  # by their own intervals: no interval of the difference
    assert "not clear" not in page


def test_the_interval_of_a_difference_stands_in_the_tables(parts):
    rows = [row | {"evaluator": "linear probe, last four blocks"} for row in parts.evaluation["rows"][:3]]
    spoilt = [row | {"task": f"robustness: {how}"} for how in ("clean", "noise 10%") for row in rows]
    parts.evaluation["rows"] += rows + spoilt
    named = {"features": "trained encoder", "evaluator": "linear probe, last four blocks"}
    parts.evaluation["differences"] = [
        named | {"against": "random encoder", "value": 0.2, "low": 0.15, "high": 0.25},
        named | {"against": "raw pixels", "value": 0.01, "low": -0.01, "high": 0.03},
    ]
    page = evaluation_section(read_run(parts.write()))
    assert "+20.0 ↑<small>15.0 to 25.0</small>" in page
    assert "+1.0<small>−1.0 to 3.0</small>" in page
    assert page.count("<h3>robustness</h3>") == page.count("<td>noise 10%</td>") == page.count("<td>clean</td>") == 1


def test_an_arrow_is_by_the_interval_of_the_difference_alone(parts):
    parts.evaluation["rows"] += [row | {"metric": "balanced accuracy"} for row in parts.evaluation["rows"][:3]]
    page = evaluation_section(read_run(parts.write()))
    assert page.count("<td>balanced accuracy</td>") == 1
    assert not {"↑", "↓"} & set(page)


def test_without_the_random_encoder_nothing_is_called_learning(parts):
    parts.evaluation["rows"] = [row for row in parts.evaluation["rows"] if row["features"] != "random encoder"]
    verdict = judge(read_run(parts.write()))
    assert "does not show learning" in verdict.headline
    assert verdict.answers[0].answer == "Not measured yet"


def test_without_intervals_nothing_is_called_above():
    def score(value, low, high):
        return Score(features="f", evaluator="e", metric="accuracy", value=value, low=low, high=high, dimensions=None)

    assert compare(score(0.9, None, None), score(0.1, 0.0, 0.2)) == "level"
    assert compare(score(0.9, 0.8, 1.0), score(0.1, 0.0, 0.2)) == "above"
    assert compare(score(0.1, 0.0, 0.2), score(0.9, 0.8, 1.0)) == "below"
    assert compare(score(0.2, 0.1, 0.3), score(0.4, 0.3, 0.5)) == "level"


@pytest.mark.parametrize(
    ("rank", "spread", "answer"),
    [
        (3.5, 0.4, "No sign of it"),
        (1.2, 0.4, "Yes"),
        (3.5, 0.001, "Yes"),
        (None, 0.001, "Yes"),
        (None, None, "Not measured yet"),
        (None, 0.4, "Not measured yet"),
    ],
)
def test_collapse(parts, rank, spread, answer):
    for row in parts.metrics:
        row |= {"rankme": rank, "target_std": spread}
    found = next(one for one in judge(read_run(parts.write())).answers if one.question == "Has it collapsed?")
    assert found.answer == answer
    assert (found.standing == "unknown") is (answer == "Not measured yet")


UNTRAINED = {"rankme": 9.4, "alpha_req": 3.06, "features_over_images": 0.6, "features_over_positions": 0.4}
# RankMe and alpha-ReQ at each look, as of the known pair in benchmarks/collapse: one sinks, one climbs out of the dip.
SINKS = ((7.0, 3.1), (6.0, 3.2), (4.8, 3.3), (4.6, 3.34))
CLIMBS = ((7.0, 3.3), (4.6, 3.9), (4.4, 3.95), (5.0, 3.6), (6.0, 3.3), (9.0, 3.0), (12.0, 2.8))
GROWS = ((10.0, 2.9), (12.0, 2.7), (15.0, 2.5))


def looks(parts, path, images=0.6, losses=0.03) -> None:
    """A log of looks ten steps apart, each with RankMe and alpha-ReQ of ``path``; the loss falls to ``losses``, and
    features differ by image as much as ``images``, by position 0.4."""
    before = {f"untrained_{name}": value for name, value in UNTRAINED.items()}
    parts.metrics = [{"step": 0, "loss": 0.2} | before]
    spread = {"target_std": 0.4, "features_over_positions": 0.4, "target_over_positions": 0.4}
    for number, (rank, alpha) in enumerate(path, 1):
        look = {"step": 10 * number - 1, "loss": losses, "rankme": rank, "alpha_req": alpha} | spread
        parts.metrics.append(look | {"features_over_images": images, "target_over_images": images})
    parts.plan["data"]["images"] = 5000
    parts.experiment["training"] = {"steps": 3000, "batch": 64}
    for row in parts.evaluation["rows"]:
        row["dimensions"] = 192


def told(parts) -> tuple[str, str, str]:
    """Answer, what it rests on and its standing."""
    (answer,) = (one for one in judge(read_run(parts.write())).answers if one.question == "Has it collapsed?")
    return answer.answer, answer.because, answer.standing


def test_a_collapse_that_the_watch_sees_is_called_one(parts):
    looks(parts, SINKS, losses=0.003)
    parts.score(0.268, 0.29, 0.7)
    answer, because, standing = told(parts)
    assert (answer, standing) == ("Yes", "bad")
    assert "RankMe 4.6 after 9.4, alpha-ReQ 3.34 after 3.06, since step 30." in because


def test_features_that_hold_the_position_alone_are_a_collapse(parts):
    looks(parts, [(9.0, 3.0)] * 3, images=0.01)
    parts.score(0.268, 0.29, 0.7)
    answer, because, _ = told(parts)
    assert answer == "Yes"
    assert "differ by position but hardly by image: 2.4% of their variance is over images" in because


def test_an_evaluation_above_the_random_encoder_speaks_against_an_alarm(parts):
    looks(parts, SINKS)
    answer, because, standing = told(parts)
    assert (answer, standing) == ("Signs of it", "mixed")
    assert because.endswith(" Yet on k-NN and the linear probe the encoder is above a random one.")


def test_a_healthy_run_shows_no_sign_of_collapse(parts):
    looks(parts, GROWS)
    assert told(parts)[0] == "No, but narrow"
    parts.path = parts.path.with_name("wide")
    looks(parts, [(2 * rank, alpha) for rank, alpha in GROWS])
    assert told(parts) == ("No sign of it", "RankMe 30.0 (untrained 9.40, at most 192) and target std 0.400.", "good")
    looks(parts, GROWS)
    parts.plan["data"]["images"] = 100  # of which no more directions can come
    parts.path = parts.path.with_name("few")
    assert told(parts) == ("No sign of it", "RankMe 15.0 (untrained 9.40, at most 100) and target std 0.400.", "good")
    del parts.experiment["training"]
    parts.path = parts.path.with_name("unknown")
    assert told(parts)[1] == "RankMe 15.0 (untrained 9.40) and target std 0.400."


@pytest.mark.parametrize("steps", [100, 2000, 9000])
def test_the_images_that_the_watch_looks_at_are_a_bound_too(parts, steps):
    looks(parts, GROWS)
    parts.experiment["training"]["steps"] = steps
    for row in parts.evaluation["rows"]:
        row["dimensions"] = 2048
    looked_at = affordable(TrainingConfig(steps=steps, batch=64))
    assert f"at most {looked_at})" in told(parts)[1]


@pytest.mark.parametrize(("seen", "answer"), [(3, "Signs of it"), (5, "A dip so far"), (7, "No, but narrow")])
def test_a_dip_that_the_run_climbs_out_of_is_no_collapse(parts, seen, answer):
    looks(parts, [(rank, alpha) for rank, alpha in CLIMBS[:seen]])
    assert told(parts)[0] == answer


def test_an_accuracy_past_its_best_is_no_collapse_and_is_told(parts):
    looks(parts, [(20.0, 2.5)] * 5)
    for row, knn in zip(parts.metrics[1:], (0.5, 0.6, 0.5, 0.5, 0.5), strict=True):
        row["knn"] = knn
    answer, because, _ = told(parts)
    assert answer == "No, but it got worse"
    assert "50.0% of the watched images after 60.0% at step 20" in because


def test_few_of_many_directions_is_narrow_and_not_called_failure(parts):
    parts.log(30, full=True)
    for row in parts.evaluation["rows"]:
        row["dimensions"] = 192
    parts.evaluation["spectrum"] = {"trained encoder": {"rankme": 10.0}, "random encoder": {"rankme": 15.9}}
    answer, because = answers(parts)["Has it collapsed?"]
    assert answer == "No, but narrow"
    assert because.startswith(
        "RankMe 10.0 (untrained 15.9, at most 192) and target std 0.400."
    )  # the evaluation's, not the online 3.5
    assert "not failure" in because
    parts.evaluation["spectrum"]["trained encoder"]["images"] = 60  # of which no more can come
    parts.path = parts.path.with_name("few")
    answer, because = answers(parts)["Has it collapsed?"]
    assert answer == "No sign of it"
    assert because.startswith("RankMe 10.0 (untrained 15.9, at most 60)")


def test_cost(parts):
    assert answers(parts)["What did it cost?"] == (
        "15.0 s",
        "1,000 images/s, 1.00 GiB at the peak, on cpu with 2 threads.",
    )


def test_a_finished_run_is_known_by_its_log_or_its_checkpoint(parts):
    parts.log(20)
    run = parts.write()
    assert read_run(run).finished is False
    (run / "checkpoints" / "step-29").mkdir(parents=True)
    assert read_run(run).finished is False
    (run / "checkpoints" / "step-30").mkdir(parents=True)
    (run / "checkpoints" / "step-31.partial").mkdir()
    assert read_run(run).finished is True
    assert read_run(run).steps_done == 30


def test_rough_online_numbers_stand_in_where_nothing_was_evaluated(parts):
    parts.evaluation = None
    parts.log(30, full=True)
    parts.metrics[2]["knn"] = 0.2
    qualification = judge(read_run(parts.write())).qualification
    assert "The online k-NN, a rough measure, went from 20.0% to 30.0%." in qualification
