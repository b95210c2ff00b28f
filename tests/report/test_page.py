"""The whole page: what it says, that it stands alone, and that nothing in a run folder can break it."""

import ast
import html.parser
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import openjepa.files
import openjepa.report
from openjepa.cli.evaluation import evaluate_verb, renewed
from openjepa.errors import InputError
from openjepa.report import write_report


class Page(html.parser.HTMLParser):
    """A page's text, tags, attributes and ids; fails on tags that do not nest."""

    EMPTY = ("meta", "img", "br", "path", "use", "rect")

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text, self.tags, self.open, self.ids = "", [], [], []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(self.source)
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def written(parts) -> Page:
    return Page(write_report(parts.write()))


def test_a_whole_run_answers_every_question(parts):
    parts.log(30, full=True)
    page = written(parts)
    assert (
        "Training helped: the encoder is ahead of a random one of its shape on k-NN and the linear probe." in page.text
    )
    for heading in ("How good are the features?", "What does it see?", "Curves", "What did it cost?", "What next"):
        assert heading in page.text
    for fact in (
        "79.0 to 81.0",
        "+20.0 points",
        "1,000",
        "15.0 s",
        "1.00 GiB",
        "1.20 GFLOP",
        "bfloat16",
        "torch 2.14.1",
    ):
        assert fact in page.text, fact
    assert '"seed": 7' in page.text
    assert page.tags.count("img") == 3 * 3
    assert page.tags.count("svg") == 9


def test_the_page_loads_nothing_and_runs_nothing(parts):
    page = written(parts)
    assert "script" not in page.tags
    assert "link" not in page.tags
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:60])
    assert not re.search(r"url\((?!#)|@import|https?:", page.source)


def test_pictures_and_charts_have_words_for_those_who_do_not_see_them(parts):
    parts.log(30, full=True)
    page = written(parts)
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == 9
    assert "Picture 1: 2 of 6 tokens seen, 2 target blocks outlined" in alts
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert "RankMe from 3.50 at step 2 to 3.50 at step 29" in labels
    assert len(labels) == 9


def test_links_inside_the_page_lead_somewhere(parts):
    parts.bad_images = [{"reference": "a.jpg", "reason": "truncated"}]
    page = written(parts)
    assert len(page.ids) == len(set(page.ids))
    targets = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href") and value[0] == "#"}
    assert targets <= set(page.ids)
    assert {"evaluation", "pictures", "curves", "cost", "plan", "bad", "next"} <= targets


def test_whatever_names_hold_is_shown_and_never_obeyed(parts):
    evil = "<script>alert('\"&amp;')</script>"
    parts.path = parts.path.parent / "a <b>&\"' run"
    parts.plan["data"] |= {"name": evil, "sizes": evil, "split": evil, "channels": evil, "classes": [evil]}
    parts.plan |= {"device": evil, "objective": evil, "recipe": {"name": evil, "why": evil}, "versions": {evil: evil}}
    parts.plan |= {"masks": {evil: evil}, "image": [evil], "parameters": {evil: 3}, "threads": evil, "precision": evil}
    parts.experiment = {evil: [evil]}
    parts.evaluation |= {"command": evil, "data": evil, "split": evil}
    parts.evaluation["rows"][0] |= {"evaluator": evil}
    parts.evaluation["rows"][1] |= {"features": evil, "metric": evil}
    parts.bad_images = [{"reference": evil, "reason": evil}]
    page = written(parts)
    assert "script" not in page.tags
    assert "b" in page.tags  # the page's own, while the name's stays text
    assert page.text.count(evil) > 10
    assert "a <b>&\"' run" in page.text


def test_a_path_that_is_not_text_is_survived(parts):
    parts.path = Path(os.fsdecode(os.fsencode(parts.path) + b"\xff"))
    assert "run?" in written(parts).text


def test_what_needs_no_labels_stands_in_for_what_does_and_is_called_so(parts):
    parts.plan["data"]["labelled"] = False
    rows = [row | {"task": "rotation"} for row in parts.evaluation["rows"]]
    turned = {"data": "shapes", "classes": 4, "train_images": 80, "test_images": 20, "split": "A fifth."}
    parts.evaluation |= {"rows": rows, "differences": [], "command": "again", "classes": 0, "test_images": 0}
    parts.evaluation["tasks"] = {"rotation": turned}
    page = written(parts)
    assert "asked which way up images are, the encoder is ahead of a random one of its shape on k-NN." in page.text
    assert "k-NN: which way up" in page.text
    assert "It takes labels: which way up an image is, pixels tell by the light" in page.text
    assert "Which way up an image is stands in for labels, which would say more." in page.text
    assert "Guessing among 4 ways of turning gives 25.0%." in page.text
    assert "80 images to fit; 20 to test; 4 ways of turning" in page.text
    assert "Repeat the evaluation" in page.text
    assert "FOLDER_WITH_ONE_SUBFOLDER_PER_CLASS" in page.text


