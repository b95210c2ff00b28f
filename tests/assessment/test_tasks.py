"""Segmentation, scenes and fine-tuning as a person meets them: files in, a table, JSON and pictures out."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.assessment.parts import IN_FOLDS
from openjepa.cli import main
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.interop import huggingface

NAMES = ["trained encoder", "random encoder", "raw pixels"]


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", *(str(argument) for argument in arguments)])
    return left.value.code or 0


def export(folder: Path, channels: int, size: int = 16) -> Path:
    config = EncoderConfig(signal=(size, size), patch=(4, 4), channels=channels, width=24, depth=2, heads=2)
    encoder = Encoder(config, generator=torch.Generator().manual_seed(0))
    facts = {"size": (size, size), "channels": channels, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    huggingface.export(encoder, folder, preprocessing=facts)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("encoder") / "colour", 3)


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> tuple[Path, Path]:
    """Photos whose bright half is the class 200, with a strip that is not labelled."""
    folder, random = tmp_path_factory.mktemp("masked"), np.random.default_rng(0)
    images, masks = folder / "images", folder / "masks"
    images.mkdir()
    masks.mkdir()
    for number in range(30):
        cut, flip = random.integers(8, 24), random.random() < 0.5
        truth = np.zeros((32, 32), np.uint8)
        truth[:, cut:] = 200
        truth = truth[:, ::-1] if flip else truth
        photo = np.where(truth[..., None] > 0, 190, 60) + random.normal(0, 8, (32, 32, 3))
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(images / f"{number}.jpg")
        written = truth.copy()
        written[:2] = 255
        Image.fromarray(written).save(masks / f"{number}.png")
    return images, masks


def rows_of(path: Path) -> dict[tuple[str, str, str], dict]:
    rows = json.loads(path.read_text())["rows"]
    return {(row["task"], row["evaluator"], row["features"]): row for row in rows}


@pytest.mark.parametrize("channels", [1, 3])
def test_segmentation_of_photos_by_an_encoder_of_any_channels(channels, masked, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(masked[0].parent)
    export(tmp_path / "encoder", channels)
    written, pictures = tmp_path / "found.json", tmp_path / "pictures"
    asked = (tmp_path / "encoder", "--segmentation", "images", "masks", "--json", written, "--pictures", pictures)
    assert call(*asked) == 0
    found = rows_of(written)
    segmenters = ("patch k-NN", "linear segmentation")
    assert list(found) == [("segmentation", e, name) for e in segmenters for name in NAMES]
    for row in found.values():
        assert row["metric"] == "mIoU"
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    # Brightness is all there is to know, and pixels know it but for the patches that a border cuts.
    assert found["segmentation", "linear segmentation", "raw pixels"]["value"] > 0.75
    assert found["segmentation", "patch k-NN", "raw pixels"]["value"] > 0.75
    whole = json.loads(written.read_text())
    assert shlex.join(["--segmentation", *map(str, masked)]) in whole["command"], "as it can be given in any folder"
    facts = whole["tasks"]["segmentation"]
    assert (facts["train_images"], facts["test_images"]) == (24, 30)
    assert 0.15 < facts["chance"]["segmentation"] < 0.4  # half of the pixels of one class, none of the other
    assert "30 images with a mask of 2 classes (values 0, 200); 255 is taken as not labelled" in facts["split"]
    assert {(row["against"], row["evaluator"]) for row in whole["differences"]} == {
        (name, evaluator) for name in NAMES[1:] for evaluator in segmenters
    }
    said = capsys.readouterr()
    assert IN_FOLDS in facts["split"]
    assert "those of a patch without its place" in facts["summary"]
    assert not any(note.startswith("segmentation") for note in whole["notes"])
    assert "mIoU" in said.out
    assert "Traceback" not in said.err
    assert np.asarray(Image.open(pictures / "segmentation.png")).std() > 20
    assert call(*asked) == 2  # the picture is there already
    assert "segmentation.png exists already" in capsys.readouterr().err


def test_ten_test_images_are_enough_and_what_cannot_be_read_is_counted(encoder, masked, tmp_path, capsys):
    images, masks, written = tmp_path / "images", tmp_path / "masks", tmp_path / "found.json"
    for source, folder in zip(masked, (images, masks), strict=True):
        folder.mkdir()
        for number in range(52):
            path = source / f"{number % 30}{'.jpg' if folder is images else '.png'}"
            (folder / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    asked = (encoder, "--segmentation", images, masks, "--json", written)
    few = "segmentation: with 9 test images the intervals of the mIoU mean little"
    for limit, mean_little in ((40, False), (36, True)):
        capsys.readouterr()
        assert call(*asked, "--limit", str(limit)) == 0
        notes = json.loads(written.read_text())["notes"]
        assert any(note.startswith("segmentation") for note in notes) == mean_little
        assert (few in " ".join(capsys.readouterr().out.split())) == mean_little
    content = (images / "7.jpg").read_bytes()
    (images / "7.jpg").write_bytes(content[:-60])  # the header is whole
    assert call(*asked) == 2
    assert "1 of 52 images could not be read, more than 1%" in capsys.readouterr().err
    assert call(*asked, "--bad-images", "0.02") == 0
    found = json.loads(written.read_text())
    assert any(
        note.startswith("segmentation: 1 of 52 images could not be read (first: 7.jpg: ") for note in found["notes"]
    )
    facts = found["tasks"]["segmentation"]
    assert (facts["train_images"], facts["test_images"]) == (41, 51)


def test_scenes_are_judged_for_three_questions(encoder, tmp_path, capsys):
    written, pictures = tmp_path / "found.json", tmp_path / "pictures"
    count = ("--scene-count", "600", "300")
    assert call(encoder, "--only", "scenes", *count, "--json", written, "--pictures", pictures) == 0
    found = rows_of(written)
    tasks = [f"scenes: {task}" for task in ("count", "nearest distance", "position")]
    evaluators = ("k-NN", "linear probe", "linear probe, last four blocks")
    assert list(found) == [(task, evaluator, name) for task in tasks for evaluator in evaluators for name in NAMES]
    four = found["scenes: count", "linear probe, last four blocks", "trained encoder"]
    assert four["dimensions"] == 2 * found["scenes: count", "linear probe", "trained encoder"]["dimensions"]
    facts = json.loads(written.read_text())["tasks"]["scenes"]
    # Where the dark thing is can be read from the pixels; chance is a ninth, and the signal is there.
    assert found["scenes: position", "linear probe", "raw pixels"]["low"] > 0.5
    assert 0.05 < facts["chance"]["scenes: position"] < 0.2
    best = max(found["scenes: count", "linear probe", name]["value"] for name in NAMES)
    assert best > facts["chance"]["scenes: count"] + 0.05
    assert (pictures / "scenes.png").is_file()
    assert "nearest" in capsys.readouterr().out


def test_fine_tuning_stands_beside_the_same_from_scratch(encoder, tmp_path, capsys):
    random = np.random.default_rng(0)
    for kind, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(40):
            photo = np.array(colour) + random.normal(0, 30, (16, 16, 3))
            Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(tmp_path / "data" / kind / f"{number}.png")
    written = tmp_path / "found.json"
    asked = ("--only", "finetune", "--finetune-epochs", "5", "--json", written)
    assert call(encoder, tmp_path / "data", *asked) == 0
    found = rows_of(written)
    assert list(found) == [("fine-tuning", "fine-tuning", name) for name in ("trained encoder", "from scratch")]
    row = found["fine-tuning", "fine-tuning", "trained encoder"]
    assert row["value"] > 0.8
    assert row["settings"]["epochs"] == 5
    decays = [one["settings"]["layer_decay"] for one in found.values()]
    assert decays == [0.75, 1], "what is shrunk for trained weights is not for random ones"
    facts = json.loads(written.read_text())["tasks"]["fine-tuning"]
    assert (facts["train_images"], facts["test_images"]) == (64, 16)
    said = capsys.readouterr()
    assert "from scratch" in said.out
    assert said.err == ""  # nobody watches


def test_a_run_keeps_what_was_found_before(tmp_path, capsys):
    random = np.random.default_rng(0)
    for kind in ("dark", "light"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(30):
            grey = random.normal(90 if kind == "dark" else 170, 30, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / "data" / kind / f"{number}.png")
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        main(["pretrain", str(tmp_path / "data"), "--out", str(run), "--steps", "2", "--encoder.width", "48"])
    assert end.value.code == 0
    quick = rows_of(run / "evaluation.json")
    assert {task for task, _, _ in quick} == {"classes"}
    assert call(run, "--only", "scenes", "robustness", "--scene-count", "200", "200") == 0
    whole = rows_of(run / "evaluation.json")
    assert {key: row for key, row in whole.items() if key[0] == "classes"} == quick
    assert {task.split(":")[0] for task, _, _ in whole} == {"classes", "robustness", "scenes"}
    # What is clean is judged as whole images are.
    for name in NAMES:
        assert whole["robustness: clean", "k-NN", name]["value"] == quick["classes", "k-NN", name]["value"]
    assert "scenes: count" in (run / "report.html").read_text()
    card = (run / "encoder" / "README.md").read_text()
    for line in (
        "- classes: data, 48 images to learn on in each of 5 folds, 60 to test on in all, 2 classes",
        "- robustness: data, 48 images to learn on in each of 5 folds, 60 to test on in all, 2 classes",
        "- scenes: scenes of 16 x 16 px, seed 0, 200 images to learn on, 200 to test on",
    ):
        assert card.count(line + "\n") == 1
    shown = [line.split(" | ")[:4] for line in card.splitlines() if line.startswith("| ") and "accuracy" in line]
    assert len(shown) == len(set(map(tuple, shown))) == len(whole), "each row says what it is of"
    assert "noise 10%" in card
    assert "noise 10%" in (run / "report.html").read_text()
    capsys.readouterr()


def test_mistakes_are_told_in_a_sentence(encoder, masked, tmp_path, capsys):
    images, masks = masked

    def refused(*arguments: str | Path) -> str:
        assert call(encoder, *arguments) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    (tmp_path / "few").mkdir()
    for number in range(3):
        Image.open(masks / f"{number}.png").save(tmp_path / "few" / f"{number}.png")
    (tmp_path / "empty").mkdir()
    assert "there is no folder" in refused("--segmentation", images, tmp_path / "nowhere")
    assert "holds no images" in refused("--segmentation", tmp_path / "empty", masks)
    assert "does not hold masks" in refused("--segmentation", images, images)
    assert "3 images with masks are too few" in refused("--segmentation", images, tmp_path / "few")
    assert "at least 200" in refused("--only", "scenes", "--scene-count", "10", "10")
    assert "leave" in refused(images, "--only", "scenes")
    assert "ask for one of them" in refused(images, "--pictures", tmp_path / "p")
    assert "which images to judge" in refused("--only", "finetune")
    assert "have no labels" in refused(images, "--only", "finetune")
    assert "at least 1" in refused(images, "--only", "finetune", "--finetune-epochs", "0")
