"""What the rows of a run are told to show: collapses, dips that end, and a rising loss that is no trouble."""

import json
import re

import pytest

from openjepa.diagnosis.advice import spread_weight
from openjepa.diagnosis.findings import Lookout, diagnose
from openjepa.diagnosis.looks import UNTRAINED, choose, looks, score, untrained
from openjepa.recipes.small import lengthened, small

HEALTHY = {"rankme": 10.0, "alpha_req": 2.5, "lidar": 5.0, "knn": 0.5, "probe": 0.5,
           "features_over_images": 0.6, "features_over_positions": 0.4, "pixel_r2": 0.5}  # fmt: skip
EXPERIMENT = {
    "ijepa": {"target_norm": "layer", "variance_covariance": 0.0, "momentum": [0.996, 1.0]},
    "schedule": {"lr": 0.001},
    "training": {"steps": 400},
}


def log(*changes: dict, every: int = 50, loss: float = 0.2) -> list[dict]:
    """Rows of a run: ten for each look, which are as the untrained encoder's but for its changes."""
    first = {"step": 0, "loss": loss, "momentum": 0.996} | {UNTRAINED + name: value for name, value in HEALTHY.items()}
    rows = [first]
    for number, change in enumerate(changes):
        rows += [
            {"step": number * every + i, "loss": change.get("loss", loss), "momentum": 0.996}
            for i in range(4, every - 1, 5)
        ]
        rows.append({"step": (number + 1) * every - 1, "loss": loss, "momentum": 0.996, **HEALTHY, **change})
    return rows


def kinds(rows: list[dict]) -> dict[str, str]:
    return {one.kind: one.severity for one in diagnose(rows, EXPERIMENT)}


def test_a_run_that_stays_as_it_was_shows_nothing():
    assert diagnose(log({}, {}, {}, {}), EXPERIMENT) == []
    assert diagnose([], EXPERIMENT) == []
    assert diagnose([{"step": 0, "loss": 1.0}]) == []


def test_the_untrained_encoder_and_the_looks_are_found_in_the_rows():
    rows = log({}, {"rankme": 3.0})
    assert untrained(rows) == HEALTHY
    assert [look["step"] for look in looks(rows)] == [49, 99]
    assert untrained([{"step": 0, "loss": 1.0}]) == {}


POSITIONS = {"features_over_images": 0.01, "features_over_positions": 0.6}
CASES = {
    "positions": POSITIONS,
    "rank": {"rankme": 3.0, "alpha_req": 3.5},
    "vanished": {"loss": 0.0008, "features_over_images": 0.02, "features_over_positions": 0.03},
    "alike": {"rankme": 1.3, "alpha_req": 3.5},
    "below": {"alpha_req": 3.5},
    "knn": {"knn": 0.3},
    "pixels": {"pixel_r2": 0.36},
}


@pytest.mark.parametrize(("kind", "look"), CASES.items())
def test_each_trouble_is_told_when_two_looks_show_it_and_since_when(kind, look):
    assert kind not in kinds(log({}, look))
    found = {one.kind: one for one in diagnose(log({}, look, look, look), EXPERIMENT)}
    assert found[kind].severity == "trouble"
    assert found[kind].since == 100
    assert "since step 100." in found[kind].seen
    assert found[kind].seen.count(". ") == 0, "one sentence"
    assert "--" in found[kind].change
    assert kind not in kinds(log({}, look, look, {}))


@pytest.mark.parametrize("look", [{"rankme": 1.3}, {"target_std": 0.01}])
def test_features_that_are_all_alike_at_the_end_are_told_from_one_look(look):
    assert kinds(log(look, every=200)) == {}
    (found,) = diagnose(log(look, every=400), {**EXPERIMENT, "schedule": {"lr": 0.05}})
    assert (found.kind, found.severity, found.since) == ("alike", "trouble", 400)
    assert found.seen.startswith("All images get nearly the same features: RankMe 1")
    assert found.change.startswith("In a new run try --schedule.lr 0.001, ")
    (said,) = told(log(look, every=400))
    assert said.startswith("step 400: All images get nearly the same features")
    narrow = log({"rankme": 1.3}, {"rankme": 1.3})
    narrow[0][UNTRAINED + "rankme"] = 1.4
    assert diagnose(narrow, EXPERIMENT) == [], "of such images an untrained encoder's features are alike as well"


