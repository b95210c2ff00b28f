"""Comparisons: what is asked, planned, gone on with and summed up."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from openjepa import comparing
from openjepa.comparing import Request, begin, gather, run_all, summarise
from openjepa.data.sources import open_data
from openjepa.errors import InputError
from openjepa.planning import Wishes
from openjepa.report.comparison import render, write_comparison
from openjepa.training.distributed import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
WISHES = Wishes(workers=0)
REQUEST = Request(objectives=("ijepa", "mae"), seeds=2, flops=2e11)


@pytest.fixture(scope="module")
def sample():
    return open_data(None)


@pytest.fixture(scope="module")
def begun(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparisons") / "one"
    return folder, begin(folder, REQUEST, WISHES, sample, None, ALONE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flops": None}, "one of --minutes"),
        ({"minutes": 1.0}, "not --minutes and --flops"),
        ({"flops": -1.0}, "--flops must be above 0, got -1.0"),
        ({"seeds": 0}, "--seeds must be 1 or more, got 0"),
        ({"objectives": ("mae", "mae")}, "each objective once, got mae, mae"),
    ],
)
def test_what_makes_no_comparison_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        replace(REQUEST, **change)


def test_equal_operations_give_the_steps(begun):
    _, content = begun
    for name in ("ijepa", "mae"):
        facts, experiment = content["plans"][name]["facts"], content["plans"][name]["experiment"]
        step = facts["flops_per_image"]["step"] * experiment["training"]["batch"]
        assert 0 <= 2e11 - step * experiment["training"]["steps"] < step
        assert experiment["method"] == name
    encoders = [content["plans"][name]["experiment"]["encoder"] for name in ("ijepa", "mae")]
    assert encoders[0] == encoders[1]


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("objectives", "width"), [(("ijepa", "mae"), 192), (("mae", "ijepa"), 192), (("denoising", "mae"), 256)]
)
def test_the_network_of_all_is_the_same_in_whatever_order_they_are_asked_for(
    begun, sample, tmp_path, objectives, width
):
    """For these operations I-JEPA has less than 10,000 steps of the narrower network, the others have more."""
    planned = begun[1]["plans"]["ijepa"]
    flops = 9e3 * planned["facts"]["flops_per_image"]["step"] * planned["experiment"]["training"]["batch"]
    request = replace(REQUEST, objectives=objectives, flops=flops)
    plans = begin(tmp_path, request, WISHES, sample, None, ALONE)["plans"]
    assert [plans[name]["experiment"]["encoder"]["width"] for name in objectives] == [width] * 2
    assert list(plans) == list(objectives)
    if "ijepa" in plans:
        assert plans["ijepa"]["experiment"]["ijepa"]["target_norm"] == "whiten"


def test_fewer_operations_than_a_step_has_are_refused(sample, tmp_path):
    with pytest.raises(InputError, match=r"--flops 10 is less than one step of ijepa \("):
        begin(tmp_path, replace(REQUEST, flops=10.0), WISHES, sample, None, ALONE)


def test_the_same_request_goes_on_and_another_is_refused(begun, sample):
    folder, content = begun
    assert begin(folder, REQUEST, WISHES, sample, None, ALONE)["plans"] == content["plans"]
    with pytest.raises(InputError, match=r"other settings \(seeds\)"):
        begin(folder, replace(REQUEST, seeds=3), WISHES, sample, None, ALONE)


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"request": {',
        "[1, 2]",
        "null",
        '{"seeds": 3}',
        '{"request": {"objectives": ["mae"]}, "command": "", "plans": {}}',
    ],
)
def test_a_comparison_that_is_damaged_or_of_something_else_is_refused(content, sample, tmp_path):
    (tmp_path / "compare.json").write_text(content)
    with pytest.raises(InputError, match=r"compare\.json is damaged, or no comparison's \(.*choose another --out"):
        begin(tmp_path, REQUEST, WISHES, sample, None, ALONE)
    assert (tmp_path / "compare.json").read_text() == content


def test_a_command_does_not_outlive_what_waits_for_it(monkeypatch):
    begun = []

    class Command(subprocess.Popen):
        def __init__(self, words, **settings):
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], **settings)
            begun.append(self)

        def wait(self, timeout=None):
            if not self.waited:
                self.waited = True
                raise RuntimeError("whatever it is")
            return super().wait(timeout)

        waited = False

    monkeypatch.setattr(subprocess, "Popen", Command)
    with pytest.raises(RuntimeError, match="whatever it is"):
        comparing._openjepa("report", "nothing")
    try:
        assert begun[0].poll() == -signal.SIGTERM
    finally:
        begun[0].kill()
        begun[0].wait()


def test_a_command_runs_no_file_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "ctypes.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    assert comparing._openjepa("--version") == 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("judged.json", '{"rows": [', r"judged\.json is damaged .*: delete it and give the same command again"),
        ("judged.json", "[]", r"judged\.json is damaged"),
        (
            "metrics.jsonl",
            "",
            r"metrics\.jsonl of a finished run is missing or damaged: restore it, or delete the folder",
        ),
    ],
)
def test_a_finished_run_that_is_damaged_is_told_with_what_to_do(begun, tmp_path, name, content, said):
    run, planned = tmp_path / "ijepa-seed0", begun[1]["plans"]["ijepa"]
    run.mkdir()
    (run / "experiment.json").write_text(json.dumps(planned["experiment"]))
    (run / "plan.json").write_text(json.dumps(planned["facts"]))
    (run / "metrics.jsonl").write_text('{"step": 0, "seconds": 1.0, "peak_memory": 1}\n')
    (run / "judged.json").write_text('{"rows": []}')
    (run / name).write_text(content)
    with pytest.raises(InputError, match=said):
        gather(tmp_path, begun[1], REQUEST)


def test_an_unfinished_run_that_somebody_has_evaluated_is_gone_on_with(begun, tmp_path, monkeypatch):
    run, called = tmp_path / "ijepa-seed0", list[str]()
    run.mkdir()
    for name in ("experiment.json", "evaluation.json"):
        (run / name).write_text("{}")

    def stops(verb, *rest):
        called.append(verb)
        return 0 if verb == "resume" else 3

    monkeypatch.setattr(comparing, "_openjepa", stops)
    assert run_all(tmp_path, begun[1], REQUEST, lambda text: None, None) == 3
    assert called == ["resume", "evaluate"]
    assert not (run / "judged.json").exists()


@pytest.mark.parametrize(
    ("changes", "evaluators", "verbs"),
    [
        ({}, ("k-NN", "linear probe", "linear probe, last four blocks"), ["evaluate"]),
        ({}, ("k-NN",), ["resume", "evaluate"]),
        ({"step": 1}, ("k-NN", "linear probe", "linear probe, last four blocks"), ["resume", "evaluate"]),
        ({"checkpoint": 1}, ("k-NN", "linear probe", "linear probe, last four blocks"), ["resume", "evaluate"]),
    ],
    ids=["judged", "judged in part", "an earlier encoder", "unfinished"],
)
def test_what_was_interrupted_in_its_judging_is_not_judged_by_the_quick_suite_again(
    begun, tmp_path, monkeypatch, changes, evaluators, verbs
):
    out, called = tmp_path, list[str]()
    steps = begun[1]["plans"]["ijepa"]["experiment"]["training"]["steps"]
    done, folder = {"step": steps, "checkpoint": steps} | changes, out / "ijepa-seed0"
    (folder / "checkpoints" / f"step-{done['checkpoint']}").mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps(begun[1]["plans"]["ijepa"]["experiment"]))
    (folder / "plan.json").write_text(json.dumps(begun[1]["plans"]["ijepa"]["facts"]))
    (folder / "exported.json").write_text(json.dumps({"step": steps}))
    rows = [row("trained encoder", 0.5, evaluator) for evaluator in evaluators]
    (folder / "evaluation.json").write_text(json.dumps({"rows": rows, "step": done["step"]}))
    monkeypatch.setattr(comparing, "_openjepa", lambda verb, *rest: called.append(verb) or 3 * (verb == "evaluate"))
    content, said = json.loads(json.dumps(begun[1])), list[str]()
    for planned in content["plans"].values():
        planned["facts"]["estimate"]["seconds"] = 1000.0
    assert run_all(out, content, REQUEST, said.append, None) == 3
    assert called == verbs
    left = "1 h 7 min" if "resume" in verbs else "50 min"
    assert said[0].startswith(f"4 runs: at most {left} of training by their plans")


def test_each_run_is_told_when_it_is_judged(begun, tmp_path, monkeypatch):
    def does(verb, folder, *rest):
        if verb == "evaluate":
            (Path(folder) / "evaluation.json").write_text("{}")
        return 0

    monkeypatch.setattr(comparing, "_openjepa", does)
    killed = tmp_path / "ijepa-seed0"  # between its two files, by an earlier version
    killed.mkdir()
    (killed / "plan.json").write_text(json.dumps(begun[1]["plans"]["ijepa"]["facts"]))
    (killed / ".lock").touch()
    seen = []
    judged = lambda: seen.append(len(list(tmp_path.glob("*/judged.json"))))  # noqa: E731
    assert run_all(tmp_path, begun[1], REQUEST, lambda text: None, None, judged) == 0
    assert seen == [*range(1, len(REQUEST.runs) + 1)]


def test_a_folder_with_something_else_is_left_alone(sample, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is no comparison"):
        begin(tmp_path, REQUEST, WISHES, sample, None, ALONE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def row(features, value, evaluator="k-NN"):
    return {
        "task": "classes", "features": features, "evaluator": evaluator, "metric": "accuracy", "value": value,
        "low": value - 0.01, "high": value + 0.01, "dimensions": 4, "settings": {},
    }  # fmt: skip


def run(objective, seed, value):
    rows = [row("trained encoder", value), row("random encoder", 0.5), row("raw pixels", 0.6)]
    curve = [
        {"step": 9, "seconds": 1.0, "flops": 10.0, "knn": 0.4},
        {"step": 19, "seconds": 2.0, "flops": 20.0, "knn": value},
    ]
    return {
        "objective": objective, "seed": seed, "folder": f"{objective}-seed{seed}", "steps": 20, "seconds": 2.0,
        "images_per_s": 100.0, "flops": 20.0, "peak_memory": 2**30, "joules": None, "curve": curve, "rows": rows,
    }  # fmt: skip


def test_means_spreads_and_differences_over_seeds():
    values = {"ijepa": [0.7, 0.72, 0.71], "mae": [0.74, 0.75, 0.77]}
    runs = [run(name, seed, value) for name, each in values.items() for seed, value in enumerate(each)]
    (found,) = summarise(runs, ("ijepa", "mae"))
    assert found["values"]["ijepa"] == {"mean": pytest.approx(0.71), "std": pytest.approx(0.01), "n": 3}
    assert found["values"]["raw pixels"]["mean"] == pytest.approx(0.6)
    wanted = stats.ttest_ind(values["mae"], values["ijepa"], equal_var=False).confidence_interval(0.95)
    difference = found["differences"]["mae"]
    assert difference["value"] == pytest.approx(0.0433, abs=1e-4)
    assert (difference["low"], difference["high"]) == (pytest.approx(wanted.low), pytest.approx(wanted.high))
    (single,) = summarise(runs[:1] + runs[3:4], ("ijepa", "mae"))
    assert single["differences"]["mae"]["low"] is None
    assert single["values"]["mae"]["std"] is None


def test_seeds_that_all_give_the_same_have_no_interval(begun):
    values = {"ijepa": 0.5, "mae": 0.6}
    runs = [run(name, seed, value) for name, value in values.items() for seed in (0, 1)]
    summary = summarise(runs, ("ijepa", "mae"))
    assert summary[0]["differences"]["mae"] == {
        "value": pytest.approx(0.1), "low": None, "high": None, "test_images": None,
    }  # fmt: skip
    page = render(begun[1] | {"command": "openjepa compare", "runs": runs, "summary": summary})
    assert "MAE is 10.0 points above I-JEPA; all seeds gave the same, so there is no interval." in page


def test_the_page_says_what_the_numbers_say_and_what_is_missing(begun):
    _, content = begun
    runs = [run("ijepa", 0, 0.7), run("ijepa", 1, 0.72), run("mae", 0, 0.75)]
    content = content | {"command": "openjepa compare", "runs": runs, "summary": summarise(runs, ("ijepa", "mae"))}
    page = render(content)
    assert "I-JEPA and MAE on sample" in page
    assert "I-JEPA 71.0%, MAE 75.0%, random encoder 50.0% and raw pixels 60.0%" in page
    assert "By <b>k-NN</b>: " in page
    assert "MAE is 4.0 points above I-JEPA; with one seed of MAE nothing can be said" in page
    assert "1 run is not finished; its numbers are missing" in page
    assert "not available" in page  # the energy
    assert "71.0% ± 1.4" in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epochs", 0.4, "0.4 epochs for each run"),
        ("epochs", 1.0, "1 epoch for each run"),
        ("minutes", 4.0, "4 minutes of training for each run"),
        ("steps", 1_234_567, "1,234,567 steps for each run"),
    ],
)
def test_what_each_run_was_given_is_told_as_it_was_asked_for(begun, name, value, said):
    runs = [run("ijepa", 0, 0.7)]
    content = begun[1] | {"command": "", "runs": runs, "summary": summarise(runs, ("ijepa", "mae"))}
    page = render(content | {"request": content["request"] | {"flops": None, name: value}})
    assert f"encoder, {said}, 2 seeds" in page


def test_times_by_the_clock_that_differ_are_told_where_the_same_time_was_given(begun):
    def page(**times: float) -> str:
        runs = [run(name, 0, 0.7) | {"seconds": seconds} for name, seconds in times.items()]
        request = begun[1]["request"] | {"flops": None, "minutes": 4.0} | asked
        summary = summarise(runs, ("ijepa", "mae"))
        return render(begun[1] | {"command": "", "runs": runs, "summary": summary, "request": request})

    asked = {}
    assert "MAE trained for 4 min 16 s in the mean, I-JEPA for 3 min 59 s" in page(ijepa=239.3, mae=255.7)
    assert "By the clock" not in page(ijepa=240.0, mae=251.0)
    asked = {"minutes": None, "steps": 100}
    assert "By the clock" not in page(ijepa=100.0, mae=200.0)


@pytest.mark.parametrize(
    ("facts", "said"), [({"matrices_moved_by": "muon"}, "Muon for the blocks"), ({}, "<td>AdamW</td>")]
)
def test_what_moves_the_weights_is_told_also_by_plans_that_did_not_say(begun, facts, said):
    content = json.loads(json.dumps(begun[1])) | {"command": ""}
    for planned in content["plans"].values():
        assert planned["facts"].pop("matrices_moved_by") == "adamw"
        planned["facts"] |= facts
    runs = [run("ijepa", 0, 0.7)]
    assert said in render(content | {"runs": runs, "summary": summarise(runs, ("ijepa",))})


def test_energy_of_some_seeds_alone_is_no_mean(begun):
    runs = [run("ijepa", 0, 0.7) | {"joules": 3.0}, run("ijepa", 1, 0.7)]
    assert "not available" in render(begun[1] | {"command": "", "runs": runs, "summary": summarise(runs, ("ijepa",))})


@pytest.mark.parametrize(
    ("labelled", "said"), [(True, "By the labels of your images no run could"), (False, "Your images have no labels")]
)
def test_why_no_accuracy_was_measured_is_told(begun, labelled, said):
    content = json.loads(json.dumps(begun[1])) | {"command": ""}
    for planned in content["plans"].values():
        planned["facts"]["data"]["labelled"] = labelled
    runs = [run("ijepa", 0, 0.7) | {"rows": [], "curve": []}]
    page = render(content | {"runs": runs, "summary": []})
    assert said in page
    assert ("images have no labels" in page) is not labelled


def test_nothing_finished_is_told(begun):
    folder, content = begun
    assert gather(folder, content, REQUEST)["runs"] == []
    with pytest.raises(InputError, match="missing, damaged or holds no runs"):
        write_comparison(folder)
    (folder / "compare.json").write_text(json.dumps(gather(folder, content, REQUEST)))
    with pytest.raises(InputError, match=r"no run of .* is finished"):
        write_comparison(folder)
