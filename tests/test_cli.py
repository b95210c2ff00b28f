"""The command line, as a person meets it: real runs on small folders, and a clear sentence for every mistake."""

import dataclasses
import errno
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openjepa
from openjepa import claiming, costing
from openjepa.claiming import LOCK
from openjepa.cli import main
from openjepa.cli.parsing import from_anywhere
from openjepa.data.copies import Copies
from openjepa.data.folder import FolderSource
from openjepa.data.loader import LoaderError
from openjepa.diagnosis.looks import choose
from openjepa.errors import InputError
from openjepa.evaluation.attentive import AttentiveProbe
from openjepa.evaluation.lowshot import LowShot
from openjepa.evaluation.sgd_probe import SGDProbe
from openjepa.experiment import Experiment
from openjepa.running import own_data, read_experiment
from openjepa.training import checkpoint as checkpoints
from openjepa.training.distributed import Processes

SMALL = [
    *("--encoder.width", "24", "--encoder.depth", "2", "--predictor.width", "24", "--predictor.depth", "1"),
    *("--training.batch", "8", "--training.log-every", "1", "--training.workers", "1"),
]
# What is measured beforehand may differ from run to run, and with it the order of summation.
ONE_WAY = ("--training.replicas", "1", "--training.threads", "1")


def stripes(folder: Path, classes: int = 3, count: int = 20, size: tuple[int, int] = (32, 32)) -> Path:
    """A folder of colour photos, a class folder for each direction of the stripes."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for kind in range(classes):
        (folder / f"kind{kind}").mkdir(parents=True)
        for number in range(count):
            wave = np.sin(
                (rows * np.cos(kind) + columns * np.sin(kind)) * random.uniform(0.3, 0.8) + random.uniform(0, 6)
            )
            pixels = 127 + 100 * wave[..., None] + random.normal(0, 5, (*size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"kind{kind}" / f"{number}.png")
    return folder


def call(*arguments: str | Path) -> int:
    """The exit code of the command line, in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code or 0


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return stripes(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Path:
    """One finished run, for the tests that only look at it."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    assert call("pretrain", images, "--out", folder, "--steps", "12", *SMALL, *ONE_WAY) == 0
    return folder


def test_a_run_leaves_what_it_promises(run, images):
    names = {path.name for path in run.iterdir()}
    assert names >= {
        *("experiment.json", "plan.json", "metrics.jsonl", "checkpoints", "encoder"),
        *("pictures.npz", "evaluation.json", "report.html"),
    }
    experiment = Experiment.from_json((run / "experiment.json").read_text(), origin=run)
    assert experiment.encoder.width == 24
    assert experiment.training.steps == 12
    assert Experiment.from_json(experiment.to_json(), origin="itself") == experiment
    plan = json.loads((run / "plan.json").read_text())
    assert plan["data"]["images"] == 60
    assert plan["grid"] == [8, 8]
    assert plan["flops_per_image"]["step"] > plan["flops_per_image"]["forward"] > 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(12))
    assert "rankme" in rows[-1]
    found = json.loads((run / "evaluation.json").read_text())
    assert {row["features"] for row in found["rows"]} == {"trained encoder", "random encoder", "raw pixels"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in found["rows"])
    report = (run / "report.html").read_text()
    assert "RankMe" in report
    assert "The watch" in report
    encoder = openjepa.load(run)
    assert encoder.encode(sorted(images.glob("*/*.png"))[:5]).shape == (5, 24)
    assert encoder.encode(images / "kind0" / "0.png", tokens=True).shape == (1, 8, 8, 24)


def test_the_exported_encoder_is_the_target_encoder_of_the_last_checkpoint(run):
    state = checkpoints.load_newest(run / "checkpoints")[0].state["objective"]
    exported = openjepa.load(run).encoder.state_dict()
    for name, tensor in exported.items():
        assert torch.equal(tensor, state[f"target_encoder.{name}"])


@pytest.mark.usefixtures("unjudged")
def test_keep_best_exports_the_look_with_the_best_score_and_says_so(images, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--steps", "20", "--training.watch-every", "5", "--training.keep", "1", "--schedule.lr", "0.02", *SMALL]
    assert call("pretrain", images, "--out", run, "--keep-best", *options) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    chosen = choose(rows)
    assert chosen is not None
    assert f"encoder of step {chosen.step} of 20 is exported" in capsys.readouterr().out
    assert checkpoints.steps(run / "checkpoints") == sorted({chosen.step, 20})
    state = checkpoints.load(run / "checkpoints" / f"step-{chosen.step}").state["objective"]
    exported = openjepa.load(run).encoder.state_dict()
    assert all(torch.equal(tensor, state[f"target_encoder.{name}"]) for name, tensor in exported.items())
    assert f"| steps | {chosen.step} of 20 |" in (run / "encoder" / "README.md").read_text()
    assert f"encoder of step {chosen.step} of 20 is exported" in (run / "report.html").read_text()


def test_transformers_reads_the_run(run, images):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(run / "encoder").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(run / "encoder")
    picture = Image.open(images / "kind1" / "3.png")
    with torch.no_grad():
        theirs = model(**processor(picture, return_tensors="pt")).last_hidden_state
    ours = openjepa.load(run).encode(picture, tokens=True).reshape(1, 64, 24)
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-5)


def test_evaluate_and_report_again(run, images, tmp_path, capsys):
    first = json.loads((run / "evaluation.json").read_text())
    written = tmp_path / "found.json"
    assert call("evaluate", run / "encoder", images, "--json", written) == 0
    assert json.loads(written.read_text())["rows"] == first["rows"]
    assert "random encoder" in capsys.readouterr().out
    assert call("report", run) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")


def test_unlabelled_images_are_trained_on_and_what_cannot_be_said_is_not(tmp_path, images, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(images.glob("*/*.png")):
        shutil.copy(path, flat / f"{number}.png")
    run = tmp_path / "run"
    assert call("pretrain", flat, "--out", run, "--steps", "2", *SMALL) == 0
    assert "has no labels" in " ".join(capsys.readouterr().out.split())
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    assert {row["task"] for row in rows} == {"rotation"}, "which way up images are needs no labels, and all else does"
    assert (run / "report.html").is_file()


def test_a_dry_run_writes_nothing_and_prints_the_plan(images, tmp_path, capsys):
    muon = ("--optimizer.matrices", "muon")
    assert call("pretrain", images, "--out", tmp_path / "run", "--dry-run", "--steps", "3", *muon) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    parts = ("60 to train on", "32x32", "3 channels", "8x8 tokens", "16 of 64 tokens seen", "parameters", "estimate")
    for part in (*parts, "0.000484 at its highest, for batches of 15 images; Muon moves the blocks' matrices"):
        assert part in " ".join(said.split())


def test_copies_are_announced_written_once_used_and_written_again(tmp_path, capsys, monkeypatch):
    read, copy = [], Copies._copy

    def noted(self, index):
        read.append(copy(self, index))
        return read[-1]

    monkeypatch.setattr(Copies, "_copy", noted)
    data, run = stripes(tmp_path / "large", count=8, size=(300, 300)), tmp_path / "run"
    kept = Path(os.environ["OPENJEPA_CACHE"]) / "copies"
    asked = ("pretrain", data, "--cache", "--steps", "2", *SMALL, "--workers", "0")
    assert call(*asked, "--dry-run") == 0
    assert "copies of 24 images: about" in capsys.readouterr().out
    assert not kept.exists()
    with monkeypatch.context() as patch:
        patch.setattr("openjepa.cli.training._finish", lambda *_: 0)  # once is enough, below
        assert call(*asked, "--out", run) == 0
    (place,) = kept.iterdir()
    written = (place / "images").read_bytes()
    assert len(written) > 24 * 1000
    assert "copies of 24" in capsys.readouterr().out
    assert json.loads((run / "plan.json").read_text())["data"]["copies"] == [210, 210]
    assert any(read)  # in training, from copies
    read.clear()
    assert call(*asked, "--dry-run") == 0
    assert "copies of" not in capsys.readouterr().out
    shutil.rmtree(place)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    assert call("resume", run) == 0
    assert any(read)
    assert (place / "images").read_bytes() == written
    assert json.loads((run / "evaluation.json").read_text())["rows"]
    assert (run / "report.html").is_file()


@pytest.mark.usefixtures("only_trained")
def test_where_training_would_wait_for_large_images_the_plan_says_so(images, tmp_path, capsys):
    def said(data: Path, *more: str) -> str:
        assert call("pretrain", data, "--steps", "2", *SMALL, "--workers", "0", *more, "--dry-run") == 0
        return " ".join(capsys.readouterr().out.split())

    large = stripes(tmp_path / "large", count=6, size=(1200, 1200))
    for number in range(24):  # a few large ones are enough, where reading takes its time by the pixel
        Image.new("RGB", (150, 150)).save(large / "kind0" / f"small{number}.png")
    assert re.search(r"reading the images will take \d+% of the time: --cache keeps small copies", said(large))
    assert "--cache" not in said(images), "these are as small as copies would be"
    assert call("pretrain", large, "--cache", "--steps", "2", *SMALL, "--out", tmp_path / "run") == 0
    assert "--cache" not in capsys.readouterr().out, "they are copied already"


@pytest.mark.usefixtures("only_trained")
def test_without_a_large_image_nothing_is_copied(images, tmp_path, capsys):
    assert call("pretrain", images, "--cache", "--steps", "2", *SMALL, "--out", tmp_path / "run") == 0
    assert "no copies are kept: no image of 8 bits" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["data"]["copies"] is None


def test_replicas_stay_on_the_machine_that_has_them(run):
    saved = Experiment.from_json((run / "experiment.json").read_text(), origin="run")
    two = dataclasses.replace(saved, training=dataclasses.replace(saved.training, replicas=2, threads=1))
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert two.on(Processes(0, 1, cpu)) == two
    for elsewhere in (two.on(Processes(0, 1, cuda)), two.on(Processes(0, 2, cpu))):
        assert (elsewhere.training.replicas, elsewhere.training.threads) == (0, 0)


@pytest.mark.usefixtures("only_trained")
def test_the_number_of_threads_is_measured_unless_it_is_given(images, tmp_path, monkeypatch, capsys):
    # Without the first look at a step, by which a machine that is very slow just now measures no further.
    monkeypatch.setattr(costing, "_FIRST", {"cpu": 0})
    run = tmp_path / "run"
    assert call("pretrain", images, "--out", run, "--steps", "2", *SMALL) == 0
    capsys.readouterr()
    settled, planned = (json.loads((run / name).read_text()) for name in ("experiment.json", "plan.json"))
    training = settled["training"]
    assert training["replicas"] >= 1
    assert training["threads"] >= 1
    assert training["replicas"] * training["threads"] == planned["threads"] <= torch.get_num_threads()
    tried = []

    def seconds(trial, way, look, most):
        tried.append((way.replicas, way.threads))
        return measured(trial, way, look, most) * (1e-6 if way.replicas == 2 else 1)  # the fastest, on any machine

    measured = costing._seconds
    monkeypatch.setattr(costing, "_seconds", seconds)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    plan = ["pretrain", images, "--dry-run", "--steps", "2", *SMALL, "--training.batch", "32"]
    assert call(*plan) == 0
    assert ", 2 threads" in capsys.readouterr().out  # of one process, in two replicas
    assert {(1, 1), (2, 1), (1, 2)} == set(tried)
    assert call(*plan, "--training.threads", "3") == 0
    assert "3 threads" in capsys.readouterr().out
    assert set(tried[tried.index((0, 3)) :]) == {(0, 3)}


# One way to compute only, so that little is measured.
ONE_WAY = ("--training.replicas", "1", "--training.threads", "1", "--workers", "0")


@pytest.fixture
def planned_run(images, tmp_path, monkeypatch) -> Callable[..., tuple[Experiment, str]]:
    """What a run settles on, which ends where training would begin, and why."""

    def planned(*arguments: str, data: Path = images) -> tuple[Experiment, str]:
        run = tmp_path / f"planned{len(list(tmp_path.iterdir()))}"
        with monkeypatch.context() as patch:
            patch.setattr("openjepa.cli.training._train", lambda *_, **__: 0)
            assert call("pretrain", data, "--out", run, "--device", "cpu", *arguments) == 0
        made = Experiment.from_json((run / "experiment.json").read_text(), origin=run)
        return made, json.loads((run / "plan.json").read_text())["recipe"]["why"]

    return planned


@pytest.mark.usefixtures("unmeasured")
def test_long_runs_have_a_wider_encoder_and_targets_of_their_own(planned_run):
    def settled(*arguments: str) -> tuple[int, str, float, float]:
        made, why = planned_run(*arguments)
        assert ("room for 10,000 steps, so a wider encoder" in why) == (made.encoder.width == 256)
        return made.encoder.width, made.ijepa.target_norm, made.ijepa.variance_covariance, made.schedule.lr

    few = ("--training.batch", "8", *ONE_WAY)
    rate = pytest.approx(1e-3 * (8 / 64) ** 0.5)
    assert settled("--steps", "9999", *few) == (192, "whiten", 0.01, rate)
    assert settled("--steps", "10000", *few) == (256, "feature", 0.005, rate)
    assert settled("--steps", "10000", *few, "--objective", "mae")[0] == 256
    # What is asked for stays, and the shape of the encoder is one's own as soon as a part of it is.
    asked = ("--encoder.width", "96", "--ijepa.target-norm", "layer", "--schedule.lr", "2e-3")
    assert settled("--steps", "10000", *few, *asked) == (96, "layer", 0.005, 2e-3)
    made, why = planned_run("--steps", "10000", *few, "--encoder.heads", "3")
    assert (made.encoder.width, made.encoder.heads) == (192, 3)
    assert "room for 10,000 steps, so targets standardised per feature and a slower teacher" in why
    assert made.ijepa.momentum == (0.995, 1.0)


@pytest.mark.usefixtures("unmeasured")
def test_runs_whose_steps_have_many_tokens_are_long_ones_earlier_and_muon_moves_their_matrices(planned_run, tmp_path):
    many = stripes(tmp_path / "many", count=66)  # 198 images, so batches of 49, and of 8x8 tokens

    def settled(*arguments: str) -> tuple[int, str, str, tuple[float, float]]:
        made, why = planned_run(*arguments, *ONE_WAY, data=many)
        differences = "a wider encoder, targets standardised per feature and Muon for the blocks' matrices"
        assert (f"room for 3,000 steps, so {differences}" in why) == (made.encoder.width == 256)
        assert "brings" not in why
        return made.encoder.width, made.ijepa.target_norm, made.optimizer.matrices, made.ijepa.momentum

    assert settled("--steps", "2999") == (192, "whiten", "adamw", (0.99, 1.0))
    assert settled("--steps", "3000") == (256, "feature", "muon", (0.99, 1.0))
    assert settled() == (256, "feature", "muon", (0.99, 1.0)), "3,000 steps are the fewest of a length left open"
    made, why = planned_run("--steps", "10000", *ONE_WAY, "--optimizer.matrices", "adamw", data=many)
    assert (made.optimizer.matrices, made.ijepa.momentum) == ("adamw", (0.995, 1.0))
    assert "so a wider encoder, targets standardised per feature and a slower teacher" in why
    made, _ = planned_run("--steps", "3000", *ONE_WAY, "--objective", "mae", data=many)
    assert (made.encoder.width, made.optimizer.matrices) == (256, "muon")


@pytest.mark.usefixtures("unmeasured")
def test_a_length_that_is_left_open_says_what_a_long_run_would_bring(planned_run):
    few = ("--training.batch", "8", *ONE_WAY)
    made, why = planned_run(*few)
    assert made.training.steps == 3000
    brings = "--steps 10000 brings a wider encoder, targets standardised per feature and a slower teacher, and most"
    assert brings in why
    own = ("--encoder.heads", "3", "--ijepa.momentum", "0.996", "1.0")
    assert "--steps 10000 brings targets standardised per feature, and most" in planned_run(*few, *own)[1]
    for told in (("--steps", "2999"), ("--objective", "mae")):
        assert "brings" not in planned_run(*few, *told)[1]


@pytest.mark.usefixtures("unmeasured")
def test_a_saved_experiment_has_its_looks_by_the_length_asked_for_and_says_what_becomes_of_images(
    run, tmp_path, planned_run
):
    options = ["--experiment", str(run / "experiment.json"), "--workers", "0", "--steps", "1200"]
    made, why = planned_run(*options)
    assert made.training.watch_every == 100
    assert why == "taken from a saved experiment.json"
    large = stripes(tmp_path / "large", count=10, size=(40, 48))
    assert "(images are resized to 32x32 px from about 40x48; mean and" in planned_run(*options, data=large)[1]


def test_time_for_a_long_run_is_given_to_the_wider_encoder(planned_run, monkeypatch):
    # Real steps, looked at no longer than it takes to tell whether half a minute, or hours, have room for 10,000.
    seconds = costing._seconds
    monkeypatch.setattr(costing, "_seconds", lambda trial, way, look, most: seconds(trial, way, min(look, 1.0), most))
    short, _ = planned_run("--minutes", "0.5", "--training.batch", "2", *ONE_WAY)
    long, why = planned_run("--minutes", "600", "--training.batch", "2", *ONE_WAY)
    assert (short.encoder.width, long.encoder.width) == (192, 256)
    assert "targets standardised per feature" in why
    assert long.training.steps > short.training.steps
    assert long.training.watch_every == max(50, long.training.steps // 12)


def test_the_number_of_loader_processes_is_measured_unless_it_is_given(images, monkeypatch, capsys):
    plain = [*SMALL[: SMALL.index("--training.workers")], "--steps", "100", "--dry-run"]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)

    def planned(*arguments: str) -> str:
        assert call("pretrain", images, *plain, *arguments) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "loader 1 process, " in planned()
    assert "loader 2 processes, " in planned("--workers", "2")
    assert "loader in this process, " in planned("--training.workers", "0")

    def slowly(source, index, at_least=None):
        time.sleep(0.1)
        return read(source, index, at_least)

    read = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", slowly)
    said = planned()
    # A batch of 8 takes 0.8 s, a step a hundredth of that: all cores but one, and 100 steps wait for the batches.
    assert "loader 5 processes, " in said
    assert float(said.split("estimate ")[1].split(" seconds")[0]) > 12


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_the_command_line_keeps_freed_memory_and_lets_threads_sleep():
    code = """
import os, sys
from openjepa.cli import suit_the_process
if sys.argv[1] == "suited":
    suit_the_process()
block = bytearray(2**27)
del block
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"), os.environ.get("OMP_WAIT_POLICY"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    plain, suited = (
        subprocess.run(
            [sys.executable, "-c", code, way], env=environment, check=True, capture_output=True, text=True
        ).stdout.split()
        for way in ("plain", "suited")
    )
    assert int(suited[0]) - int(plain[0]) > 2**26
    assert (plain[1], suited[1]) == ("None", "PASSIVE")