def test_a_dip_that_climbs_is_not_called_a_collapse_meanwhile():
    path = [{"rankme": rank, "alpha_req": alpha} for rank, alpha in ((1.5, 4.0), (1.3, 4.2), (1.6, 3.8), (1.9, 3.4))]
    assert kinds(log(*path[:2])) == {"alike": "trouble"}
    assert "alike" not in kinds(log(*path[:3]))


def test_a_slower_teacher_is_advised_to_no_short_run_of_the_recipe():
    short = json.loads(small(signal=(28, 28), patch=(7, 7), mean=(0.286,), std=(0.353,)).to_json())
    look = CASES["rank"]
    for steps, advised in ((3000, False), (20_000, True)):
        (found,) = diagnose(log(look, look), {**short, "training": {"steps": steps}})
        assert ("--ijepa.momentum" in found.change) is advised


def test_an_accuracy_that_falls_from_its_best_is_told_when_nothing_else_shows():
    accuracies = [0.52, 0.60, 0.59, 0.58, 0.57, 0.56]
    told = [diagnose(log(*({"knn": a} for a in accuracies[: n + 1])), EXPERIMENT) for n in range(len(accuracies))]
    assert [len(found) for found in told] == [0, 0, 0, 0, 0, 1]
    (found,) = told[-1]
    assert (found.kind, found.severity, found.since) == ("fading", "trouble", 250)
    assert "56.0% of the watched images after 60.0% at step 100, since step 250." in found.seen
    assert found.change == "In a new run try --steps 200.", "the schedule would end beyond the best look"
    spread = {"momentum": [0.99, 1.0], "variance_covariance": 0.03}
    fast = {**EXPERIMENT, "ijepa": spread, "training": {"steps": 25_000}}
    (advised,) = diagnose(log(*({"knn": a} for a in accuracies)), fast)
    assert "try --ijepa.variance-covariance 0.01, --ijepa.momentum 0.998 1.0 or --steps 200." in advised.change
    (below,) = diagnose(log({"knn": 0.3}, {"knn": 0.3}), fast)
    assert (below.kind, below.change.split(",")[0]) == ("knn", "In a new run try --ijepa.variance-covariance 0.01")
    few = log(*({"knn": a, "labelled": 400.0} for a in accuracies))
    assert diagnose(few, EXPERIMENT) == [], "so much is chance among 400 images"
    again = log(*({"knn": a} for a in [*accuracies, 0.59]))
    assert diagnose(again, EXPERIMENT) == [], "it has come back"
    collapsed = log({"knn": 0.6}, *[{"knn": 0.3, **POSITIONS}] * 2)
    assert kinds(collapsed) == {"positions": "trouble", "knn": "trouble"}, "what made it fall says enough"


def test_the_sentences_hold_the_numbers():
    (found,) = (one for one in diagnose(log(POSITIONS, POSITIONS)) if one.kind == "positions")
    assert "1.6% of their variance is over images (60.0% before training)" in found.seen
    assert "differ by position but hardly by image" in found.seen


def test_what_is_set_already_is_not_recommended():
    look = CASES["positions"]
    (before,) = (one for one in diagnose(log(look, look), EXPERIMENT) if one.kind == "positions")
    assert "--ijepa.target-norm whiten, --ijepa.variance-covariance 0.01 or --steps 1200" in before.change
    own = {"ijepa": {"target_norm": "whiten", "variance_covariance": 0.05}, "training": {"steps": 400}}
    (after,) = (one for one in diagnose(log(look, look), own) if one.kind == "positions")
    assert after.change == "In a new run try --steps 1200."


def test_the_weight_that_is_recommended_is_the_recipes():
    short = small(signal=(28, 28), patch=(7, 7), mean=(0.286,), std=(0.353,))
    for made in (short, lengthened(short)):
        weight = made.ijepa.variance_covariance
        assert spread_weight(made.ijepa.target_norm) == weight
        settings = json.loads(made.to_json())
        settings["ijepa"]["variance_covariance"] = 0.0
        (found,) = diagnose(log(CASES["rank"], CASES["rank"]), settings)
        assert re.search(rf"try --ijepa\.variance-covariance {weight}(,| or) ", found.change)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("weight", [0.003, 0.01, 0.1])
