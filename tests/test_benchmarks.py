"""The benchmark scripts, each run as a person would but tiny: that they measure what the library has today."""

import importlib
import importlib.util
import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from openjepa import transformer
from openjepa.training.step import Step

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
README = (BENCHMARKS / "README.md").read_text()
# estimate.py takes no options, and runs below; collapse/analyse.py reads another study's results.
SCRIPTS = [
    *(BENCHMARKS / f"{name}.py" for name in ("data", "evaluation", "gpu", "others", "process", "unseen")),
    *(BENCHMARKS / name / "run.py" for name in ("ablation", "collapse")),
]
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch, capsys) -> Iterator[Run]:
    """Runs a script of benchmarks/ in this process, and gives what it printed."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(transformer, "attention_path", transformer.attention_path)  # attention.py replaces it
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # of the processes that a script begins

    def called(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return capsys.readouterr().out

    yield called
    torch.set_num_threads(threads)


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of some colour images in two classes."""
    random = np.random.default_rng(0)
    for number in range(64):
        path = tmp_path / "photos" / f"kind{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_what_is_not_run_here_can_at_least_be_asked_what_it_does(script, run, capsys):
    with pytest.raises(SystemExit) as left:
        run(script, "--help")
    assert left.value.code == 0
    assert "python benchmarks/" in capsys.readouterr().out


@pytest.mark.parametrize("replicas", [1, 2])
def test_stages_are_those_of_the_step(replicas, run, tmp_path):
    options = ["--sizes", "small", "--batch", 4, "--rounds", 2, "--replicas", replicas]
    told = run("stages.py", *options, "--json", tmp_path / "found.json")
    spent = json.loads((tmp_path / "found.json").read_text())["sizes"]["small"]["seconds"]
    assert set(spent) == {
        *("data", "masks", "target encoder", "context encoder", "predictor", "loss", "backward"),
        *("sharing", "optimiser", "EMA", "other"),
    }
    assert all(seconds > 0 for seconds in spent.values())
    assert len(told.splitlines()) == 2 + len(spent)


def test_stages_of_clips_are_those_of_images_but_for_the_data(run, tmp_path):
    options = ["--sizes", "clip", "--batch", 1, "--rounds", 2]
    told = run("stages.py", *options, "--json", tmp_path / "found.json")
    spent = json.loads((tmp_path / "found.json").read_text())["sizes"]["clip"]["seconds"]
    assert "data" not in spent
    assert spent["target encoder"] > 0
    assert "| data (beforehand) |  |" in told


def test_packed_rows_are_measured_beside_the_same_padded(run, tmp_path):
    told = run("packed.py", "--sizes", "small", "--batch", 8, "--rounds", 2, "--json", tmp_path / "found.json")
    row = json.loads((tmp_path / "found.json").read_text())["sizes"]["small"]
    assert row["tokens"]["packed"] < row["tokens"]["padded"]
    assert row["tokens"]["fixed"] == 26
    assert set(row["seconds"]) == {"packed", "padded", "fixed"}
    assert row["name"] in told


def test_a_stage_that_the_step_does_not_come_to_is_refused(run, monkeypatch):
    stages, contenders = (importlib.import_module(name) for name in ("stages", "contenders"))
    task = contenders.Task(contenders.sized("small", 2), torch.device("cpu"), "float32")
    monkeypatch.setattr(Step, "__call__", lambda step, x, masks, number: step.backward(x, masks))
    with pytest.raises(SystemExit, match="never came to optimiser, EMA"):
        stages.network(task, 1, 1)
    monkeypatch.delattr(Step, "_optimise")
    with pytest.raises(SystemExit, match="a Step has no '_optimise'"):
        stages.network(task, 1, 1)


