"""What a record keeps of an earlier one, and what is drawn to fine-tune on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from openjepa.assessment.tasks import joined
from openjepa.cli import evaluation, main


def row(task, evaluator, value=0.5, features="trained encoder"):
    return {"task": task, "evaluator": evaluator, "features": features, "metric": "accuracy", "value": value}


def record(rows, *, encoder="a", train=100, images="digest", **rest):
    return {
        "encoder": encoder, "data": "own", "train_images": train, "test_images": train // 4, "rows": rows,
        "images": images, "differences": [], "spectrum": {}, "notes": [], "command": "now", **rest,
    }  # fmt: skip


BEFORE = record(
    [
        row("classes", "k-NN"), row("classes", "low-shot"), row("scenes: count", "k-NN"),
        row("fine-tuning", "fine-tuning"),
    ],
    command="before", notes=["old"], tasks={"scenes": {"train_images": 200}},
)  # fmt: skip


def test_what_is_not_measured_again_stays_in_its_place():
    whole = joined(BEFORE, record([row("classes", "k-NN", 0.7)]))
    assert [(r["task"], r["evaluator"], r["value"]) for r in whole["rows"]] == [
        ("classes", "k-NN", 0.7),
        ("classes", "low-shot", 0.5),
        ("scenes: count", "k-NN", 0.5),
        ("fine-tuning", "fine-tuning", 0.5),
    ]
    assert whole["tasks"] == BEFORE["tasks"]


def test_a_task_alone_leaves_the_head_as_it_was():
    whole = joined(BEFORE, record([row("scenes: count", "k-NN", 0.9)], train=0, notes=["new"]))
    assert (whole["command"], whole["train_images"], whole["notes"]) == ("before", 100, ["old", "new"])
    assert len(whole["rows"]) == 4


def test_of_other_scenes_nothing_is_kept():
    now = record([row("scenes: count", "linear probe", 0.9)], train=0, tasks={"scenes": {"train_images": 100}})
    whole = joined(BEFORE, now)
    assert [r["evaluator"] for r in whole["rows"] if r["task"] == "scenes: count"] == ["linear probe"]
    same = joined(BEFORE, now | {"tasks": BEFORE["tasks"]})
    assert [r["evaluator"] for r in same["rows"] if r["task"] == "scenes: count"] == ["k-NN", "linear probe"]


def test_nothing_of_another_encoder_is_kept():
    now = record([row("scenes: count", "k-NN", 0.9)], encoder="b", train=0)
    assert joined(BEFORE, now) == now
    assert joined({}, now) == now


def test_other_images_leave_only_what_brings_its_own():
    whole = joined(BEFORE, record([row("classes", "k-NN", 0.7)], images="other"))
    assert [r["task"] for r in whole["rows"]] == ["classes", "scenes: count"]


def test_the_same_images_are_known_however_they_are_named():
    whole = joined(BEFORE, record([row("classes", "retrieval", 0.7)], data="/home/me/own"))
    assert len(whole["rows"]) == len(BEFORE["rows"]) + 1


def test_a_look_at_images_without_labels_replaces_nothing():
    unlabelled = record([], data="other", test_images=0, images=None, summary="RankMe only")
    whole = joined(BEFORE, unlabelled)
    assert (whole["rows"], whole["data"], whole["test_images"]) == (BEFORE["rows"], "own", 25)
    assert "RankMe" not in whole.get("summary", "")
    assert joined(unlabelled, unlabelled)["summary"] == "RankMe only"


SEGMENTED = row("segmentation", "patch k-NN")
FEW = record(
    [row("classes", "k-NN"), SEGMENTED],
    notes=["1 of 100 images could not be read.", "segmentation: with 2 test images"],
    tasks={"segmentation": {"test_images": 2}},
)


def test_a_note_on_a_task_lasts_as_long_as_its_rows():
    assert joined(FEW, record([row("classes", "k-NN")], notes=["new"]))["notes"] == [*FEW["notes"], "new"]
    again = record([SEGMENTED], train=0, tasks={"segmentation": {"test_images": 40}})
    assert joined(FEW, again)["notes"] == FEW["notes"][:1]


def test_what_was_said_of_uneven_classes_is_not_said_twice():
    uneven = "The classes are uneven: {}."
    before = FEW | {"notes": [*FEW["notes"], uneven.format("as an older version said it")]}
    now = record([row("classes", "k-NN")], notes=[uneven.format("as it is said now")])
    assert joined(before, now)["notes"] == [*FEW["notes"], uneven.format("as it is said now")]
    assert before["notes"][2] in joined(before, record([SEGMENTED], train=0))["notes"]


def test_a_note_on_images_goes_with_them():
    other = record([row("classes", "k-NN")], images="other", notes=["new"])
    assert joined(FEW, other)["notes"] == [FEW["notes"][1], "new"]
    unlabelled = record([], test_images=0, images=None, notes=["1 of 40 images could not be read."])
    assert joined(unlabelled, record([], test_images=0, images=None))["notes"] == []


def unlabelled(evaluator, value, images="own", **rest):
    facts = {"images": images, "train_images": 80, "test_images": 20}
    return record([row("rotation", evaluator, value)], test_images=0, images=None, tasks={"rotation": facts}, **rest)


def test_turned_images_of_two_sets_are_not_mixed():
    before = joined(unlabelled("k-NN", 0.5), unlabelled("linear probe", 0.6))
    assert [r["evaluator"] for r in before["rows"]] == ["k-NN", "linear probe"]
    after = joined(before, unlabelled("k-NN", 0.9, images="others"))
    assert [(r["evaluator"], r["value"]) for r in after["rows"]] == [("k-NN", 0.9)]
    assert after["tasks"]["rotation"]["images"] == "others"
    labelled = joined(before, record([row("classes", "k-NN")]))
    assert {r["task"] for r in labelled["rows"]} == {"classes", "rotation"}


def test_a_task_alone_leaves_the_head_of_images_without_labels():
    before = unlabelled("k-NN", 0.5, notes=["5 of 100 images could not be read."], summary="head")
    whole = joined(before, record([row("scenes: count", "k-NN")], train=0, summary=""))
    assert (whole["summary"], whole["train_images"], whole["notes"]) == ("head", 100, before["notes"])
    assert len(whole["rows"]) == 2


def call(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code or 0


def test_images_without_labels_are_compared_by_what_needs_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("openjepa.comparing._openjepa", call)  # in this process
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(40):
        Image.fromarray(random.integers(0, 255, (16, 16), dtype=np.uint8)).save(tmp_path / "images" / f"{number}.png")
    out = tmp_path / "out"
    asked = ("--objectives", "mae", "--steps", "2", "--scene-count", "200", "200")
    assert call("compare", tmp_path / "images", "--out", out, *asked) == 0
    content = json.loads((out / "compare.json").read_text())
    assert {r["task"].split(":")[0] for r in content["runs"][0]["rows"]} == {"rotation", "scenes"}
    page = (out / "mae-seed0" / "report.html").read_text()
    assert "scenes: position" in page
    assert "asked which way up images are" in page
    page = (out / "compare.html").read_text()
    assert "Your images have no labels. Which way up an image is stands in for labels" in page
    assert "By <b>k-NN</b>: MAE" in page
    capsys.readouterr()
    assert call("evaluate", out / "mae-seed0", "--only", "robustness") == 2
    assert "have no labels" in capsys.readouterr().err


@pytest.mark.usefixtures("only_trained")
def test_a_run_killed_in_its_first_save_is_begun_again(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(20):
        Image.new("L", (16, 16), number * 10).save(tmp_path / "images" / f"{number}.png")
    run = tmp_path / "run"
    assert call("pretrain", tmp_path / "images", "--out", run, "--steps", "1") == 0
    names = {path.name: path.read_text() for path in (run / "experiment.json", run / "plan.json")}
    for start in ("resume", "pretrain"):
        cut = tmp_path / start
        (cut / "checkpoints" / ".writing-step-0").mkdir(parents=True)
        for name, text in names.items():
            (cut / name).write_text(text)
        begin = (
            ("resume", cut) if start == "resume" else ("pretrain", tmp_path / "images", "--out", cut, "--steps", "1")
        )
        assert call(*begin) == 0
        assert (cut / "encoder" / "model.safetensors").is_file()
    # But a run that has logged a step and lost its checkpoints never starts from zero without a word.
    for step in (run / "checkpoints").glob("step-*"):
        step.rename(tmp_path / step.name)
    assert call("resume", run) == 2


def test_two_that_measure_at_a_time_lose_no_rows(tmp_path):
    script = f"""if True:
        import sys, time
        from pathlib import Path
        from types import SimpleNamespace
        from openjepa import assessment, report, running
        from openjepa.assessment import tasks
        from openjepa.cli.evaluation import renewed
        run, joined, name = Path({str(tmp_path)!r}), tasks.joined, sys.argv[1]

        def slowly(before, now):
            time.sleep(2)
            return joined(before, now)

        tasks.joined = slowly
        assessment.open_panel = lambda run: SimpleNamespace(fingerprint="a")
        report.write_report = running.renew_card = lambda run, *rest: run
        row = {row("classes", "k-NN")} | {{"evaluator": name}}
        print("ready", flush=True)
        input()
        renewed(run, {record([])} | {{"rows": [row]}})
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    both = [subprocess.Popen([sys.executable, "-c", script, name], text=True, **pipes) for name in ("k-NN", "low-shot")]
    try:
        for one in both:
            assert one.stdout.readline() == "ready\n"
        for one in both:
            one.stdin.write("\n")
            one.stdin.flush()
        assert [one.wait(120) for one in both] == [0, 0]
    finally:
        for one in both:
            one.kill()
            one.communicate()
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert sorted(row["evaluator"] for row in found["rows"]) == ["k-NN", "low-shot"]


def test_a_result_goes_where_json_says_whole_and_through_links(tmp_path, monkeypatch, capsys):
    found = record([row("classes", "k-NN")])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(evaluation, "_judged", lambda given, command: found)
    monkeypatch.setattr(evaluation, "print_evaluation", lambda found: None)

    def written(path) -> str:
        assert evaluation.evaluate_verb(["mine", "--json", str(path)]) == 0
        return capsys.readouterr().out

    old = (tmp_path / "found.json", tmp_path / "same")
    old[0].write_text("old")
    os.link(*old)
    assert str(old[0]) in written("~/found.json")
    assert json.loads(old[0].read_text()) == found
    assert old[1].read_text() == "old", "the new one took its place when it was whole"
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "same")
    written(link)
    assert link.is_symlink()
    assert json.loads(old[1].read_text()) == found
    if os.path.isdir("/dev/fd"):  # as /dev/stdout is where another program reads it
        read, write = os.pipe()
        written(f"/dev/fd/{write}")
        os.close(write)
        with open(read) as pipe:
            assert json.load(pipe) == found
