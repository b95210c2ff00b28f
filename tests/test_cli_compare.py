"""`openjepa compare` from the command line: two objectives on real files, gone on with, and what is refused."""

import html
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa import comparing
from openjepa.cli import main
from openjepa.evaluation.answers import shares
from openjepa.evaluation.folds import WORTH
from openjepa.recipes.small import small


def call(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code or 0


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    for kind, level in (("dark", 90), ("light", 170)):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for number in range(30):
            grey = random.normal(level, 30, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / "images" / kind / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A saved experiment whose encoder takes next to no time."""
    made = small(signal=(16, 16), patch=(4, 4), mean=(0.5,), std=(0.25,))
    narrow = replace(made.encoder, width=24, depth=4, heads=2, channels=1)
    made = replace(made, encoder=narrow, training=replace(made.training, batch=15))
    (tmp_path / "tiny.json").write_text(made.to_json())
    return tmp_path / "tiny.json"


def test_objectives_are_trained_judged_and_set_side_by_side(images, tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "side-by-side"
    asked = (
        "compare",
        "images",
        "--out",
        "side-by-side/",
        "--objectives",
        "mae,denoising",
        "--scene-count",
        "200",
        "200",
    )
    asked += ("--experiment", tiny, "--steps", "3")
    assert call(*asked) == 0
    told = capfd.readouterr().out
    assert re.search(r"measure +mae +denoising", told), "the objectives before what they are compared with"
    assert "…" not in told, "no name and no number is cut on a narrow terminal"
    content = json.loads((out / "compare.json").read_text())
    for value in (f"{100 * run['rows'][0]['value']:.1f}" for run in content["runs"]):
        assert value in told
    assert shlex.split(content["command"])[:5] == ["openjepa", "compare", str(images), "--out", str(out)]
    assert [run["folder"] for run in content["runs"]] == ["mae-seed0", "denoising-seed0"]
    for run in content["runs"]:
        assert run["steps"] == 3
        assert run["flops"] == content["plans"][run["objective"]]["facts"]["flops_per_image"]["step"] * 3 * 15
        assert run["untrained"]["rankme"] > 1
        assert {row["task"].split(":")[0] for row in run["rows"]} == {"classes", "robustness", "scenes"}
        assert (out / run["folder"] / "report.html").is_file()
        # Every accuracy of the encoder is kept image by image in the run's folder, and in compare.json none is.
        for row in json.loads((out / run["folder"] / "judged.json").read_text())["rows"]:
            assert ("answers" in row) == (row["features"] == "trained encoder")
            if "answers" in row:
                assert shares(row["answers"]).mean() == pytest.approx(row["value"])
                assert row["answers"]["worth"] == (1 if row["task"].startswith("scenes") else WORTH)
        assert not any("answers" in row for row in run["rows"])
    page = (out / "compare.html").read_text()
    assert "MAE and denoising autoencoder on images" in page
    assert "mae-seed0/report.html" in page
    weights = (out / "mae-seed0" / "encoder" / "model.safetensors").stat().st_mtime_ns
    # Interrupted after the first run, which an older version judged on other images: the second is done anew, the first
    # is left as it is, and they are not averaged.
    judged = out / "mae-seed0" / "judged.json"
    known = judged.read_text()
    judged.write_text(json.dumps(json.loads(known) | {"images": "others"}))
    (out / "denoising-seed0" / "judged.json").unlink()
    capfd.readouterr()
    begun: list[list[str]] = []
    monkeypatch.setattr(comparing, "_openjepa", lambda *command: begun.append([*command]) or 0)
    assert call(*asked) == 2
    assert begun == [
        [
            "evaluate",
            "side-by-side/denoising-seed0",
            *("--only", "robustness", "scenes", "--scene-count", "200", "200"),
        ],
    ]
    assert "mae-seed0 was judged on other images than denoising-seed0" in " ".join(capfd.readouterr().err.split())
    assert (out / "mae-seed0" / "encoder" / "model.safetensors").stat().st_mtime_ns == weights
    judged.write_text(known)
    begun.clear()
    assert call(*asked) == 0
    assert begun == []
    again = json.loads((out / "compare.json").read_text())
    assert [run["rows"][0]["value"] for run in again["runs"]] == [run["rows"][0]["value"] for run in content["runs"]]
    capfd.readouterr()
    assert call(*asked[:-1], "4") == 2
    assert "other settings (steps)" in capfd.readouterr().err


def test_the_full_suite_judges_every_run_in_a_folder_that_need_not_be_named(images, tiny, tmp_path, capfd, monkeypatch):
    """What the commands leave is made up; that they are understood is what `test_the_full_suite_in_one_command` has."""
    begun: list[list[str]] = []

    def leaves(*command: str) -> int:
        begun.append([*command])
        run = Path(command[1])
        if command[0] == "resume":
            row = {"step": 1, "seconds": 1.0, "peak_memory": 2**30}
            (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        else:
            found = [("classes", "attentive probe", name) for name in ("trained encoder", "raw pixels")]
            found += [("fine-tuning", "fine-tuning", name) for name in ("trained encoder", "from scratch")]
            numbers = {"metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "dimensions": 24, "settings": {}}
            named = ("task", "evaluator", "features")
            rows = [dict(zip(named, one, strict=True)) | numbers for one in found]
            (run / "evaluation.json").write_text(json.dumps({"images": "own", "rows": rows}))
        return 0

    monkeypatch.setattr(comparing, "_openjepa", leaves)
    monkeypatch.chdir(tmp_path)
    asked = ("compare", images, "--objectives", "mae", "--steps", "2", "--suite", "full", "--experiment", tiny)
    assert call(*asked, "--scene-count", "200", "200") == 0
    out = tmp_path / "runs" / "compare"
    (trained, judged) = begun
    assert [Path(trained[1]).resolve(), Path(judged[1]).resolve()] == [out / "mae-seed0"] * 2
    assert trained[:1] + trained[2:] == ["resume"]
    assert judged[:1] + judged[2:] == ["evaluate", "--suite", "full", "--scene-count", "200", "200"]
    content = json.loads((out / "compare.json").read_text())
    assert shlex.split(content["command"])[-2:] == ["--out", str(out)]
    assert [run["folder"] for run in content["runs"]] == ["mae-seed0"]
    told = {(row["task"], row["evaluator"]): set(row["values"]) for row in content["summary"]}
    assert told == {
        ("classes", "attentive probe"): {"mae", "raw pixels"},
        ("fine-tuning", "fine-tuning"): {"mae", "from scratch"},
    }
    assert "attentive probe" in capfd.readouterr().out
    assert "attentive probe" in (out / "compare.html").read_text()


@pytest.mark.usefixtures("unjudged")
def test_a_report_gives_the_command_that_compares_at_equal_compute(images, tmp_path, capsys):
    run = tmp_path / "a run"
    small = ("--encoder.width", "24", "--encoder.depth", "1", "--encoder.heads", "2", "--predictor.width", "24")
    assert call("pretrain", images, "--steps", "4", "--out", run, *small, "--workers", "0") == 0
    page = html.unescape((run / "report.html").read_text())
    (line,) = re.findall(r"openjepa compare .+?(?=<)", page)
    command = shlex.split(line)[1:]
    assert Path(command[1]) == images
    assert Path(command[command.index("--experiment") + 1]) == run / "experiment.json"
    plan = json.loads((run / "plan.json").read_text())
    work = 4 * plan["batch"] * plan["flops_per_image"]["step"]
    assert float(command[command.index("--flops") + 1]) == pytest.approx(work, rel=0.01)
    capsys.readouterr()
    # That compare takes it: of all that is asked, only what is added here is wrong.
    assert call(*command, "--suite", "most") == 2
    assert "no suite 'most'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "3", "--objectives", "ijepa,simclr"), "no objective 'simclr'; choose from ijepa, mae, denoising"),
        (("--steps", "3", "--scene-count", "100", "50"), "at least 200 to learn on"),
        (("--steps", "3", "--segmentation", "nowhere", "nowhere"), "nowhere"),
        ((), "one of --minutes, --flops, --steps and --epochs"),
        (("--steps", "3", "--minutes", "1"), "not --minutes and --steps"),
        (("--steps", "3", "--suite", "most"), "no suite 'most'"),
        (("--steps", "3", "--seeds", "0"), "--seeds must be 1 or more"),
        (("--steps", "3", "--bad-images", "2"), "--bad-images is a share from 0 to 1, got 2.0"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(images, tmp_path, capsys, arguments, words):
    assert call("compare", images, "--out", tmp_path / "c", *arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "c").exists()


@pytest.mark.usefixtures("only_trained")
def test_masks_that_cannot_be_read_are_told_before_anything_is_trained(images, tiny, tmp_path, capsys, monkeypatch):
    masks = tmp_path / "masks"
    for path in sorted(images.glob("*/*.png")):
        where = masks / path.parent.name / path.name
        where.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.indices((16, 16)).sum(0) > 15).astype(np.uint8)).save(where)
    where.write_bytes(where.read_bytes()[:50])
    asked = ("compare", images, "--out", tmp_path / "c", "--steps", "2", "--scene-count", "200", "200")
    asked += ("--objectives", "mae", "--experiment", tiny, "--segmentation", images, masks)
    assert call(*asked) == 2
    said = capsys.readouterr().err
    assert "1 of 60 images could not be read, more than 1%" in said
    assert "allow more with --bad-images" in said
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr(comparing, "_openjepa", call)  # in this process
    assert call(*asked, "--bad-images", "0.05") == 0
    content = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert content["plans"]["mae"]["experiment"]["training"]["bad_images"] == 0.05
    assert "segmentation" in {row["task"] for row in content["runs"][0]["rows"]}