def test_no_labels(parts):
    parts.plan["data"]["labelled"] = False
    parts.evaluation = None
    page = written(parts)
    assert "Not evaluated yet: training finished (loss 0.0367 and RankMe 3.50)" in page.text
    assert "no labels" in page.text
    assert "Online k-NN" in page.text.split("Not logged in this run:")[1][:20]
    assert "openjepa evaluate" in page.text
    assert "%" not in page.text.split("How good are the features?")[1].split("What does it see?")[0]


@pytest.mark.parametrize("rows", [True, False], ids=["with rows", "without rows"])
def test_notes_on_an_evaluation_are_shown(parts, rows):
    parts.evaluation["notes"] = [note := "1 of 120 images could not be read (first: <b>: cut)."]
    if not rows:
        parts.evaluation["rows"] = []
    assert note in written(parts).text


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("evaluation", "Not measured yet: the run holds no evaluation."),
        ("pictures", "no pictures.npz that can be drawn"),
        ("metrics", "No step has been logged"),
        ("experiment", "no readable experiment.json"),
        ("plan", "The run holds no plan"),
    ],
)
def test_each_absence_is_said_in_words(parts, absent, said):
    setattr(parts, absent, None)
    assert said in written(parts).text


def test_a_run_of_nothing_but_its_settings(parts):
    parts.plan = parts.metrics = parts.evaluation = parts.pictures = None
    page = written(parts)
    assert "training logged nothing yet" in page.text
    assert "Neither the log nor the plan holds costs." in page.text


def test_one_row_of_metrics(parts):
    parts.log(1, full=True)
    parts.evaluation = None
    page = written(parts)
    assert "reached step 1 of 30" in page.text
    assert page.tags.count("svg") == 6


def test_a_killed_run_says_how_far_it_came_and_how_to_go_on(parts):
    parts.log(20)
    run = parts.write()
    log = run / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    page = Page(write_report(run))
    assert "The last line of metrics.jsonl is cut off" in page.text
    assert "So far, at step 19 of 30: Training helped" in page.text
    assert "This run is not finished: step 19 of 30" in page.text
    assert f"openjepa resume {run}" in page.text


def test_an_evaluation_of_an_earlier_encoder_is_told_as_such(parts):
    parts.evaluation |= {"step": 10, "spectrum": {"trained encoder": {"rankme": 1.2}}, "command": "openjepa evaluate R"}
    run = parts.write()
    for step, old in ((10, False), (30, True)):
        (run / "exported.json").write_text(json.dumps({"step": step, "choice": ""}))
        page = Page(write_report(run))
        assert ("At step 10: Training helped" in page.text) is old
        assert ("At step 10: k-NN 80.0% against 60.0%: +20.0 points" in page.text) is old
        assert page.text.count("of the encoder of step 10; by now the run holds that of step 30") == 2 * old
        assert ("All images get nearly the same features: RankMe 1.20" in page.text) is not old
        assert ("Evaluate the encoder that the run holds now" in page.text) is old


def test_a_small_look_does_not_replace_a_fuller_record(parts, monkeypatch, capsys):
    run, kept = parts.write(), []
    whole = {"encoder": "own", "data": "pictures", "rows": [], "test_images": 5000, "summary": ""}
    whole["tasks"] = {"rotation": {"data": "turned", "test_images": 400, "split": "", "summary": ""}}
    (run / "evaluation.json").write_text(json.dumps(whole))
    monkeypatch.setattr("openjepa.cli.evaluation.print_evaluation", lambda found: None)
    monkeypatch.setattr("openjepa.cli.evaluation._reports", lambda run, data: True)
    monkeypatch.setattr("openjepa.cli.evaluation.renewed", lambda run, found, say: kept.append(found) or [])
    turned = {"tasks": {"rotation": {"data": "turned", "test_images": 100}}, "test_images": 0}
    for change, stays in (
        ({"test_images": 100}, True),
        (turned, True),
        ({}, False),
        ({"test_images": 100, "data": "others"}, False),
        ({"test_images": 100, "encoder": "trained on"}, False),
    ):
        found = whole | change
        monkeypatch.setattr("openjepa.cli.evaluation._judged", lambda given, command, found=found: found)
        assert evaluate_verb([str(run)]) == 0
        assert (kept == []) is stays
        assert ("test images, and this of 100 of them (--json FILE" in capsys.readouterr().out) is stays
        kept.clear()


