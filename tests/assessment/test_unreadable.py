"""Images that cannot be read are left out of a judgement, counted, and named; too many of them end it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.assessment.extraction import BAD_IMAGES
from openjepa.assessment.parts import IN_FOLDS
from openjepa.cli import main
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.interop import huggingface
from openjepa.training.step import TrainingConfig

EACH = 40


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code or 0


def said(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "grey"
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=2)
    network = Encoder(config, generator=torch.Generator().manual_seed(0))
    facts = {"size": (16, 16), "channels": 1, "mean": (0.5,), "std": (0.25,)}
    huggingface.export(network, folder, preprocessing=facts)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Forty images of each of three classes, which differ in brightness."""
    folder, random = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    for kind, mean in (("a", 60), ("b", 130), ("c", 200)):
        (folder / kind).mkdir()
        for number in range(EACH):
            grey = random.normal(mean, 20, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(grey).save(folder / kind / f"{number:02}.png")
    return folder


@pytest.fixture
def images(whole, tmp_path) -> Path:
    """Of which a test may spoil some."""
    return Path(shutil.copytree(whole, tmp_path / "images"))


def spoil(images: Path, *names: str) -> None:
    for name in names:
        path = images / f"{name}.png"
        path.write_bytes(path.read_bytes()[:60])


def test_the_share_allowed_is_that_of_training():
    assert TrainingConfig().bad_images == BAD_IMAGES


def test_one_of_many_is_left_out_counted_and_named_also_from_the_cache(encoder, images, tmp_path, capsys, monkeypatch):
    spoil(images, "b/07")
    read, written = [], tmp_path / "found.json"
    compute = "openjepa.assessment.extraction._compute"
    from openjepa.assessment import extraction

    original = extraction._compute
    monkeypatch.setattr(compute, lambda *given: read.append(given[1].name) or original(*given))
    for _ in range(2):
        assert call("evaluate", encoder, images, "--json", written, "--cache", tmp_path / "cache") == 0
        found = json.loads(written.read_text())
        (note,) = [note for note in found["notes"] if "could not be read" in note]
        assert note.startswith(f"1 of {3 * EACH} images could not be read (first: b/07.png: ")
        assert note in said(capsys)
        assert (found["train_images"], found["test_images"]) == (96, 3 * EACH - 1)
        assert found["classes"] == 3
    assert read == ["labelled"], "the second time all features came from the cache"


def test_one_that_cannot_be_read_does_not_make_a_handful_too_few(encoder, images, tmp_path, capsys):
    for kind in "abc":
        for number in range(4 if kind == "a" else 3, EACH):
            (images / kind / f"{number:02}.png").unlink()
    spoil(images, "a/01")
    written = tmp_path / "found.json"
    asked = ("--only", "knn", "retrieval", "robustness", "--bad-images", "0.2", "--json", written)
    assert call("evaluate", encoder, images, *asked) == 0
    found = json.loads(written.read_text())
    assert (found["train_images"], found["test_images"], found["folds"]) == (8, 9, 5)
    assert found["tasks"]["robustness"]["folds"] == 5
    assert "8 images to learn on in each of 5 folds, 9 to test in all" in said(capsys)
    (images / "b" / "01.png").write_bytes(b"")
    assert call("evaluate", encoder, images, *asked) == 0, "of a class with two images left nothing is asked"
    assert "Not judged: 1 of 3 classes, of too few readable images (b)." in said(capsys)


def test_too_many_are_refused_unless_they_are_allowed(encoder, images, tmp_path, capsys):
    spoil(images, "a/01", "b/07")
    asked = ("evaluate", encoder, images, "--cache", tmp_path / "cache")
    for _ in range(2):  # computed, and from the cache
        assert call(*asked) == 2
        error = capsys.readouterr().err
        assert f"2 of {3 * EACH} images could not be read, more than 1%: for example" in error
        assert "--bad-images" in error
    assert call(*asked, "--bad-images", "0.02") == 0
    assert f"2 of {3 * EACH} images could not be read" in said(capsys)
    assert call(*asked, "--bad-images", "2") == 2
    assert "a share from 0 to 1, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("left", [0, 1, EACH])
def test_a_class_of_too_few_readable_images_is_not_judged_by_any_task(left, encoder, images, tmp_path, capsys):
    """None of its images is left, or one, or all."""
    spoil(images, *(f"c/{number:02}" for number in range(left, EACH)))
    asked = ("--only", "knn", "robustness", "finetune", "--finetune-epochs", "1", "--bad-images", "0.5")
    written = tmp_path / "found.json"
    assert call("evaluate", encoder, images, *asked, "--json", written, "--no-cache") == 0
    found = json.loads(written.read_text())
    notes = " ".join(found["notes"])
    assert ("Not judged: 1 of 3 classes, of too few readable images (c)." in notes) == (left < EACH)
    assert (f"{EACH - left} of {3 * EACH} images could not be read" in notes) == (left < EACH)
    classes, tasks = 3 if left == EACH else 2, found["tasks"]
    for facts, folded in ((found, True), (tasks["robustness"], True), (tasks["fine-tuning"], False)):
        assert facts["classes"] == classes
        assert (facts["train_images"], facts["test_images"]) == (classes * 32, classes * (EACH if folded else 8))
    knn = {(row["task"], row["features"]): row["value"] for row in found["rows"] if row["evaluator"] == "k-NN"}
    for name in ("trained encoder", "random encoder", "raw pixels"):
        assert knn["robustness: clean", name] == knn["classes", name]


@pytest.mark.parametrize("task", ["knn", "robustness", "finetune"])
def test_where_too_few_classes_are_left_it_is_said_that_images_cannot_be_read(task, encoder, images, capsys):
    spoil(images, *(f"{kind}/{number:02}" for kind in "bc" for number in range(EACH)))
    assert call("evaluate", encoder, images, "--only", task, "--bad-images", "0.9", "--no-cache") == 2
    error = capsys.readouterr().err
    assert "of 1 classes 1 has so many; add images, or mend those that cannot be read: " in error
    assert f"{2 * EACH} of {3 * EACH} images could not be read (first: b/00.png: " in error


def test_a_task_alone_counts_its_own(encoder, images, tmp_path, capsys):
    spoil(images, "b/07")
    written = tmp_path / "found.json"
    assert call("evaluate", encoder, images, "--only", "robustness", "--json", written) == 0
    found = json.loads(written.read_text())
    note = f"robustness: 1 of {3 * EACH} images could not be read (first: b/07.png"
    assert any(one.startswith(note) for one in found["notes"])
    assert note in said(capsys)
    spoil(images, "b/08", "b/09")
    assert call("evaluate", encoder, images, "--only", "robustness") == 2
    assert f"3 of {3 * EACH} images could not be read, more than 1%" in capsys.readouterr().err


def test_of_images_with_masks_a_bad_one_of_either_is_counted(encoder, tmp_path, capsys):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(16):
        truth = np.arange(16)[None].repeat(16, 0) > 3 + number % 8
        Image.fromarray((truth * 120 + 60).astype(np.uint8)).save(tmp_path / "images" / f"{number:02}.png")
        Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "masks" / f"{number:02}.png")
    (tmp_path / "images" / "01.png").write_bytes(b"")
    damaged = tmp_path / "masks" / "12.png"
    damaged.write_bytes(damaged.read_bytes()[:45])
    written = tmp_path / "found.json"
    asked = ("evaluate", encoder, "--segmentation", tmp_path / "images", tmp_path / "masks", "--json", written)
    assert call(*asked) == 2
    assert "2 of 16 images could not be read, more than 1%" in " ".join(capsys.readouterr().err.split())
    assert call(*asked, "--bad-images", "0.2") == 0
    found = json.loads(written.read_text())
    assert "2 of 16 images could not be read (first: " in " ".join(found["notes"])
    facts = found["tasks"]["segmentation"]
    assert (facts["train_images"], facts["test_images"]) == (12, 14)