def test_a_term_that_is_on_is_never_made_stronger_and_other_advice_is_given(kind, weight):
    ijepa = {**EXPERIMENT["ijepa"], "variance_covariance": weight}
    found = {one.kind: one for one in diagnose(log(*[CASES[kind]] * 2), {**EXPERIMENT, "ijepa": ijepa})}
    change = found[kind].change
    assert change.startswith("In a new run try --")
    weights = [float(word) for word in re.findall(r"--ijepa.variance-covariance ([\d.]+\d)", change)]
    assert all(w < weight for w in weights)
    assert weights == ([{0.003: 0.001, 0.01: 0.003, 0.1: 0.01}[weight]] if kind == "knn" else [])


def test_a_dip_that_climbs_is_told_from_a_collapse_and_its_end_is_told():
    depth = [3.3, 4.0, 4.2, 3.8, 3.3, 2.6, 2.4]
    severities = [
        kinds(log(*({"alpha_req": alpha} for alpha in depth[: n + 1]))).get("below") for n in range(len(depth))
    ]
    assert severities == [None, "trouble", "trouble", "recovering", "recovering", None, None]
    dip = diagnose(log(*({"alpha_req": alpha} for alpha in depth[:5])))
    assert "so far" in dip[0].seen
    assert "climbs out" in dip[0].seen
    collapse = [kinds(log(*({"alpha_req": a} for a in [3.3, 4.0, 4.2, 4.3][: n + 1]))).get("below") for n in range(4)]
    assert collapse == [None, "trouble", "trouble", "trouble"]


def test_rankme_alone_is_no_trouble():
    """It falls in good runs too, whose spectrum decays no faster."""
    assert kinds(log({"rankme": 4.0, "alpha_req": 2.2}, {"rankme": 4.0, "alpha_req": 2.1})) == {}


def test_a_loss_that_rises_while_the_representation_improves_is_explained():
    path = [{"loss": loss, "alpha_req": alpha} for loss, alpha in ((0.1, 2.5), (0.05, 2.4), (0.1, 2.2), (0.15, 2.0))]
    (found,) = diagnose(log(*path), EXPERIMENT)
    assert (found.kind, found.severity, found.change) == ("rising", "explained", "")
    assert "risen from 0.05" in found.seen
    assert "no trouble" in found.seen
    by_pixels = [{"loss": one["loss"], "pixel_r2": 0.5 + 0.05 * place} for place, one in enumerate(path)]
    (found,) = diagnose(log(*by_pixels), EXPERIMENT)
    assert "got better (pixel R2 from 0.55 to 0.65): its" in found.seen, "what reads the same is left out"
    level = [{"loss": one["loss"], "alpha_req": 2.0 - 0.001 * place} for place, one in enumerate(path)]
    (found,) = diagnose(log(*level), EXPERIMENT)
    assert "while the representation kept its level: its" in found.seen
    for method in ("mae", "denoising"):  # whose targets are pixels: there a loss that rises is no good sign
        assert diagnose(log(*path), EXPERIMENT | {"method": method}) == []
    worse = [path[0], path[1], path[2] | {"alpha_req": 2.6}, path[3] | {"alpha_req": 2.7}]
    assert kinds(log(*worse)) == {}


def test_the_choice_is_the_look_with_the_best_score_and_the_first_among_equals():
    rows = log({"alpha_req": 2.4}, {"alpha_req": 2.0}, {"alpha_req": 2.0}, {"alpha_req": 2.2})
    chosen = choose(rows)
    assert chosen is not None
    assert chosen.step == 100
    assert chosen.score == pytest.approx(0.5)
    assert choose([]) is None
    assert choose([row for row in rows if "rankme" not in row]) is None
    without = [{name: value for name, value in row.items() if not name.startswith(UNTRAINED)} for row in rows]
    assert choose(without).step == 100


def test_features_without_a_spectrum_are_the_worst():
    flat = {name: value for name, value in HEALTHY.items() if name != "alpha_req"}
    assert score(flat, HEALTHY) == -7.5
    assert score({}, HEALTHY) is None
    assert score(HEALTHY, {}) is None