def test_a_record_is_of_the_encoder_that_the_run_holds(parts, monkeypatch):
    run = parts.write()
    (run / "exported.json").write_text('{"step": 30, "choice": ""}')
    before = (run / "evaluation.json").read_text()
    monkeypatch.setattr("openjepa.assessment.open_panel", lambda run: SimpleNamespace(fingerprint="new"))
    monkeypatch.setattr("openjepa.running.renew_card", lambda run, rows: run / "encoder" / "README.md")
    found = {"encoder": "old", "rows": [], "test_images": 1}
    assert renewed(run, found) == []  # training went on while the old one was evaluated
    assert (run / "evaluation.json").read_text() == before
    assert len(renewed(run, found | {"encoder": "new"})) == 3
    assert json.loads((run / "evaluation.json").read_text())["step"] == 30


def test_what_an_unfinished_run_scores_is_told_with_the_step_of_its_encoder(parts):
    parts.log(20)
    parts.evaluation["step"] = 15
    run = parts.write()
    (run / "exported.json").write_text('{"step": 15, "choice": ""}')
    assert "So far, at step 15 of 30: Training helped" in Page(write_report(run)).text


def test_how_the_images_were_split_is_a_sentence_of_its_own(parts):
    parts.evaluation["split"] = "Train and test are the data's own."
    text = written(parts).text
    assert "50 to test; 4 classes. Train and test are the data's own." in text
    assert "Guessing among 4 equal classes gives 25.0%." in text
    assert "fewer images were learned on" not in text
    parts.evaluation |= {"train_images": 20, "chance": {"classes": 0.95}}
    parts.path = parts.path.with_name("uneven")
    for row in parts.metrics[2::3]:
        row["knn"] = 0.3
    text = written(parts).text
    assert "always the commonest 95.0%" in text  # on the curve as on the card
    assert "Always the commonest: 95.0%." in text
    assert "Guessing among" not in text
    assert "Here fewer images were learned on than tested on (20 and 50)" in text


def test_a_run_that_numbers_stopped_says_so_and_is_not_gone_on_with(parts):
    parts.log(20)
    parts.evaluation = None
    run = parts.write()
    (run / "checkpoints" / "step-20").mkdir(parents=True)
    (run / "nonfinite-step-20.json").write_text("{}")
    page = Page(write_report(run))
    assert "stopped by a number that is not finite (nonfinite-step-20.json names the images" in page.text
    assert "begin a new one, with a lower --schedule.lr" in page.text
    assert f"openjepa resume {run}" not in page.text


def test_a_line_that_is_no_json_inside_the_log_is_counted(parts):
    run = parts.write()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4] = "{broken"
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = Page(write_report(run))
    assert "1 line of metrics.jsonl cannot be read, the first is line 5." in page.text
    assert "cut off" not in page.text


def test_numbers_that_are_not_finite_leave_a_gap(parts):
    parts.metrics[5]["loss"] = float("nan")
    parts.metrics[-1]["loss"] = float("inf")
    parts.pictures["features"][0, 0, 0] = np.nan
    page = written(parts)
    assert "not finite, so they are not drawn" in page.text
    assert "0.0359 at step 28" in page.text
    assert not re.search(r"\b(nan|inf)\b", page.text, re.IGNORECASE)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file", b"not a zip"], ids=["empty", "half", "text"])
def test_damaged_pictures_are_a_note(parts, damage):
    run = parts.write()
    (run / "pictures.npz").write_bytes(damage)
    assert "pictures.npz cannot be drawn" in Page(write_report(run)).text


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("targets", np.array([[[2, 6]]] * 3), "token 2 to 6 of a grid of 6"),
        ("features", np.zeros((3, 5, 6), np.float32), "features have shape (3, 5, 6), expected (3, 6, D)"),
        ("grid", np.array([2, 3, 1]), "only grids of two axes"),
        ("images", np.zeros((3, 8, 12), np.uint8), "expected uint8 (n, H, W, C)"),
        ("context_valid", np.ones((3, 2), bool), "unlike context"),
    ],
)
def test_pictures_that_contradict_themselves_are_a_note(parts, name, array, said):
    parts.pictures[name] = array
    assert said in written(parts).text