def _huge_pages_on_request() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[madvise]" in setting.read_text()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.skipif(not _huge_pages_on_request(), reason="the kernel gives huge pages to all or to none")
def test_memory_of_the_command_line_is_in_huge_pages():
    code = """
import sys
from openjepa.cli import suit_the_process
if sys.argv[1] == "suited":
    suit_the_process()
    suit_the_process()
kept = [bytearray(b"x" * 2**26) for _ in range(3)]
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")))
"""
    plain, suited = (
        int(subprocess.run([sys.executable, "-c", code, way], check=True, capture_output=True, text=True).stdout)
        for way in ("plain", "suited")
    )
    assert suited - plain > 3 * 2**15  # KiB: half of the three blocks, for the kernel may be short of huge pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize("trouble", ["a limit on memory", "blocks that are written over"])
def test_no_room_for_huge_pages_is_asked_for_where_it_is_not_free(trouble):
    code = """
import resource, sys
from openjepa.cli import suit_the_process
if sys.argv[1] == "a limit on memory":
    resource.setrlimit(resource.RLIMIT_AS, (2**45, 2**45))
suit_the_process()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")))
"""
    environment = os.environ | ({"MALLOC_PERTURB_": "85"} if trouble.startswith("blocks") else {})
    told = subprocess.run([sys.executable, "-c", code, trouble], env=environment, check=True, capture_output=True)
    assert int(told.stdout) < 2**20  # KiB