def test_without_labels_only_what_was_read_is_counted(encoder, images, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    spoil(images, "b/07")
    for path in images.rglob("*.png"):
        path.rename(flat / f"{path.parent.name}{path.name}")
    written = tmp_path / "found.json"
    assert call("evaluate", encoder, flat, "--json", written) == 0
    found = json.loads(written.read_text())
    assert (found["train_images"], found["classes"]) == (3 * EACH - 1, 0)
    assert f"1 of {3 * EACH} images could not be read (first: b07.png" in " ".join(found["notes"])
    assert f"1 of {3 * EACH} images could not be read" in said(capsys)
    (flat / "a00.png").write_bytes(b"no image")
    assert call("evaluate", encoder, flat) == 2
    assert "more than 1%" in capsys.readouterr().err


def test_of_a_run_the_report_says_it_and_its_own_share_is_allowed(images, tmp_path, capsys):
    """And only of a run's own images is it said that the encoder has seen them."""
    spoil(images, "a/01", "b/07", "b/08")
    run, written = tmp_path / "run", tmp_path / "found.json"
    small = ("--steps", "2", "--encoder.width", "24", "--encoder.depth", "1", "--training.workers", "0")
    assert call("pretrain", images, "--out", run, *small, "--training.bad-images", "0.05") == 0
    capsys.readouterr()
    assert call("evaluate", run) == 0
    note = f"3 of {3 * EACH} images could not be read (first:"
    seen = "The encoder saw these images in training, without labels."
    text = said(capsys)
    assert note in text
    assert f"{IN_FOLDS} {seen}" in text
    assert note in (run / "report.html").read_text()
    card = (run / "encoder" / "README.md").read_text()
    assert (
        f"- classes: {images.name}, 94 images to learn on in each of 5 folds, 117 to test on in all, 3 classes\n"
        in card
    )
    assert "| classes | trained encoder | k-NN | accuracy |" in card
    assert call("evaluate", run, images, "--json", written) == 0  # the same, named
    assert seen in json.loads(written.read_text())["split"]
    (images / "b" / "08.png").unlink()  # so they are others
    assert call("evaluate", run, images, "--json", written) == 0
    assert json.loads(written.read_text())["split"] == IN_FOLDS
    assert call("evaluate", run / "encoder", images, "--json", written, "--bad-images", "0.05") == 0
    assert "training" not in json.loads(written.read_text())["split"]
    assert call("evaluate", run, images, "--bad-images", "0.01") == 2