def test_what_is_told_of_the_pictures_counts_where_it_was_measured():
    before_it_was = {name: value for name, value in HEALTHY.items() if name != "pixel_r2"}
    assert score({**HEALTHY, "pixel_r2": 0.4}, HEALTHY) == pytest.approx(-0.2)
    assert score({**HEALTHY, "pixel_r2": 0.7, "alpha_req": 3.0}, HEALTHY) == pytest.approx(-0.1)
    assert score({**HEALTHY, "pixel_r2": 0.9}, before_it_was) == 0, "a run that began before it was measured"
    assert score(before_it_was, HEALTHY) == 0
    (found,) = diagnose(log(*[{"pixel_r2": 0.28}] * 2), EXPERIMENT)
    assert found.kind == "below"
    assert "RankMe 10.0 after 10.0, pixel R2 0.28 after 0.50), since step 50." in found.seen
    lost = {"pixel_r2": 0.25, "alpha_req": 1.8}
    (told,) = diagnose(log(lost, lost), EXPERIMENT)
    assert told.kind == "pixels", "a better spectrum does not hide it"
    assert "pixel R2 0.25 after 0.50, since step 50." in told.seen
    assert kinds(log(*[{"pixel_r2": 0.39}] * 2)) == {}
    old = [{name: value for name, value in row.items() if "pixel_r2" not in name} for row in log(*[CASES["below"]] * 2)]
    (told,) = diagnose(old, EXPERIMENT)
    assert "(alpha-ReQ 3.50 after 2.50, RankMe 10.0 after 10.0), since step 50." in told.seen


def test_a_collapse_in_rank_is_the_spectrums_alone():
    """The report calls it a collapse, so what pixels say neither makes nor hides it."""
    assert "rank" not in kinds(log(*[{"rankme": 5.5, "pixel_r2": 0.1}] * 2))
    assert "rank" in kinds(log(*[{"rankme": 3.0, "alpha_req": 3.5, "pixel_r2": 0.9}] * 2))


def test_damaged_rows_break_nothing():
    rows = [*log(*CASES.values(), {}), {"step": 999, "rankme": "much", "loss": None}, {"step": 1000, "rankme": 2.0}]
    rows[0]["untrained_knn"] = float("nan")
    diagnose(rows, {"ijepa": 3, "training": None, "schedule": {"lr": "low"}})
    diagnose(rows, {"ijepa": {"momentum": 0.9}})


def test_the_lookout_tells_a_finding_once_and_its_end_once():
    rows = log({}, CASES["below"], CASES["below"], CASES["below"], {}, {})
    lookout, said = Lookout(EXPERIMENT), []
    for row in rows:
        said += [(row["step"], sentence) for sentence in lookout.note(row)]
    assert [step for step, _ in said] == [149, 249]
    assert said[0][1].startswith("step 150: ")
    assert "no longer so" in said[1][1]
    # One that goes on from the middle says what is new from there on, and nothing twice.
    resumed = Lookout(EXPERIMENT, json.loads(json.dumps(rows[:-20])))
    assert [s for row in rows[-20:] for s in resumed.note(row)] == [s for step, s in said if step > rows[-21]["step"]]
    assert lookout.choice == choose(rows)


def test_the_lookout_of_a_long_run_keeps_what_it_looks_at_alone():
    rows = log({}, CASES["below"], {})
    lookout = Lookout(EXPERIMENT, rows)
    assert list(lookout.rows) == [rows[0], *looks(rows)]
    assert untrained(lookout.rows) == untrained(rows) != {}


def told(rows: list[dict]) -> list[str]:
    lookout = Lookout(EXPERIMENT)
    return [sentence for row in rows for sentence in lookout.note(row)]


def test_what_another_trouble_says_as_well_has_not_ended():
    worse = {"alpha_req": 3.2, "rankme": 9.0}
    said = told(log({}, worse, worse, *[CASES["rank"]] * 2))
    assert [sentence.split(":")[0] for sentence in said] == ["step 150", "step 250"]
    assert "far fewer directions" in said[1]
    faded = [{"knn": knn} for knn in (0.52, 0.7, 0.69, 0.6, 0.6, 0.6)]
    said = told(log(*faded, *[{"knn": 0.6, **CASES["below"]}] * 3))
    assert len(said) == 2
    assert not any("no longer so" in sentence for sentence in said)
    said = told(log(*[CASES["rank"]] * 2, *[worse] * 2, {}))
    assert ["no longer so" in sentence for sentence in said] == [False, False, True, True]


def test_what_was_hidden_before_a_stop_is_not_told_again_after_it():
    rows = log(*[{"alpha_req": 3.2}] * 2, *[CASES["rank"]] * 2, *[{"alpha_req": 3.2}] * 2)
    resumed = Lookout(EXPERIMENT, rows[:-20])
    last = [sentence for row in rows[-20:] for sentence in resumed.note(row)]
    assert len(last) == 1
    assert "no longer so: The features use far fewer" in last[0]
