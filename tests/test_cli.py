"""The command line, as a person meets it: real runs on small folders, and a clear sentence for every mistake."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openjepa
from openjepa.cli import main
from openjepa.experiment import Experiment
from openjepa.training import checkpoint as checkpoints

SMALL = [
    *("--encoder.width", "24", "--encoder.depth", "2", "--predictor.width", "24", "--predictor.depth", "1"),
    *("--training.batch", "8", "--training.log-every", "1", "--training.workers", "1"),
]


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
    assert call("pretrain", images, "--out", folder, "--steps", "12", *SMALL) == 0
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
    assert {row["features"] for row in found["rows"]} == {"target encoder", "random encoder", "raw pixels"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in found["rows"])
    report = (run / "report.html").read_text()
    assert "RankMe" in report
    encoder = openjepa.load(run)
    assert encoder.encode(sorted(images.glob("*/*.png"))[:5]).shape == (5, 24)
    assert encoder.encode(images / "kind0" / "0.png", tokens=True).shape == (1, 8, 8, 24)


def test_the_exported_encoder_is_the_target_encoder_of_the_last_checkpoint(run):
    state = checkpoints.load_newest(run / "checkpoints")[0].state["objective"]
    exported = openjepa.load(run).encoder.state_dict()
    for name, tensor in exported.items():
        assert torch.equal(tensor, state[f"target_encoder.{name}"])


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
    assert "has no labels" in capsys.readouterr().out
    assert json.loads((run / "evaluation.json").read_text())["rows"] == []
    assert (run / "report.html").is_file()


def test_a_dry_run_writes_nothing_and_prints_the_plan(images, tmp_path, capsys):
    assert call("pretrain", images, "--out", tmp_path / "run", "--dry-run", "--minutes", "1") == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    for part in ("60 to train on", "32x32", "3 channels", "8x8 tokens", "parameters", "estimate"):
        assert part in said


def test_a_saved_experiment_is_begun_again(run, images, tmp_path):
    again = tmp_path / "again"
    assert (
        call("pretrain", images, "--out", again, "--experiment", run / "experiment.json", "--training.workers", "0")
        == 0
    )
    one, other = (checkpoints.load_newest(r / "checkpoints")[0].state for r in (run, again))
    assert all(torch.equal(tensor, other["objective"][name]) for name, tensor in one["objective"].items())


def test_ctrl_c_saves_and_resume_gives_the_same_run(images, tmp_path):
    arguments = ["pretrain", str(images), "--steps", "60", *SMALL]
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


@pytest.mark.parametrize("shard", [(), ("--training.shard",)])
def test_two_processes_give_the_run_of_one(images, tmp_path, shard):
    arguments = ["pretrain", str(images), "--steps", "6", *SMALL, "--training.precision", "float32"]
    arguments += ["--ijepa.variance-covariance", "0.1"]  # a term of the whole step, not of a process' share
    assert call(*arguments, "--out", tmp_path / "one") == 0
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "openjepa", *arguments]
    ended = subprocess.run(
        [sys.executable, "-m", *launch, "--out", str(tmp_path / "two"), *shard],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    one, other = (checkpoints.load_newest(tmp_path / r / "checkpoints")[0].state for r in ("one", "two"))
    for name, tensor in one["objective"].items():
        torch.testing.assert_close(tensor, other["objective"][name], rtol=1e-4, atol=1e-6)


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
    assert "empty" in refused(capsys, "pretrain", empty, "--out", tmp_path / "r")
    assert "no file or folder" in refused(capsys, "pretrain", tmp_path / "nowhere", "--out", tmp_path / "r")
    assert "resume" in refused(capsys, "pretrain", images, "--out", run)
    assert "--out" in refused(capsys, "pretrain", images)
    few = stripes(tmp_path / "few", classes=1, count=5)
    assert "5 images" in refused(capsys, "pretrain", few, "--out", tmp_path / "r")
    tiny = stripes(tmp_path / "tiny", size=(1, 40))
    assert "smaller than a patch" in refused(capsys, "pretrain", tiny, "--out", tmp_path / "r")
    assert "--minutes and --steps" in refused(
        capsys, "pretrain", images, "--out", tmp_path / "r", "--minutes", "1", "--steps", "5"
    )
    assert "9 heads" not in refused(capsys, "pretrain", images, "--out", tmp_path / "r", "--training.batch", "999")
    assert "heads" in refused(capsys, "pretrain", images, "--out", tmp_path / "r", "--encoder.heads", "7")
    assert "recipe" in refused(capsys, "pretrain", images, "--out", tmp_path / "r", "--recipe", "magic")
    assert "context_tokens=60" in refused(
        capsys, "pretrain", images, "--out", tmp_path / "r", "--masks.context-tokens", "60"
    )
    assert "no folder that you may write to" in refused(
        capsys, "pretrain", images, "--out", few / "kind0" / "0.png" / "r"
    )
    assert "--ijepa.variance-covariance 0" in refused(
        capsys,
        "pretrain",
        images,
        "--out",
        tmp_path / "r",
        *SMALL,
        "--training.accumulate",
        "2",
        "--ijepa.variance-covariance",
        "0.1",
    )
    assert not (tmp_path / "r").exists()
    assert "not a run" in refused(capsys, "resume", images)
    assert "run" in refused(capsys, "report", images)
    assert "config.json" in refused(capsys, "evaluate", images, images)
    assert "no verb" in refused(capsys, "pretran")
    if not torch.cuda.is_available():
        assert "no CUDA GPU" in refused(capsys, "pretrain", images, "--out", tmp_path / "r", "--device", "cuda")
    spoilt = tmp_path / "experiment.json"
    spoilt.write_text('{"encoder": {"widht": 3}}')
    assert "widht" in refused(capsys, "pretrain", images, "--out", tmp_path / "r", "--experiment", spoilt)
    spoilt.write_text('{"encoder": {"width": "wide"}}')
    assert "'wide'" in refused(capsys, "pretrain", images, "--out", tmp_path / "r", "--experiment", spoilt)


def test_changed_images_are_noticed_on_resume(images, tmp_path, capsys):
    copy = shutil.copytree(images, tmp_path / "images")
    run = tmp_path / "run"
    assert call("pretrain", copy, "--out", run, "--steps", "2", *SMALL) == 0
    (copy / "kind0" / "0.png").unlink()
    assert "not those" in refused(capsys, "resume", run)


def test_help_is_there_for_every_verb(capsys):
    assert call("--help") == 0
    assert "pretrain" in capsys.readouterr().out
    for verb in ("pretrain", "resume", "report", "evaluate", "import"):
        assert call(verb, "--help") == 0
        assert verb in capsys.readouterr().out