def test_where_counts_the_products_of_the_step(run, tmp_path, monkeypatch):
    told = run("where.py", "--sizes", "small", "--batch", 4, "--rounds", 1, "--json", tmp_path / "found.json")
    results = json.loads((tmp_path / "found.json").read_text())
    found = results["sizes"]["small"]
    where, contenders = (importlib.import_module(name) for name in ("where", "contenders"))
    step = contenders.ours(contenders.Task(contenders.sized("small", 4), torch.device("cpu"), results["dtype"]))
    # PyTorch's counter knows nothing of oneDNN's linear layers: the same step without them.
    monkeypatch.setattr("openjepa.kernels._has_onednn", lambda: False)
    with FlopCounterMode(display=False) as counter:
        step()
    counted = counter.get_flop_counts()["Global"]
    assert found["flops"] == sum(flops for of, flops in counted.items() if of.__name__ in where.PRODUCTS)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert all(row["alone"] > 0 and row["in the step"] > 0 for row in found["products"].values())
    assert "| LayerNorm |" in told


def test_step_measures_all_who_are_installed(run, tmp_path):
    run("step.py", "--sizes", "small", "--batch", 4, "--rounds", 1, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    for kind, names in (("training", {"ours", "plain", "lightly"}), ("forward", {"encoder", "transformers"})):
        (row,) = found[kind]
        missing = {name for name in names & {"lightly", "transformers"} if importlib.util.find_spec(name) is None}
        assert set(row["refused"]) == missing
        assert set(row["contenders"]) == names - missing
        assert all(who["seconds"]["median"] > 0 for who in row["contenders"].values())


def test_a_peer_that_is_not_installed_is_refused_with_its_name(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly", None)
    monkeypatch.delitem(sys.modules, "lightly_step", raising=False)
    told = run("step.py", "--contender", "lightly", "--size", "small", "--batch", 2)
    assert "lightly" in json.loads(told)["refused"]


def test_attention_has_a_row_for_each_precision(run, tmp_path):
    run("attention.py", "--tokens", 16, "--total", 64, "--rounds", 1, "--json", tmp_path / "found.json")
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [row["dtype"] for row in rows] == ["bfloat16", "float32"]
    assert all(row["both"][path]["median"] > 0 for row in rows for path in ("plain", "parts", "fused"))


def test_growth_measures_one_point_and_leaves_the_others(run, tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"batch": {"8": {"seconds": 1.0, "flops": 1, "peak": 1, "bytes": 1}}}))
    run("growth.py", "--json", path, "--sweeps", "batch", "--only", 2, "--plot", tmp_path / "found.png")
    found = json.loads(path.read_text())["batch"]
    assert found["8"]["seconds"] == 1.0
    assert found["2"]["seconds"] > 0
    with Image.open(tmp_path / "found.png") as plot:
        assert plot.size[0] > 100


def test_data_has_every_row_that_was_asked_for(run, photos, tmp_path):
    pytest.importorskip("datasets")
    found = read(run, photos, tmp_path, "photos", "28 px, grey", "Parquet")
    assert list(found["ratio"]) == ["photos", "28 px, grey", "Parquet"]


