"""Masks beside their images are set aside, and classes that are called like masks are not."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data import beside
from openjepa.data.listing import Files
from openjepa.data.sources import open_data

RANDOM = np.random.default_rng(0)


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 3, (12, 16), dtype=np.uint8)).save(path)


def used(folder: Path) -> list[str]:
    source = open_data(str(folder)).train
    return [source.reference(number) for number in range(len(source))]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),
        ("Images", "Ground_Truth"),
        ("imgs", "labels"),
        ("satellite", "gt"),
        ("set/photos", "set/annotations"),
        ("images/day", "masks/day"),
    ],
)
def test_masks_beside_their_images_are_set_aside_and_told(tmp_path, images, masks):
    for number in range(4):
        photo(tmp_path / images / f"{number}.jpg")
        mask(tmp_path / masks / f"{number}.png")
    source = open_data(str(tmp_path)).train
    assert used(tmp_path) == [f"{images}/{number}.jpg" for number in range(4)]
    assert (source.labels, source.classes) == (None, ())
    assert [skip.reference for skip in source.skipped] == [f"{masks}/{number}.png" for number in range(4)]
    assert "--segmentation IMAGES MASKS" in source.skipped[0].reason


def test_masks_in_each_split_and_of_two_kinds_are_set_aside(tmp_path):
    for split in ("train", "test"):
        for number in range(3):
            photo(tmp_path / split / "images" / f"{number}.png")
            mask(tmp_path / split / "masks" / f"{number}.png")
            mask(tmp_path / split / "labels" / f"{number}.png")
    splits = open_data(str(tmp_path))
    assert splits.test is not None
    assert (len(splits.train), len(splits.test), len(splits.train.skipped)) == (3, 3, 12)


def test_masks_of_jpeg_beside_images_are_set_aside_too(tmp_path):
    for number in range(3):
        photo(tmp_path / "images" / f"{number}.jpg")
        mask(tmp_path / "masks" / f"{number}.jpg")
    assert len(used(tmp_path)) == 3


def test_photographs_called_ground_truth_beside_spoilt_ones_stay(tmp_path):
    for number in range(4):
        photo(tmp_path / "input" / f"{number}.png")
        photo(tmp_path / "gt" / f"{number}.png")
    assert len(used(tmp_path)) == 8


def test_many_scenes_are_looked_through_once(tmp_path, monkeypatch):
    scenes = [f"scene{number}{os.sep}{kind}{os.sep}" for number in range(300) for kind in ("images", "masks")]
    files = Files.of_runs((folder, ["a.png"]) for folder in scenes)
    asked, runs = [], Files.runs
    monkeypatch.setattr(beside, "_photographs", lambda *_: False)
    monkeypatch.setattr(Files, "runs", lambda self: asked.append(len(self.folders)) or runs(self))
    left, aside = beside.without_masks(str(tmp_path), files)
    assert (len(left), len(aside)) == (300, 300)
    assert sum(asked) < 10 * len(scenes)


def test_classes_called_like_masks_stay(tmp_path):
    for number in range(4):
        for name in ("mask", "no_mask"):  # photos of faces
            photo(tmp_path / "faces" / name / f"{number}.png")
        for name in ("mask", "hat", "shoe"):  # drawings in few colours
            mask(tmp_path / "drawings" / name / f"{number}.png")
        for name in ("gt", "suv"):
            mask(tmp_path / "signs" / name / f"{number}.png")
        photo(tmp_path / "other" / "images" / f"{number}.png")
        mask(tmp_path / "other" / "masks" / f"{number}_b.png")
    for folder, classes in {
        "faces": ("mask", "no_mask"),
        "drawings": ("hat", "mask", "shoe"),
        "signs": ("gt", "suv"),
        "other": ("images", "masks"),
    }.items():
        source = open_data(str(tmp_path / folder)).train
        assert source.classes == classes
        assert not source.skipped