def test_damaged_evaluation_is_a_note(parts):
    run = parts.write()
    (run / "evaluation.json").write_text('{"rows": [')
    page = Page(write_report(run))
    assert "evaluation.json cannot be read" in page.text
    assert "Not evaluated" in page.text


@pytest.mark.parametrize(
    ("channels", "said"), [(1, None), (2, "the first is drawn"), (3, None), (5, "the first three are drawn")]
)
def test_any_number_of_channels(parts, channels, said):
    parts.draw(channels)
    page = written(parts)
    assert page.tags.count("img") == 9
    assert ("channels;" in page.text) == (said is not None)
    assert said is None or said in page.text


def test_pictures_without_masks_or_features(parts):
    for name in ("context", "context_valid", "targets", "features"):
        del parts.pictures[name]
    page = written(parts)
    assert page.tags.count("img") == 3
    assert "The run holds no masks of these pictures. The run holds no features of these pictures." in page.text


def test_images_set_aside_are_counted_once_each(parts):
    parts.bad_images = [{"reference": "a.jpg", "reason": "truncated"}] * 2 + [{"reference": "b.jpg", "reason": "bomb"}]
    assert "2 images of 100 (2.0%) could not be read." in written(parts).text


def test_the_page_stays_small_where_pictures_are_many_and_large(parts):
    random = np.random.default_rng(0)
    parts.pictures = {
        "images": random.integers(0, 256, (20, 448, 448, 3), dtype=np.uint8),  # noise: the hardest to compress
        "grid": np.array([28, 28]),
        "patch": np.array([16, 16]),
        "features": random.normal(size=(20, 784, 8)).astype(np.float32),
    }
    run = parts.write()
    path = write_report(run)
    assert path.stat().st_size < 3_000_000
    assert re.search(r"The first \d+ of 20 pictures are shown", Page(path).text)


def test_a_long_log_is_drawn_quickly(parts):
    parts.log(5000, full=True)
    parts.plan["steps"] = 5000
    run = parts.write()
    start = time.perf_counter()
    path = write_report(run)
    assert time.perf_counter() - start < 20  # two seconds on an idle core
    assert path.stat().st_size < 400_000
    assert "5,000 logged rows are drawn as averages of neighbours" in Page(path).text


def test_mae_is_not_told_about_features_as_targets(parts):
    parts.plan["objective"] = "mae"
    page = written(parts)
    assert "collapse dip" not in page.text
    assert "the predictor must predict the pixels" in page.text


def test_commands_can_be_pasted(parts):
    parts.path = parts.path.parent / "my run's folder"
    parts.log(10)
    run = parts.write()
    lines = [line for line in Page(write_report(run)).source.split("<code>") if line.startswith("openjepa resume")]
    command = html.unescape(lines[0].split("</code>")[0])
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["openjepa", "resume", str(run)]


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_what_is_no_run_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "thing"
    if kind == "file":
        path.write_text("{}")
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(InputError, match=r"thing is not a (folder|run)"):
        write_report(path)


def test_a_folder_that_cannot_be_written_is_named(parts, monkeypatch):
    run = parts.write()

    def refuse(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(openjepa.files.os, "replace", refuse)
    with pytest.raises(InputError, match=r"run/report\.html cannot be written \(Permission denied\)"):
        write_report(run)


def test_the_page_is_replaced_in_one_piece(parts, monkeypatch):
    run = parts.write()
    before = sorted(entry.name for entry in run.iterdir())
    path = write_report(run)
    first = path.read_text()
    assert path == run / "report.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert sorted(entry.name for entry in run.iterdir()) == sorted([*before, "report.html"])

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(openjepa.files.os, "fsync", fail)
    with pytest.raises(InputError, match="disk full"):
        write_report(run)
    assert path.read_text() == first
    assert sorted(entry.name for entry in run.iterdir()) == sorted([*before, "report.html"])


def test_writing_it_imports_no_model_code(parts):
    """Neither by an import statement in the room, nor by anything that runs when a page is written."""
    allowed = ("openjepa.report", "openjepa.errors", "openjepa.files", "openjepa._version", "openjepa.diagnosis")
    for file in Path(openjepa.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.startswith(allowed) or not name.startswith(("openjepa", "torch")) for name in names), file
    code = (
        "import json, pathlib, sys, openjepa; before = set(sys.modules); import openjepa.report as report;"
        "report.write_report(pathlib.Path(sys.argv[1])); print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(parts.write())], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert "openjepa.report.page" in loaded
    ours = [name for name in loaded if name.startswith("openjepa.") and not name.startswith(allowed)]
    assert not ours
    assert not [name for name in loaded if name.split(".")[0] == "torch"]
