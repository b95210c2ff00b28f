"""Which way up an image is: asked of turned images, without labels, beside a random encoder and raw pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.assessment import Tasks, extraction, judge
from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import panel_of
from openjepa.assessment.extraction import Chosen
from openjepa.assessment.parts import IN_FOLDS
from openjepa.assessment.rotations import TASK, Turned, assess_rotations
from openjepa.assessment.tasks import joined
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Splits
from openjepa.data.idx import ArraySource
from openjepa.data.sources import open_data
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.evaluation.catalogue import choose, quick
from openjepa.evaluation.intervals import wilson
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.suite import PIXELS, RANDOM, TARGET, Entry
from openjepa.pretrained import Pretrained


def ours(height: int = 16) -> Pretrained:
    config = EncoderConfig(signal=(height, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=3)
    preprocessing = Preprocessing(size=(height, 16), channels=1, mean=(0.5,), std=(0.25,))
    return Pretrained(Encoder(config, generator=torch.Generator().manual_seed(3)), preprocessing)


def images(count: int = 200, *, up: bool = True, height: int = 16) -> ArraySource:
    """Noise, lit from above where there is an up."""
    values = np.random.default_rng(0).integers(0, 120, (count, height, 16, 1))
    light = np.linspace(130, 0, height).astype(np.int64)[:, None, None] if up else 65
    return ArraySource("lit", (values + light).astype(np.uint8))


def parted() -> Splits:
    """160 images to learn on, and 40 others."""
    every = images().images
    return Splits(train=ArraySource("lit", every[:160]), test=ArraySource("lit", every[160:]), sentence="Their own.")


def alone(source: ArraySource) -> Splits:
    return Splits(train=source, test=None, sentence="")


@pytest.mark.parametrize(("height", "angles"), [(16, 4), (24, 2)])
@pytest.mark.parametrize("times", [1, 3])
def test_every_image_is_turned_as_often_as_its_label_says(height, angles, times):
    preprocessing = ours(height).preprocessing
    part = Chosen(source=images(40, height=height), indices=np.arange(0, 40, 2), name="test")
    turned = Turned.for_size(part, preprocessing.size, times)
    (upright,) = part.batches(part.indices, preprocessing)
    batches = list(turned.batches(turned.indices, preprocessing))
    assert all(len(batch.samples) <= len(part.indices) for batch in batches)
    numbers = np.concatenate([batch.samples for batch in batches])
    assert numbers.tolist() == turned.indices.tolist() == sorted(set(numbers.tolist()))
    times = min(times, angles)
    assert (numbers // angles).tolist() == np.repeat(part.indices, times).tolist()
    labels = turned.labels(numbers)
    assert sorted(set(labels.tolist())) == list(range(angles))
    for place, (after, label) in enumerate(zip(torch.cat([b.images for b in batches]), labels, strict=True)):
        before = upright.images[place // times]
        assert torch.equal(torch.rot90(before, int(label) * 4 // angles, (1, 2)), after)


def test_images_with_an_up_are_told_beside_a_random_encoder_and_pixels():
    found = assess_rotations(panel_of(ours()), alone(images()))
    assert (found["train_images"], found["test_images"], found["classes"]) == (160, 200, 4)
    rows = {(row["evaluator"], row["features"]): row for row in found["rows"]}
    assert {row["task"] for row in found["rows"]} == {TASK}
    assert rows["k-NN", PIXELS]["value"] > 0.9
    assert set(rows) == {("k-NN", name) for name in (TARGET, RANDOM, PIXELS)}
    assert {row["against"] for row in found["differences"]} == {RANDOM, PIXELS}
    assert "turned by a quarter, a half or three quarters or not at all" in found["summary"]
    assert found["notes"] == []
    assert found["split"] == f"{IN_FOLDS} Each image to test on was turned in 4 ways."


def test_few_images_are_asked_about_in_every_way_and_their_number_bounds_the_interval():
    splits = parted()
    many = assess_rotations(panel_of(ours()), splits)
    once = assess_rotations(panel_of(ours()), splits, limit=160)  # a quarter of it is the images to test on
    assert (many["test_images"], once["test_images"]) == (40, 40)
    assert "ways" not in once["split"]
    width = [{row["features"]: row["high"] - row["low"] for row in found["rows"]} for found in (many, once)]
    assert width[0][RANDOM] < 0.9 * width[1][RANDOM]
    (random,) = (row["value"] for row in many["rows"] if row["features"] == RANDOM)
    low, high = wilson(round(random * 160), 160)
    assert width[0][RANDOM] > high - low - 1e-9
    assert {row["metric"] for row in many["differences"]} == {"accuracy"}
    for difference in many["differences"]:
        assert difference["low"] <= difference["value"] <= difference["high"]


def test_without_a_test_part_every_image_is_asked_about_by_what_was_learned_on_the_others():
    """And where that were more than may be tested on a fifth of them is."""
    learned = []

    class Seeing(KNN):
        def classify(self, train, test):
            learned.append((len(train), len(test)))
            ours, theirs = (set(map(bytes, part.values)) for part in (train, test))
            assert not ours & theirs
            return super().classify(train, test)

    entries = (Entry(key="knn", evaluator=Seeing(k=5)),)
    found = assess_rotations(panel_of(ours()), alone(images(43)), limit=4 * 43, entries=entries)
    assert (found["train_images"], found["test_images"], found["times"]) == (35, 43, 1)
    # Of the encoder, of a random one and of pixels.
    assert sorted(learned) == sorted([(34, 9), (34, 9), (34, 9), (35, 8), (35, 8)] * 3)
    few = assess_rotations(panel_of(ours()), alone(images(43)), limit=4 * 43 - 4, entries=entries)
    assert (few["train_images"], few["test_images"]) == (35, 8)


def pngs(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number, image in enumerate(images(count).images):
        Image.fromarray(image[..., 0]).save(folder / f"{number:03}.png")
    return folder


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_an_image_that_cannot_be_read_is_counted_once_in_each_part(tmp_path):
    learn, test = pngs(tmp_path / "learn", 80), pngs(tmp_path / "test", 20)
    cut_short(learn / "003.png")
    cut_short(test / "003.png")
    splits = Splits(train=open_data(learn).train, test=open_data(test).train, sentence="Their own.")
    found = assess_rotations(panel_of(ours()), splits, bad_images=0.021)
    assert (found["train_images"], found["test_images"], found["times"]) == (79, 19, 4)
    (note,) = found["notes"]
    assert note.startswith("2 of 100 images could not be read")


def test_too_few_that_can_be_read_are_refused_and_nothing_else_is_lost(tmp_path):
    learn, test = pngs(tmp_path / "learn", 40), pngs(tmp_path / "test", 10)
    for path in sorted(test.iterdir())[1:]:
        cut_short(path)
    splits = Splits(train=open_data(learn).train, test=open_data(test).train, sentence="Their own.")
    found = judge(panel_of(ours()), splits, entries=quick(), tasks=Tasks(), bad_images=0.5)
    assert found["spectrum"]
    assert any("40 images that can be read to learn on and 1 to test on are too few" in note for note in found["notes"])


def test_what_was_asked_of_the_same_images_in_other_ways_does_not_stand_beside(tmp_path):
    panel = panel_of(ours())
    splits = parted()
    before = judge(panel, splits, entries=choose("full", ("knn",)), tasks=Tasks(), limit=160)
    now = judge(panel, splits, entries=quick(), tasks=Tasks())
    assert before["tasks"][TASK]["images"] == now["tasks"][TASK]["images"]
    assert {row["evaluator"] for row in joined(before, now)["rows"]} == {"k-NN"}
    assert len({row["evaluator"] for row in joined(before, before | {"rows": now["rows"]})["rows"]}) > 1


def test_images_without_an_up_say_that_nothing_can_be_said():
    (note,) = assess_rotations(panel_of(ours()), alone(images(up=False)))["notes"]
    assert "no up and down" in note


def test_the_test_part_is_the_datas_own_and_too_few_images_are_refused():
    splits = Splits(train=images(50), test=images(30), sentence="Their own.")
    found = assess_rotations(panel_of(ours()), splits, limit=40)
    assert (found["train_images"], found["test_images"], found["split"]) == (40, 10, "Their own.")
    with pytest.raises(InputError, match=r"24 images to learn on and 30 to test on are too few .* it takes 32 and 8"):
        assess_rotations(panel_of(ours()), alone(images(30)))


def test_images_without_labels_are_asked_which_way_up_they_are_and_others_where_it_is_wanted():
    panel, entries = panel_of(ours()), choose("full", ("knn",))
    found = judge(panel, alone(images()), entries=entries, tasks=Tasks(names=("robustness",)))
    assert {row["evaluator"] for row in found["rows"]} == {entry.evaluator.name for entry in entries}
    assert {row["task"] for row in found["rows"]} == {TASK}
    assert found["spectrum"][TARGET]["rankme"] > 1
    assert found["tasks"][TASK]["chance"][TASK] < 0.5
    assert any("robustness" in note for note in found["notes"])
    few = judge(panel, alone(images(20)), entries=entries, tasks=Tasks())
    assert few["rows"] == []
    assert few["spectrum"]
    assert any(
        note.startswith("rotation could not be measured: 16 images to learn on and 20 to test on are too few")
        for note in few["notes"]
    )
    labelled = images()
    labelled.labels, labelled.classes = np.arange(200) % 2, ("a", "b")
    tasks = {
        names: {row["task"] for row in judge(panel, alone(labelled), entries=quick(), tasks=Tasks(names=names))["rows"]}
        for names in ((), (TASK,))
    }
    assert tasks == {(): {"classes"}, (TASK,): {"classes", TASK}}


def test_a_second_run_takes_turned_images_from_the_cache(tmp_path, monkeypatch):
    cache, seen = FeatureCache(folder=tmp_path / "features"), []
    compute = extraction._compute
    monkeypatch.setattr(extraction, "_compute", lambda *given: seen.append(given[1].name) or compute(*given))
    first, second = (assess_rotations(panel_of(ours()), alone(images()), cache=cache) for _ in range(2))
    assert seen == ["turned train", "turned test"]
    assert [row["value"] for row in first["rows"]] == [row["value"] for row in second["rows"]]