@pytest.mark.usefixtures("unjudged")
def test_a_saved_experiment_is_turned_to_another_objective(run, images, tmp_path, capsys):
    saved, other = run / "experiment.json", tmp_path / "mae"
    assert call("pretrain", images, "--experiment", saved, "--objective", "mae", "--steps", "2", "--out", other) == 0
    capsys.readouterr()
    one, two = (json.loads((folder / "experiment.json").read_text()) for folder in (run, other))
    assert (one["method"], two["method"]) == ("ijepa", "mae")
    assert one["encoder"] == two["encoder"]
    assert one["schedule"] != two["schedule"]
    assert "masked autoencoder" in (other / "encoder" / "README.md").read_text()
    assert "pixels of every outlined block" in (other / "report.html").read_text()
    again = ("--experiment", other / "experiment.json", "--objective", "ijepa", "--steps", "2", "--out", tmp_path / "c")
    assert "an ijepa one can be turned" in refused(capsys, "pretrain", images, *again)


@pytest.mark.usefixtures("only_trained")
def test_a_saved_experiment_is_begun_again(run, images, tmp_path):
    again = tmp_path / "again"
    assert (
        call("pretrain", images, "--out", again, "--experiment", run / "experiment.json", "--training.workers", "0")
        == 0
    )
    one, other = (checkpoints.load_newest(r / "checkpoints")[0].state for r in (run, again))
    assert all(torch.equal(tensor, other["objective"][name]) for name, tensor in one["objective"].items())


@pytest.mark.usefixtures("only_trained")
def test_ctrl_c_saves_and_resume_gives_the_same_run(images, tmp_path):
    arguments = ["pretrain", str(images), "--steps", "60", *SMALL, *ONE_WAY]
    assert call(*arguments, "--out", tmp_path / "straight") == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "openjepa", *arguments, "--out", str(tmp_path / "cut")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "openjepa resume" in said
    assert "Traceback" not in said
    done = checkpoints.load_newest(tmp_path / "cut" / "checkpoints")[0].step
    assert 5 < done < 60
    assert call("resume", tmp_path / "cut", "--workers", "0") == 0
    one, other = (checkpoints.load_newest(tmp_path / r / "checkpoints")[0].state for r in ("straight", "cut"))
    assert all(torch.equal(tensor, other["objective"][name]) for name, tensor in one["objective"].items())