def test_data_without_datasets_says_so_at_once_and_goes_on(run, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    found = read(run, photos, tmp_path, "Parquet", "photos")
    assert list(found["rates"]["Parquet"]) == ["ours"]
    assert list(found["ratio"]) == ["photos"]


def read(run: Run, photos: Path, folder: Path, *rows: str) -> dict:
    """What data.py finds of some rows."""
    path = folder / "found.json"
    options = ["--workers", 0, "--seconds", 0.05, "--rounds", 1, "--json", path]
    told = run("data.py", photos, *options, "--rows", *rows)
    assert ("without a peer" in told) == (sys.modules.get("datasets", "missing") is None)
    return json.loads(path.read_text())


def test_indexing_finds_what_it_made(run, tmp_path):
    run("indexing.py", tmp_path / "many", "--files", 20, "--json", tmp_path / "found.json")
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert row["first"]["files"] == row["again"]["files"] == 20


def test_time_to_accuracy_trains_judges_and_goes_on(run, photos, tmp_path):
    options = [photos, "--out", tmp_path / "study", "--minutes", 0.01, "--seeds", 0, "--recipes", "openjepa"]
    first = run("time_to_accuracy.py", *options)
    (row,) = json.loads((tmp_path / "study" / "results.json").read_text())
    assert row["steps"] >= 1
    assert "openjepa 0.01 0" in first
    again = run("time_to_accuracy.py", *options)
    assert "openjepa 0.01 0" not in again
    assert "| linear probe | 0.01 min |" in again


def test_the_time_to_a_mark_is_by_the_clock_and_between_budgets(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    told = importlib.import_module("time_to_accuracy").told

    def result(recipe: str, minutes: float, seed: int, value: float) -> dict:
        accuracy = {"trained encoder, linear probe": value}
        return {"recipe": recipe, "minutes": minutes, "seed": seed, "seconds": 66 * minutes, "accuracy": accuracy}

    results = [result("openjepa", *each) for each in ((2.0, 0, 0.39), (2.0, 1, 0.41), (8.0, 0, 0.48), (8.0, 1, 0.52))]
    results += [result("published settings", 8.0, 0, 0.44), result("published settings", 30.0, 0, 0.45)]
    *_, low, mark, high = told(results, "linear probe", (40.0, 55.0)).splitlines()
    assert low == "to 40.0: openjepa at most 2.2 minutes; published settings at most 8.8 minutes; MAE not run"
    # Halfway from 40 to 50 is halfway from 2.2 to 8.8 minutes on a logarithmic scale.
    assert mark == "to 45.0: openjepa 4.4 minutes; published settings 33.0 minutes; MAE not run"
    assert high == "to 55.0: openjepa not in 8.8 minutes; published settings not in 33.0 minutes; MAE not run"


@pytest.mark.parametrize(("study", "count"), [("fresh-2", 72), ("pixel-r2", 216), ("turned", 72)])
def test_the_alarms_of_the_collapse_study_are_those_of_its_runs(study, count, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "collapse")
    analyse, results = importlib.import_module("analyse"), BENCHMARKS / "collapse" / "results"
    runs, failed = analyse.read(results / f"runs-{study}.jsonl")
    assert (len(runs), failed) == (count, 0)
    told = json.loads((results / f"analysis-{study}.json").read_text())["outcomes"]
    readme = (BENCHMARKS / "collapse" / "README.md").read_text()
    for outcome, name in (("knn", "k-NN"), ("probe", "probe")):
        found = [analyse.alarms(runs, outcome, labels=labels) for labels in (True, False)]
        assert found == [told[outcome]["alarms"], told[outcome]["alarms without labels"]]
        cells = [
            ", ".join(f"{alarms[f'share_of_{kind}_in_trouble'][tenth - 1]:.0%}" for tenth in (3, 5))
            for kind in ("bad", "good")
            for alarms in found
        ]
        assert f"| {name} | {' | '.join(cells)} |" in readme


def test_the_known_pair_is_told_as_the_readme_has_it(run):
    study = BENCHMARKS / "collapse" / "results" / "runs-pair.jsonl"
    told = run("collapse/analyse.py", study, "--looks")
    readme = (BENCHMARKS / "collapse" / "README.md").read_text()
    rows = [line for line in told.splitlines() if re.match(r"\| [\d,]+ \|", line)]
    assert len(rows) == 22
    assert all(row in readme for row in rows)
    assert told.count("below: trouble") == 2 * 5, "the one that sinks, with labels and without"
    assert "trouble" not in told.split("cifar-1200-1")[1], "the one that climbs out"


def test_the_estimate_is_the_one_in_the_readme(run):
    rows = [line for line in run("estimate.py").splitlines() if line.startswith("|")]
    assert len(rows) == 8
    assert all(row in README for row in rows)


def test_the_ablation_table_is_the_one_in_the_readme(run):
    told = run("ablation/run.py", "--table", BENCHMARKS / "results" / "ablation-sample-2026-11-28.jsonl")
    rows = told.splitlines()[2:]
    assert len(rows) == 35
    assert all(row in README for row in rows)


def test_kernels_beside_pytorchs(run, tmp_path):
    told = run("kernels.py", "--tokens", 4, 26, "--rows", 128, "--rounds", 2, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["tokens"], row["more"], row["taken"]) for row in found["attention"]] == [(4, 28, False), (26, 6, True)]
    assert all(row[kind]["padded"]["median"] > 0 for row in found["attention"] for kind in ("forward", "both"))
    assert all(row[name]["median"] > 0 for row in found["layers"] for name in ("ours", "pytorch, gelu"))
    assert "Linear layers of 128 rows" in told