def test_a_run_that_is_killed_leaves_the_encoder_of_its_last_checkpoint(images, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "openjepa", "pretrain", str(images), "--steps", "100000", *SMALL),
            *("--out", str(run), "--training.save-every", "4", "--training.keep", "100000"),
        ],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (run / "checkpoints" / "step-8").exists():
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=60)
    exported = openjepa.load(run).encoder.state_dict()
    saved = [checkpoints.load(run / "checkpoints" / f"step-{n}") for n in checkpoints.steps(run / "checkpoints")[-2:]]
    assert any(
        all(torch.equal(tensor, one.state["objective"][f"target_encoder.{name}"]) for name, tensor in exported.items())
        for one in saved
    )


@pytest.mark.parametrize(
    "shard",
    [
        (),
        ("--training.shard",),
        ("--training.shard", "--objective", "denoising"),
        ("--training.shard", "--optimizer.matrices", "muon"),
        (
            "--training.no-shard",
            "--optimizer.matrices",
            "muon",
            "--optimizer.clip",
            "0.5",
            "--training.accumulate",
            "2",
        ),
        ("--training.shard", "--training.accumulate", "2"),
    ],
)
@pytest.mark.usefixtures("only_trained")
def test_two_processes_give_the_run_of_one(images, tmp_path, shard):
    arguments = ["pretrain", str(images), "--steps", "6", *SMALL, "--training.precision", "float32"]
    arguments += ["--device", "cpu"]  # also where there is one GPU
    if "denoising" not in shard:
        arguments += ["--ijepa.variance-covariance", "0.1"]  # a term of the whole step, not of a process' share
    assert call(*arguments, *shard[1:], "--out", tmp_path / "one") == 0
    program = ["-m", "openjepa"]
    if shard:  # the first goes on to its evaluation and report
        program = [str(tmp_path / "only_trained.py")]
        Path(program[0]).write_text(
            "import openjepa.cli.training\nopenjepa.cli.training._finish = lambda *_: 0\nopenjepa.cli.main()\n"
        )
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program, *arguments]
    ended = subprocess.run(
        [sys.executable, "-m", *launch, "--out", str(tmp_path / "two"), *shard],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert (tmp_path / "two" / "report.html").is_file() == (not shard)
    one, other = (checkpoints.load_newest(tmp_path / r / "checkpoints")[0].state for r in ("one", "two"))
    for name, tensor in one["objective"].items():
        torch.testing.assert_close(tensor, other["objective"][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("world", [1, 2])
def test_one_process_of_several_ends_without_taking_the_interpreter_down(world):
    # PyTorch's gloo threads would abort the process, now and then, if they let go of a tensor after that.
    script = """if True:
        import atexit
        from openjepa.cli import main

        class Last:
            def __del__(self):
                print("taken down", flush=True)

        last = Last()
        atexit.register(print, "cleared up")
        main(["nonsense"])
    """
    environment = {**os.environ, "WORLD_SIZE": str(world)}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 2
    assert "no verb 'nonsense'" in ended.stderr
    assert ended.stdout.split("\n")[:-1] == ["cleared up", "taken down"][: 1 if world > 1 else 2]


def test_import_writes_an_encoder_that_loads(tmp_path, capsys):
    checkpoint = Path(__file__).parent / "parity" / "trace" / "end.pth.tar"
    assert call("import", checkpoint, "--out", tmp_path / "imported", "--num-heads", "3") == 0
    assert openjepa.load(tmp_path / "imported").encode(np.zeros((50, 60, 3), np.uint8)).shape == (1, 48)
    capsys.readouterr()
    assert call("import", checkpoint, "--out", tmp_path / "other") == 2
    assert "--num-heads" in capsys.readouterr().err


def refused(capsys, *arguments: str | Path) -> str:
    """What is said when the input is refused: one sentence on stderr, exit code 2, no traceback."""
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_mistakes_are_told_in_a_sentence(tmp_path, images, run, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is empty (hidden files don't count)" in refused(capsys, "pretrain", empty, "--out", tmp_path / "r")
    assert "there is no file or folder" in refused(capsys, "pretrain", tmp_path / "nowhere", "--out", tmp_path / "r")
    assert "is a run already: go on with it (openjepa resume" in refused(capsys, "pretrain", images, "--out", run)
    assert "say where to put the run, with --out RUN" in refused(capsys, "pretrain", images)
    few = stripes(tmp_path / "few", classes=1, count=5)
    assert "has 5 images to train on; at least 16 are needed" in refused(
        capsys, "pretrain", few, "--out", tmp_path / "r"
    )
    tiny = stripes(tmp_path / "tiny", size=(1, 40))
    assert "typical image is 1x40 px" in refused(capsys, "pretrain", tiny, "--out", tmp_path / "r")
    options = ["--out", tmp_path / "r", "--encoder.depth", "0"]
    assert "leaves nothing to train" in refused(capsys, "pretrain", images, *options)
    assert "give only one of --minutes and --steps" in refused(
        capsys, "pretrain", images, "--out", tmp_path / "r", "--minutes", "1", "--steps", "5"
    )
    assert "a batch of 999 needs as many images and there are 60" in refused(
        capsys, "pretrain", images, "--out", tmp_path / "r", "--training.batch", "999"
    )
    assert "width 192 and 7 heads" in refused(
        capsys, "pretrain", images, "--out", tmp_path / "r", "--encoder.heads", "7"
    )
    assert "there is no recipe 'magic'; choose from auto, small" in refused(
        capsys, "pretrain", images, "--out", tmp_path / "r", "--recipe", "magic"
    )
    assert "context_tokens=60 is not to be had on a grid of (8, 8)" in refused(
        capsys, "pretrain", images, "--out", tmp_path / "r", "--masks.context-tokens", "60"
    )
    assert "no folder that you may write to" in refused(
        capsys, "pretrain", images, "--out", few / "kind0" / "0.png" / "r"
    )
    assert not (tmp_path / "r").exists()
    assert "is not a run: there is no experiment.json in it" in refused(capsys, "resume", images)
    assert "--workers must be 0 or more, got -1" in refused(capsys, "resume", run, "--workers", "-1")
    assert "--bad-images is a share from 0 to 1, got 2.0" in refused(capsys, "resume", run, "--bad-images", "2")
    assert "is not a run: it holds none of experiment.json, plan.json" in refused(capsys, "report", images)
    assert "is no encoder: it holds no config.json" in refused(capsys, "evaluate", images, images)
    assert "there is no verb 'pretran'; choose from pretrain" in refused(capsys, "pretran")
    if not torch.cuda.is_available():
        assert "PyTorch sees no CUDA GPU" in refused(
            capsys, "pretrain", images, "--out", tmp_path / "r", "--device", "cuda"
        )
    spoilt = tmp_path / "experiment.json"
    spoilt.write_text('{"encoder": {"widht": 3}}')
    assert "encoder has unknown settings widht" in refused(
        capsys, "pretrain", images, "--out", tmp_path / "r", "--experiment", spoilt
    )
    spoilt.write_text('{"encoder": {"width": "wide"}}')
    assert "encoder: width is 'wide', which is not" in refused(
        capsys, "pretrain", images, "--out", tmp_path / "r", "--experiment", spoilt
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "nan"], "--minutes must be a number above 0, got nan"),
        (["--epochs", "inf"], "--epochs must be a number above 0, got inf"),
        (["--image-size", "0", "0"], "--image-size needs a height and a width of 2 pixels or more, got (0, 0)"),
        (["--workers", "-1"], "--workers must be 0 or more, got -1"),
        (["--optimizer.betas", "2", "3"], "betas lie in [0, 1), got (2.0, 3.0)"),
        (["--optimizer.eps", "-1"], "eps must be a number of 0 or more, got -1"),
        (["--optimizer.clip", "-1"], "clip must be above 0, got -1"),
        (["--schedule.lr", "nan"], "lr must be a number of 0 or more, got nan"),
        (["--ijepa.target-depths", "9"], "ijepa.target_depths lie between 0 and the encoder's depth of 2, got 9"),
        (["--training.bad-images", "7"], "bad_images is a share from 0 to 1, got 7"),
        (["--bad-images", "7"], "--bad-images is a share from 0 to 1, got 7"),
        (["--bad-images", "0.1", "--training.bad-images", "0.2"], "--bad-images 0.1 and --training.bad-images 0.2 say"),
        (["--encoder.channels", "1"], "on the command line --channels sets all three"),
        (["--steps", "3", "--training.steps", "4"], "give one of --training.steps, --minutes, --epochs and --steps"),
        (["--objective", "mae", "--ijepa.target-norm", "layer", "--masks.targets=2"], "--masks.targets would change"),
        (["--mae.visible", "0.3"], "--mae.visible would change nothing: ijepa is to be trained, and only mae reads"),
        (["--experiment", "{run}/experiment.json", "--denoising.noise", "0.3"], "add --objective denoising"),
        (
            ["--experiment", "{run}/experiment.json", "--recipe", "small"],
            "brings a whole recipe and cannot go with --recipe",
        ),
        (["--experiment", "{run}/pictures.npz"], "pictures.npz cannot be read as text"),
        (["--experiment", "{run}/nowhere"], "there is no file"),
    ],
)
def test_settings_that_make_no_sense_are_told_in_a_sentence(arguments, said, run, images, tmp_path, capsys):
    filled = [argument.format(run=run) for argument in arguments]
    small = [] if "--experiment" in filled else SMALL
    assert said in refused(capsys, "pretrain", images, "--out", tmp_path / "r", *small, *filled)
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("only_trained")
def test_settings_given_on_the_command_line_are_those_of_the_run(run, images, tmp_path, capsys):
    again = tmp_path / "again"
    options = ["--experiment", run / "experiment.json", "--seed", "5", "--workers", "0", "--training.watch-every", "7"]
    assert call("pretrain", images, "--out", again, "--training.steps", "9", *options) == 0
    experiment = Experiment.from_json((again / "experiment.json").read_text(), origin=again)
    training = experiment.training
    assert (experiment.seed, training.workers, training.watch_every, training.steps) == (5, 0, 7, 9)
    rows = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "rankme" in row] == [6, 8]
    # The checks are those of the recipe asked for, not of another one's defaults.
    options = ["--recipe", "published-b16", "--training.accumulate", "4096", "--dry-run"]
    assert "2048 cannot be cut into 4096" in refused(capsys, "pretrain", images, *options)


def test_every_setting_is_explained():
    from openjepa import experiment

    for one in dataclasses.fields(experiment.Experiment):
        if dataclasses.is_dataclass(kind := typing.get_type_hints(experiment.Experiment)[one.name]):
            for setting in dataclasses.fields(kind):
                assert f"\n        {setting.name}: " in (kind.__doc__ or ""), f"{kind.__name__}.{setting.name}"


@pytest.mark.usefixtures("only_trained")
def test_a_run_goes_on_and_is_judged_from_any_folder(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(images.parent)
    run = tmp_path / "run"
    assert call("pretrain", images.name, "--out", run, "--steps", "3", *SMALL) == 0
    monkeypatch.chdir(tmp_path)
    assert call("resume", run) == 0
    capsys.readouterr()
    assert call("evaluate", run) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    assert json.loads((run / "evaluation.json").read_text())["rows"]
    (run / "plan.json").write_text("{")
    assert "plan.json is missing or damaged" in refused(capsys, "resume", run)
    assert "folder that exists" in refused(capsys, "evaluate", run, images, "--json", tmp_path / "no" / "x.json")


@pytest.mark.usefixtures("only_trained")
def test_an_unreadable_image_is_set_aside_by_the_watch_and_the_pictures_too(tmp_path):
    """101 images, the last of which no batch of a hundred shares."""
    images = stripes(tmp_path / "images", classes=1, count=101)
    last = sorted((images / "kind0").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:60])
    run = tmp_path / "run"
    assert call("pretrain", images, "--out", run, "--steps", "14", *SMALL, "--bad-images", "0.05") == 0
    assert last.name in (run / "bad_images.jsonl").read_text()


@pytest.mark.usefixtures("only_trained")
def test_a_run_that_unreadable_images_stopped_goes_on_as_its_message_says(tmp_path, monkeypatch, capsys):
    images, run = stripes(tmp_path / "images", classes=1, count=40), tmp_path / "a run"
    make_run = claiming.make_run

    def spoilt(*planned: typing.Any) -> None:
        """Two images are damaged after the plan, which would have refused them, and keep their names and sizes."""
        make_run(*planned)
        for path in sorted((images / "kind0").iterdir())[:2]:
            whole = path.read_bytes()
            path.write_bytes(whole[:60].ljust(len(whole), b"\0"))

    monkeypatch.setattr(claiming, "make_run", spoilt)
    said = refused(capsys, "pretrain", images, "--out", run, "--steps", "10", *SMALL)
    assert f"openjepa resume '{run}' --bad-images SHARE" in said
    assert call("resume", run, "--bad-images", "0.05") == 0
    assert checkpoints.steps(run / "checkpoints")[-1] == 10


@pytest.mark.parametrize("spoilt", [lambda whole: b"not an image", lambda whole: whole[:60]], ids=["all", "pixels"])
def test_a_plan_with_too_many_unreadable_images_is_refused(tmp_path, capsys, spoilt):
    images = stripes(tmp_path / "images", classes=1, count=40)
    for path in sorted((images / "kind0").iterdir())[:4]:
        path.write_bytes(spoilt(path.read_bytes()))
    said = refused(capsys, "pretrain", images, "--out", tmp_path / "r")
    assert "4 of 40 images looked at cannot be read" in said
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("only_trained")
def test_a_run_stopped_before_its_first_step_is_begun_again(images, tmp_path, capsys):
    """Only what was asked for is in its folder, so the same command may take it, and so may resume."""
    whole, begun, again = (tmp_path / name for name in ("whole", "begun", "again"))
    assert call("pretrain", images, "--out", whole, "--steps", "2", *SMALL) == 0
    for run in (begun, again):
        run.mkdir()
        for name in ("experiment.json", "plan.json"):
            shutil.copy(whole / name, run / name)
    assert call("pretrain", images, "--out", begun, "--steps", "3", *SMALL) == 0
    assert checkpoints.steps(begun / "checkpoints")[-1] == 3
    for name, content in (("experiment.json", '{"seed": 3}'), ("plan.json", '{"monday": "rest"}')):  # a user's own
        mine = tmp_path / f"with {name}"
        mine.mkdir()
        (mine / name).write_text(content)
        assert f"holds a{'n' * name.startswith('e')} {name}" in refused(
            capsys, "pretrain", images, "--out", mine, "--steps", "2", *SMALL
        )
        assert {path.name: path.read_text() for path in mine.iterdir()} == {name: content}
    text = (again / "experiment.json").read_text()
    (again / "experiment.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    assert "openjepa resume" in refused(capsys, "pretrain", images, "--out", again, "--steps", "2", *SMALL)
    assert '"seed": 1' in (again / "experiment.json").read_text()
    facts = json.loads((again / "plan.json").read_text())
    del facts["experiment_sha256"]  # as earlier versions wrote it
    (again / "plan.json").write_text(json.dumps(facts))
    (again / "experiment.json").rename(tmp_path / "moved")
    claiming.check_free(again)
    (again / "experiment.json").write_text('{"monday": "rest"}')
    assert "openjepa resume" not in refused(capsys, "pretrain", images, "--out", again, "--steps", "2", *SMALL)
    (again / "experiment.json").write_text(text)
    assert f"openjepa resume {again}" in refused(capsys, "pretrain", images, "--out", again, "--steps", "2", *SMALL)
    assert call("resume", again) == 0
    weights = [(run / "encoder" / "model.safetensors").read_bytes() for run in (whole, again)]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("only_trained")
def test_a_run_can_go_on_from_before_its_first_step(images, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("openjepa.running.training_batches", lambda *_, **__: (1 // n for n in [0]))
        with pytest.raises(ZeroDivisionError):
            main(["pretrain", str(images), "--out", str(run), "--steps", "4", *SMALL])
        card = run / "encoder" / "README.md"
        card.write_text("mine")
        with pytest.raises(ZeroDivisionError):
            main(["resume", str(run)])
        # It is told at once, and not again at the second save, for the error.
        assert capsys.readouterr().err.count(f"{card} has been edited, and is left as it is") == 1
    assert checkpoints.steps(run / "checkpoints") == [0]
    assert call("resume", run) == 0
    assert checkpoints.steps(run / "checkpoints")[-1] == 4


@pytest.mark.usefixtures("only_trained")
def test_changed_images_are_noticed_on_resume(images, tmp_path, capsys, monkeypatch):
    copy = shutil.copytree(images, tmp_path / "images")
    run = tmp_path / "run"
    assert call("pretrain", copy, "--out", run, "--steps", "2", *SMALL) == 0
    whole = {path: path.read_bytes() for path in copy.rglob("*.png")}
    for path, content in whole.items():
        path.write_bytes(content[:-1] + b"x")
    assert "hold something else" in refused(capsys, "resume", run)
    for path, content in whole.items():
        path.write_bytes(content)
    assert call("resume", run) == 0
    (copy / "kind0" / "0.png").unlink()
    said = refused(capsys, "resume", run)
    assert "not those" in said
    find = f"find {copy} -cnewer {run / 'plan.json'}"
    assert f"Changed or copied since it was planned: {copy / 'kind0'}" in said
    assert find in said
    with pytest.raises(InputError) as told:
        own_data(run, read_experiment(run)[1], first=False)
    assert find not in str(told.value)
    monkeypatch.setattr("openjepa.running._SEARCH", 0.0)
    assert f"Changed or copied since it was planned: {find}" in refused(capsys, "resume", run)
    (run / "experiment.json").write_bytes(b"\xff\xfe")
    assert "experiment.json cannot be read as text" in refused(capsys, "resume", run)


@pytest.mark.usefixtures("only_trained")
def test_a_run_is_told_where_its_images_have_moved(images, tmp_path, capsys):
    before, after, run = tmp_path / "before", tmp_path / "after", tmp_path / "run"
    shutil.copytree(images, before)
    assert call("pretrain", before, "--out", run, "--steps", "2", *SMALL) == 0
    before.rename(after)
    assert f"openjepa resume {run} --data FOLDER" in refused(capsys, "evaluate", run)
    assert "not those" in refused(capsys, "resume", run, "--data", stripes(tmp_path / "others", count=9))
    assert "cannot be opened" in refused(capsys, "resume", run)
    assert call("resume", run, "--data", after) == 0
    assert call("evaluate", run) == 0


def test_help_is_there_for_every_verb(capsys):
    assert call("--help") == 0
    assert "pretrain" in capsys.readouterr().out
    for verb in ("pretrain", "resume", "report", "evaluate", "compare", "import"):
        assert call(verb, "--help") == 0
        said = capsys.readouterr().out
        assert verb in said
        assert max(map(len, said.splitlines()[1:])) <= 80
        assert not re.search(r"default:\s*│?\s*│?\s*(None|\))|``|\w\.py", said)


def test_the_full_suite_in_one_command(run, images, tmp_path, capsys, monkeypatch):
    # That the probes are there and told is the question, not how well they learn.
    monkeypatch.setattr("openjepa.evaluation.catalogue.SGDProbe", partial(SGDProbe, epochs=2))
    monkeypatch.setattr("openjepa.evaluation.catalogue.AttentiveProbe", partial(AttentiveProbe, epochs=1))
    monkeypatch.setattr("openjepa.evaluation.catalogue.LowShot", partial(LowShot, shots=(2,), repeats=2))
    before = json.loads((run / "evaluation.json").read_text())
    copy = shutil.copytree(run, tmp_path / "run")
    arguments = ["evaluate", copy, "--suite", "full", "--cache", tmp_path / "cache", "--json", tmp_path / "found.json"]
    arguments += ["--scene-count", "200", "200", "--finetune-epochs", "1"]
    assert call(*arguments) == 0
    said = capsys.readouterr()
    found = json.loads((copy / "evaluation.json").read_text())
    exported = json.loads((copy / "exported.json").read_text())["step"]
    assert found == json.loads((tmp_path / "found.json").read_text()) | {"step": exported}
    rows = found["rows"]
    assert rows[: len(before["rows"])] == before["rows"]  # the quick ones are the same, and come first
    assert {row["task"].split(":")[0] for row in rows} == {"classes", "rotation", "robustness", "scenes", "fine-tuning"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    rows = [row for row in rows if row["task"] == "classes"]
    evaluators = {row["evaluator"] for row in rows}
    assert evaluators >= {
        "k-NN, k chosen",
        "logistic regression, C up to 1000",
        "linear probe, last four blocks",
        "attentive probe",
        "low-shot",
        "retrieval",
    }
    assert {name for name in evaluators if name.startswith("SGD")} == {
        f"SGD probe{norm}{part}" for norm in ("", " with BatchNorm") for part in ("", ", last four blocks")
    }
    for evaluator in evaluators:
        assert {row["features"] for row in rows if row["evaluator"] == evaluator} == {
            *("trained encoder", "random encoder", "raw pixels")
        }, evaluator
    compared = {(row["evaluator"], row["metric"], row["against"]) for row in found["differences"]}
    assert {("retrieval", "mAP", "raw pixels"), ("attentive probe", "accuracy", "raw pixels")} <= compared
    for name in evaluators:
        assert name.split(",")[0].split()[0] in said.out
    assert said.err == ""  # no bar where there is no terminal
    card = (copy / "encoder" / "README.md").read_text()
    assert "| trained encoder | retrieval | mAP |" in card
    assert "12 of 12" in card
    page = (copy / "report.html").read_text()
    assert "classes: all other measures" in page
    assert "C up to 1000" in page
    headline = page.split("<h1>")[1].split("</h1>")[0]
    assert "k-NN" in headline
    assert not any(name in headline for name in ("SGD", "retrieval", "low-shot"))  # the pair's words alone

    # Again: features come from the cache, so an encoder that is never called gives the same rows.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openjepa.encoder.Encoder.forward", lambda *_: 1 / 0)
        patch.setattr("openjepa.encoder.Encoder.tokens", lambda *_: 1 / 0)
        assert call("evaluate", copy, "--only", "retrieval", "knn", "--cache", tmp_path / "cache") == 0
        with pytest.raises(ZeroDivisionError):
            main(["evaluate", str(copy), "--only", "retrieval", "--no-cache"])
    # What was not asked again stays, in its place.
    assert json.loads((copy / "evaluation.json").read_text())["rows"] == found["rows"]


def test_what_a_run_computed_for_its_own_evaluation_is_kept(images, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert call("pretrain", images, "--out", run, "--steps", "2", *SMALL) == 0
    monkeypatch.setattr("openjepa.assessment.extraction._compute", lambda *_: 1 / 0)
    assert call("evaluate", run) == 0


def test_features_of_somebody_else_are_judged(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 30)):
        labels = np.arange(count) % 3
        np.save(tmp_path / f"{part}.npy", np.eye(3)[labels] + 0.1 * generator.normal(size=(count, 3)))
        np.save(tmp_path / f"{part}_labels.npy", labels)
    assert call("evaluate", tmp_path) == 0
    said = capsys.readouterr().out
    assert "given features" in said
    assert "random encoder is not available" in " ".join(said.split())
    assert call("evaluate", tmp_path, "--suite", "full") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Not available without the network: rotation, robustness, scenes, finetune." in said


def test_mistakes_in_an_evaluation_are_told_in_a_sentence(run, images, tmp_path, capsys):
    assert "there is no file or folder" in refused(capsys, "evaluate", tmp_path / "nope")
    assert "choose from quick, full" in refused(capsys, "evaluate", run, "--suite", "best")
    assert "no evaluator 'svm'; choose from knn" in refused(capsys, "evaluate", run, "--only", "svm")
    assert "one of --cache and --no-cache" in refused(capsys, "evaluate", run, "--cache", tmp_path, "--no-cache")
    assert "is a file" in refused(capsys, "evaluate", run, "--cache", images / "kind0" / "0.png")
    assert "labels.npy" in refused(capsys, "evaluate", tmp_path / "mine.npy")


def test_an_unlabelled_run_reports_on_the_labelled_images_it_is_shown(images, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        (flat / f"{number}.png").write_bytes(path.read_bytes())
    run = tmp_path / "my run"
    assert call("pretrain", flat, "--out", run, "--steps", "2", *SMALL) == 0
    assert "FOLDER_WITH_ONE_SUBFOLDER_PER_CLASS" in (run / "report.html").read_text()
    assert call("evaluate", run, images, "--no-cache") == 0
    assert "written: " in capsys.readouterr().out
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    assert {row["features"] for row in rows} == {"trained encoder", "random encoder", "raw pixels"}
    assert "FOLDER_WITH_ONE_SUBFOLDER_PER_CLASS" not in (run / "report.html").read_text()
    # Nor does the evaluation of its own, unlabelled images take them away again.
    assert call("resume", run) == 0
    assert json.loads((run / "evaluation.json").read_text())["rows"] == rows


def test_a_rare_class_is_set_aside_and_named(tmp_path, capsys):
    images = stripes(tmp_path / "images")
    (images / "rare").mkdir()
    for number, path in enumerate(sorted((images / "kind0").glob("*.png"))[:2]):
        path.rename(images / "rare" / f"{number}.png")
    run = tmp_path / "run"
    assert call("pretrain", images, "--out", run, "--steps", "2", *SMALL) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 4 classes, with fewer than 3 images (rare; 2 images in all)" in said
    assert json.loads((run / "evaluation.json").read_text())["rows"]


@pytest.mark.usefixtures("only_trained")
def test_an_image_smaller_than_a_patch_is_named_and_enlarged(tmp_path, capsys):
    images = stripes(tmp_path / "images")
    Image.new("RGB", (1, 1), "red").save(images / "kind1" / "dot.png")
    run = tmp_path / "run"
    assert call("pretrain", images, "--out", run, "--steps", "8", *SMALL) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "smaller than a patch, and enlarged: kind1/dot.png of 1x1 px" in said
    assert not (run / "bad_images.jsonl").exists()


def test_ctrl_c_in_the_evaluation_leaves_a_finished_run_and_says_so(images, tmp_path, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("openjepa.assessment.judge", interrupted)
    run = tmp_path / "my run"
    assert call("pretrain", images, "--out", run, "--steps", "2", *SMALL) == 130
    said = capsys.readouterr().out
    assert f"the training is done and saved. Evaluate with: openjepa evaluate '{run}'" in said
    assert (run / "report.html").is_file()
    monkeypatch.undo()
    assert call("resume", run) == 0
    assert json.loads((run / "evaluation.json").read_text())["rows"]


def test_a_loader_process_that_is_killed_is_a_sentence(images, tmp_path, monkeypatch, capsys):
    def killed(*_: object, **__: object) -> None:
        raise LoaderError("a loader process was killed")

    monkeypatch.setattr("openjepa.assessment.judge", killed)
    trained = tmp_path / "run"
    assert call("pretrain", images, "--out", trained, "--steps", "2", *SMALL) == 1
    said = capsys.readouterr().err
    assert f"not evaluated: a loader process was killed. Evaluate with: openjepa evaluate {trained}" in said
    monkeypatch.setattr("openjepa.planning.measure", killed)
    assert call("pretrain", images, "--dry-run", *SMALL) == 1
    assert "openjepa pretrain: a loader process was killed" in capsys.readouterr().err


def test_a_run_whose_labels_say_too_little_still_has_its_report(tmp_path, capsys):
    images = stripes(tmp_path / "images", classes=1)
    (images / "kind1").mkdir()
    for number, path in enumerate(sorted((images / "kind0").glob("*.png"))[:2]):
        path.rename(images / "kind1" / f"{number}.png")
    run = tmp_path / "run"
    assert call("pretrain", images, "--out", run, "--steps", "2", *SMALL) == 0
    assert "cannot be evaluated on these images: evaluation needs at least 2 classes" in capsys.readouterr().err
    assert (run / "report.html").is_file()


def test_a_labelled_run_keeps_to_its_own_images(run, tmp_path, capsys):
    others = stripes(tmp_path / "others", classes=2)
    before = (run / "evaluation.json").read_text()
    assert call("evaluate", run, others, "--no-cache") == 0
    assert "not kept" in capsys.readouterr().out
    assert (run / "evaluation.json").read_text() == before


@contextmanager
def another_process_holds(folder: Path) -> Iterator[None]:
    program = f"""if True:
        from pathlib import Path
        from openjepa.files import locked
        with locked(Path({str(folder / LOCK)!r})) as free:
            print(free, flush=True)
            input()
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "True\n"
            yield
        finally:
            other.communicate("\n")


def test_a_folder_is_trained_in_by_one_process_at_a_time(run, images, tmp_path, capsys):
    with another_process_holds(run):
        assert "is being trained by another process" in refused(capsys, "resume", run)
    planned = tmp_path / "run"
    planned.mkdir()
    (planned / "plan.json").write_text('{"experiment_sha256": "of the process that is beginning now"}')
    with another_process_holds(planned):
        assert "is being trained by another process" in refused(
            capsys, "pretrain", images, "--out", planned, "--steps", "1"
        )
    assert {path.name for path in planned.iterdir()} == {"plan.json", LOCK}
    assert "of the process that is beginning now" in (planned / "plan.json").read_text()


@pytest.mark.usefixtures("only_trained")
def test_a_draft_that_a_kill_has_left_is_in_nobodys_way(images, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".plan.json.0a1b2c3d.part").write_text("{")
    assert call("pretrain", images, "--out", run, "--steps", "1", *SMALL) == 0


def test_without_a_standard_output_there_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m openjepa pretrain --help >&-"
    ended = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_comes_to_nothing_leaves_no_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "is empty" in refused(capsys, "pretrain", tmp_path / "empty", "--out", tmp_path / "run", "--steps", "1")
    assert not (tmp_path / "run").exists()
    assert "is empty" in refused(capsys, "pretrain", tmp_path / "empty", "--out", tmp_path / "new" / "a")
    assert not (tmp_path / "new").exists(), "nor those above it"
    (tmp_path / "old").mkdir()
    assert "is empty" in refused(capsys, "pretrain", tmp_path / "empty", "--out", tmp_path / "old" / "a")
    assert not any((tmp_path / "old").iterdir())


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """What a full disk does to whoever writes a large file, and to nobody else."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("only_trained")
@pytest.mark.parametrize("verb", ["resume", "pretrain"])
def test_a_run_that_a_full_disk_stopped_before_its_first_step_goes_on(images, tmp_path, capsys, verb):
    run = tmp_path / "run"
    asked = ("pretrain", images, "--out", run, "--steps", "2", *SMALL)
    with no_file_above(40_000):
        said = refused(capsys, *asked)
    assert re.search(r"cannot write the checkpoint .*run/checkpoints/step-0: File too large\. Free some space", said)
    assert not any((run / "checkpoints").iterdir())
    capsys.readouterr()
    assert call(*(asked if verb == "pretrain" else ("resume", run))) == 0
    assert checkpoints.steps(run / "checkpoints")[-1] == 2


@pytest.mark.usefixtures("only_trained")
def test_what_was_saved_stays_when_the_disk_is_full(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    encoder = (copy / "encoder" / "model.safetensors").read_bytes()
    longer = json.loads((copy / "experiment.json").read_text())
    longer["training"]["steps"] = 14
    (copy / "experiment.json").write_text(json.dumps(longer))
    with no_file_above(40_000):
        assert "cannot write the checkpoint" in refused(capsys, "resume", copy)
    assert checkpoints.steps(copy / "checkpoints") == checkpoints.steps(run / "checkpoints")
    assert (copy / "encoder" / "model.safetensors").read_bytes() == encoder
    assert call("resume", copy) == 0
    assert checkpoints.steps(copy / "checkpoints")[-1] == 14


def test_names_that_are_no_unicode_are_printed_all_the_same(tmp_path):
    images = stripes(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), classes=2)
    (images / "kind0").rename(Path(os.fsdecode(os.fsencode(images) + b"/\xfe")))
    Path(os.fsdecode(os.fsencode(images) + b"/\xfd.txt")).write_text("no image")
    command = [sys.executable, "-m", "openjepa", "pretrain", images, "--out", images / "run", "--steps", "2", *SMALL]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "500"}
    ended = subprocess.run(command, env=strict, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "\ufffd.txt: not an image" in ended.stdout
    assert f"({tmp_path}/\ufffd)" in ended.stdout
    plan = json.loads((images / "run" / "plan.json").read_text())
    assert Path(plan["data"]["opened"]) == images


def test_names_are_printed_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    images = stripes(tmp_path / "a[bold]b :smile:", classes=2)
    (images / "kind0").rename(images / "[red]")
    assert call("pretrain", images, "--dry-run", "--steps", "2", *SMALL) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a[bold]b :smile:" in printed
    assert "[bold]images" not in printed


def test_a_path_that_cannot_be_is_a_sentence(images, run, tmp_path, capsys):
    for verb, *arguments in (
        ("pretrain", "~no-such-user-here/images", "--dry-run"),
        ("pretrain", images, "--out", "~no-such-user-here/run"),
        ("pretrain", images, "--dry-run", "--experiment", "~no-such-user-here/experiment.json"),
        ("resume", "~no-such-user-here/run"),
        ("resume", run, "--data", "~no-such-user-here/images"),
        ("evaluate", "~no-such-user-here/run"),
        ("compare", images, "--steps", "1", "--out", "~no-such-user-here/compared"),
    ):
        assert "home folder of a user who is not known" in refused(capsys, verb, *arguments)
    assert "File name too long" in refused(capsys, "resume", "x" * 300)
    assert "File name too long" in refused(capsys, "pretrain", images, "--out", tmp_path / ("x" * 300))


def test_a_command_is_written_for_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("full", "mine", "7", "compared"):
        Path(name).mkdir()

    def told(*arguments: str, named: tuple[str | Path, ...]) -> list[str]:
        return shlex.split(from_anywhere("verb", list(arguments), named))[2:]

    mine, seven = str(tmp_path / "mine"), str(tmp_path / "7")
    assert told("--suite", "full", "mine", named=(Path("mine"),)) == ["--suite", "full", mine]
    assert told("--suite=full", "full", named=("full",)) == ["--suite=full", str(tmp_path / "full")]
    assert told("mine", "--only", "knn", "full", named=("full", "mine")) == [mine, "--only", "knn", "full"]
    assert told("--limit", "7", "7", named=("7",)) == ["--limit", "7", seven]
    assert told("--scene_count", "7", "7", named=("7",)) == ["--scene_count", "7", "7"]
    assert told("--no-cache", "mine", "--json=mine", named=("mine",)) == ["--no-cache", mine, f"--json={mine}"]


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"]])
def test_a_reader_who_has_seen_enough_is_no_error(arguments):
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "openjepa", *arguments]
    ended = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert ended.stderr == ""
    assert ended.returncode in (1, 141)  # rich has a code of its own


def test_names_steer_no_terminal(tmp_path, capsys):
    images = tmp_path / "a\x1b[2Jb\u202ec\u009bमी\u200dन"  # the last with a joiner, as names in Hindi have it
    assert "a\\x1b[2Jb\\u202ec\\x9bमी\u200dन" in refused(capsys, "pretrain", images, "--dry-run")
    images.mkdir()
    (images / "\x1b]0;title\x07.txt").write_text("no image")
    said = refused(capsys, "pretrain", images, "--dry-run")
    assert "\\x1b]0;title\\x07.txt" in said
    assert "\x1b" not in said


def test_what_was_found_is_kept_before_it_is_printed(run, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "evaluation.json").write_text('["damaged"]')

    def nobody_listens(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "log")

    monkeypatch.setattr("openjepa.cli.evaluation.print_evaluation", nobody_listens)
    assert "No space left" in refused(capsys, "evaluate", copy, "--only", "knn", "--json", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["rows"]
    assert json.loads((copy / "evaluation.json").read_text())["rows"]
    assert (copy / "evaluation.json.damaged-1").read_text() == '["damaged"]'
    # Where it could not be kept, that is found out first.
    monkeypatch.setattr("openjepa.cli.evaluation._judged", lambda *_: 1 / 0)
    monkeypatch.setattr("tempfile.TemporaryFile", nobody_listens)
    before = (tmp_path / "found.json").read_bytes()
    said = refused(capsys, "evaluate", copy, "--json", tmp_path / "found.json")
    assert "found.json cannot be written (No space" in said
    assert (tmp_path / "found.json").read_bytes() == before


def test_what_a_disk_refuses_is_a_sentence(run, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "evaluation.json")

    monkeypatch.setattr("openjepa.cli.evaluation.write_whole", full)
    said = refused(capsys, "evaluate", run, "--no-cache")
    assert "evaluation.json): No space left on device" in said
