"""What the plan settles from the length of a run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa import costing, planning
from openjepa.cli.tables import print_plan
from openjepa.data.sources import open_data
from openjepa.data.survey import survey
from openjepa.errors import InputError
from openjepa.experiment import Experiment
from openjepa.planning import Wishes, plan
from openjepa.recipes.published import published
from openjepa.training.distributed import Processes


@pytest.mark.parametrize("shape", ["fixed", "packed", "reference"])
def test_the_plan_tells_the_tokens_of_the_masks_that_are_drawn(shape):
    def with_masks(experiment: Experiment) -> Experiment:
        encoder = replace(experiment.encoder, patch=(2, 2), width=24, depth=1, heads=2)
        training = replace(experiment.training, batch=32, replicas=1, threads=1, workers=0, accumulate=2)
        masks = replace(experiment.masks, shape=shape)
        return replace(experiment, encoder=encoder, masks=masks, training=training)

    found = plan(open_data(None), Wishes(steps=1, workers=0), Processes(0, 1, torch.device("cpu")), None, with_masks)
    drawn = found.experiment.masking()(torch.arange(16), 0)
    told = found.facts["masks"]
    assert told["context_tokens"] == pytest.approx(drawn.context_valid.sum(1).double().mean().item(), abs=0.5)
    assert told["target_tokens"] == drawn.targets.shape[-1] > 0
    assert (told["context_tokens"] == round(0.25 * 14 * 14)) == (shape == "fixed")


ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("settings", [{"class_token": True}, {"positions": "learned"}])
def test_what_imported_encoders_alone_have_is_refused(settings):
    def override(experiment: Experiment) -> Experiment:
        return replace(experiment, encoder=replace(experiment.encoder, **settings))

    with pytest.raises(InputError, match=r"--encoder.class-token and --encoder.positions learned are what imported"):
        plan(open_data(None), Wishes(steps=1, workers=0), ALONE, None, override)


@pytest.mark.parametrize("method", ["ijepa", "mae", "denoising"])
@pytest.mark.usefixtures("unmeasured")
def test_a_predictor_that_cannot_look_at_what_is_seen_is_refused(method):
    def override(experiment: Experiment) -> Experiment:
        return replace(experiment, predictor=replace(experiment.predictor, depth=0))

    wishes = Wishes(steps=1, workers=0, objective=method)
    if method == "denoising":
        assert plan(open_data(None), wishes, ALONE, None, override).experiment.predictor.depth == 0
        return
    with pytest.raises(InputError, match=rf"--predictor.depth 0 predicts without a look .*{method}'s encoder learns"):
        plan(open_data(None), wishes, ALONE, None, override)


def test_a_saved_published_experiment_goes_with_no_other_objective():
    saved = published("published-b16")
    with pytest.raises(InputError, match="is a published I-JEPA recipe; --objective mae goes with small"):
        plan(open_data(None), Wishes(experiment=saved, objective="mae"), ALONE, None)


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "float32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_computes_in_bfloat16_where_it_has_it_in_hardware(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    source, card = open_data(None).train, Processes(0, 1, torch.device("cuda", 0))
    seen = survey(source, seed=0)
    found = planning._levels(source, seen, Wishes())
    settled, _ = planning._settle(open_data(None), seen, found, Wishes(), card)
    assert settled.training.precision == precision
    saved = Wishes(experiment=replace(settled, training=replace(settled.training, precision="bf16")))
    again, why = planning._settle(open_data(None), seen, found, saved, card)
    assert again.training.precision == precision
    assert ("in float32, for its bf16 is slow here" in why) == (precision == "float32")
    asked = planning._settle(open_data(None), seen, found, saved, card, ["--training.precision"])
    assert asked == (saved.experiment, "taken from a saved experiment.json")


@pytest.mark.parametrize(
    ("world", "device", "record", "told"),
    [(2, "cuda", True, True), (2, "cuda", False, False), (1, "cuda", True, False), (2, "cpu", True, False)],
)
@pytest.mark.usefixtures("unmeasured")
def test_the_plan_tells_that_several_gpus_may_be_slower_than_one(world, device, record, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")

    def override(experiment: Experiment) -> Experiment:
        return replace(experiment, training=replace(experiment.training, record=record))

    processes = Processes(0, world, torch.device(device))
    found = plan(open_data(None), Wishes(steps=1, workers=0), processes, None, override)
    assert ("and one may be faster" in found.facts["recipe"]["why"]) == told


def tiny(experiment: Experiment) -> Experiment:
    encoder = replace(experiment.encoder, width=24, depth=1, heads=2)
    training = replace(experiment.training, batch=8, replicas=1, threads=1, workers=0)
    return replace(experiment, encoder=encoder, training=training)


def floats(folder: Path, count: int, flat: int) -> None:
    """Images of floats, of which the first ones hold a single value each."""
    images = np.random.default_rng(0).random((count, 18, 18), np.float32)
    images[:flat] = images[:flat, :1, :1]
    for number, image in enumerate(images):
        np.save(folder / f"{number:03}.npy", image)


def test_images_whose_pixels_cannot_be_used_are_counted_though_their_size_can_be_told(tmp_path):
    for number in range(130):
        pixels = np.random.default_rng(number).integers(0, 255, (18, 18), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:03}.tif")
    for number in (7, 40):
        values = np.full((18, 18), np.nan if number == 7 else 0.5, np.float32)
        Image.fromarray(values).save(tmp_path / f"{number:03}.tif")
    source = open_data(str(tmp_path))
    assert not survey(source.train).bad
    data = plan(source, Wishes(steps=1, workers=0), ALONE, None, tiny).facts["data"]
    assert (data["unreadable"], data["looked_at"]) == (1, 130)
    assert data["unreadable_example"].startswith("007.tif: holds NaN (324 of 324 values)")
    for number in (8, 9):
        Image.fromarray(np.full((18, 18), np.nan, np.float32)).save(tmp_path / f"{number:03}.tif")
    with pytest.raises(InputError, match=r"3 of 130 images looked at cannot be read, more than 1%: for example 007"):
        plan(open_data(str(tmp_path)), Wishes(steps=1, workers=0), ALONE, None, tiny)


def test_the_plan_tells_of_transparency_unless_it_is_kept(tmp_path, capsys):
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 255, (18, 18, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.tif")

    def printed(channels: int | None) -> str:
        found = plan(open_data(str(tmp_path)), Wishes(steps=1, workers=0, channels=channels), ALONE, None, tiny)
        print_plan(json.loads(json.dumps(found.facts)))
        return " ".join(capsys.readouterr().out.split())

    told = "the last channel is transparency, laid over white; --channels 4 keeps it (20 of 20 files looked at)"
    assert f"reading {told}" in printed(None)
    assert "transparency" not in printed(4)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "told"),
    [
        (np.uint8, 0, 255, "values 8 bits, 0 to 255; in % of white the mean is 50, the spread 50 "),
        (
            np.uint16,
            1000,
            1200,
            "values 16 bits, 1,000 to 1,200 (white is 65,535); in % of white the mean is 1.68, the ",
        ),
        (
            np.float32,
            0,
            1.95,
            "values floats, 0 to 1.95 (white is 1); in % of white the mean is 97.5, the spread 97.5 ",
        ),
        (np.float32, 0.5, 3000, "values floats, 0.5 to 3,000 (white is 65,535); in % of white the mean is 2.29, the "),
    ],
)
def test_the_plan_tells_the_values_as_they_are_in_the_files(tmp_path, capsys, dtype, low, high, told):
    for number in range(20):
        image = np.random.default_rng(number).permutation(np.repeat([low, high], 162)).reshape(18, 18)
        np.save(tmp_path / f"{number:02}.npy", image.astype(dtype))
    found = plan(open_data(str(tmp_path)), Wishes(steps=1, workers=0), ALONE, None, tiny)
    print_plan(json.loads(json.dumps(found.facts)))
    assert told in " ".join(capsys.readouterr().out.split())


def test_images_of_a_single_value_are_refused_and_a_share_of_them_is_told(tmp_path):
    for name, flat in {"all": 20, "many": 5, "few": 2}.items():
        (tmp_path / name).mkdir()
        floats(tmp_path / name, 20, flat)

    def told(name: str) -> str | None:
        found = plan(open_data(str(tmp_path / name)), Wishes(steps=1, workers=0), ALONE, None, tiny)
        return found.facts["data"]["flat"]

    assert told("all") == "20 of 20 hold a single value all over (for example 000.npy)"
    for path in (tmp_path / "all").iterdir():
        np.save(path, np.full((18, 18), 0.3, np.float32))
    with pytest.raises(InputError, match=r"each of the 20 images looked at in .*all holds one and the same value all"):
        told("all")
    assert told("many") == "5 of 20 hold a single value all over (for example 000.npy)"
    assert told("few") is None


def test_a_step_that_does_not_fit_into_a_gpu_is_a_sentence(monkeypatch):
    class Large:
        def __init__(self, *_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...")

    monkeypatch.setattr(costing, "Step", Large)
    with pytest.raises(InputError, match=r"more memory than cpu has \(CUDA out of memory\): .*--training\.accumulate"):
        plan(open_data(None), Wishes(steps=1, workers=0), Processes(0, 1, torch.device("cpu")), None)


@pytest.mark.usefixtures("unmeasured")
def test_the_teacher_of_a_long_run_is_the_slower_the_longer_it_is():
    sample, alone = open_data(None), Processes(0, 1, torch.device("cpu"))

    def settled(steps: int, objective: str = "ijepa", asked: tuple[str, ...] = ()) -> tuple[float, float]:
        def small(experiment: Experiment) -> Experiment:
            training = replace(experiment.training, batch=8, replicas=1, threads=1, workers=0)
            encoder = replace(experiment.encoder, width=24, depth=1, heads=2)
            return replace(experiment, training=training, encoder=encoder)

        wishes = Wishes(steps=steps, objective=objective, workers=0)
        return plan(sample, wishes, alone, None, override=small, asked=asked).experiment.ijepa.momentum

    assert settled(9_999) == (0.99, 1.0)
    assert settled(10_000) == (0.995, 1.0)
    assert settled(25_000) == (0.998, 1.0)
    assert settled(25_000, asked=("--ijepa.momentum",)) == (0.99, 1.0)
    assert settled(25_000, "mae") == (0.99, 1.0), "it has no teacher"


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("patch", "batch", "muon"), [((7, 7), 64, False), ((4, 4), 64, True), ((4, 4), 32, False), ((7, 7), 196, True)]
)
def test_the_tokens_that_were_asked_for_say_when_runs_are_long_and_whether_they_have_muon(patch, batch, muon):
    def cut(experiment: Experiment) -> Experiment:
        encoder = replace(experiment.encoder, patch=patch, width=24, depth=1, heads=2)
        training = replace(experiment.training, batch=batch, replicas=1, threads=1, workers=0)
        return replace(experiment, encoder=encoder, training=training)

    def settled(steps: int) -> planning.Plan:
        return plan(open_data(None), Wishes(steps=steps, workers=0), ALONE, None, override=cut)

    assert [settled(steps).long for steps in (2_999, 3_000, 10_000)] == [False, muon, True]
    assert settled(10_000).experiment.optimizer.matrices == ("muon" if muon else "adamw")


def test_only_time_is_measured_with_both_recipes_and_a_brief_run_is_looked_at_for_no_longer_than_it_takes(monkeypatch):
    sample, alone = open_data(None), Processes(0, 1, torch.device("cpu"))
    measured: list[tuple[int, int | None, float]] = []
    loaders: list[int] = []
    tried: list[int] = []
    measure, batches, seconds = planning.measure, costing._batches, costing._seconds

    def noted(experiment: Experiment, *given, look: float, steps: int | None, **asked):
        measured.append((experiment.predictor.width, steps, look))
        return measure(experiment, *given, look=look, steps=steps, **asked)

    def timed(trial, way, look: float, most: int) -> float:
        tried.append(most)
        return seconds(trial, way, 0.01, most)

    def begun(experiment: Experiment, splits, processes, workers: int):
        loaders.append(workers)
        return batches(experiment, splits, processes, workers)

    def tiny(experiment: Experiment) -> Experiment:
        # The predictor tells the recipes apart.
        predictor = replace(experiment.predictor, width=experiment.encoder.width // 8, depth=1, heads=2)
        encoder = replace(experiment.encoder, width=24, depth=1, heads=2)
        training = replace(experiment.training, batch=8, replicas=1, threads=1)
        return replace(experiment, encoder=encoder, predictor=predictor, training=training)

    monkeypatch.setattr(planning, "measure", noted)
    monkeypatch.setattr(costing, "_batches", begun)
    monkeypatch.setattr(costing, "_seconds", timed)

    def looked(**wishes) -> tuple[list[tuple[int, int | None, float]], list[int], list[int]]:
        for told in (measured, loaders, tried):
            told.clear()
        plan(sample, Wishes(workers=1, **wishes), alone, None, override=tiny)
        return measured.copy(), loaders.copy(), tried.copy()

    assert looked(steps=3) == ([(24, 3, 1.0)], [0], [3])
    assert looked(steps=9_999) == ([(24, 9_999, 1.0)], [0, 1], [200, 200])
    assert looked(steps=10_000) == ([(32, 10_000, 1.0)], [0, 1], [200, 200])
    assert looked(minutes=0.1)[0] == [(24, None, pytest.approx(0.6))]
    monkeypatch.setattr(costing, "_seconds", lambda *_: 0.01)
    assert looked(minutes=60.0)[0] == [(24, None, pytest.approx(7.2)), (32, None, pytest.approx(7.2))]


@pytest.mark.usefixtures("unmeasured")
def test_the_learning_rate_goes_with_the_batch_that_was_asked_for():
    sample, alone = open_data(None), Processes(0, 1, torch.device("cpu"))

    def settled(asked: tuple[str, ...] = (), steps: int = 1, batch: int = 256, **wishes):
        def rebatched(experiment: Experiment) -> Experiment:
            tiny = {"width": 24, "depth": 1, "heads": 2}
            parts = {name: replace(getattr(experiment, name), **tiny) for name in ("encoder", "predictor")}
            training = replace(experiment.training, batch=batch, replicas=1, threads=1, workers=0)
            return replace(experiment, training=training, **parts)

        found = plan(sample, Wishes(steps=steps, workers=0, **wishes), alone, None, override=rebatched, asked=asked)
        assert found.facts["learning_rate"] == found.experiment.schedule.lr
        return found.experiment

    experiment = settled(("--training.batch",))
    assert (experiment.schedule.lr, experiment.schedule.start_lr) == pytest.approx((1e-3, 2e-4))
    assert settled(("--training.batch",), steps=10_000).schedule.lr == pytest.approx(2e-3), "the long recipe's"
    experiment = settled(("--training.batch", "--schedule.lr"))
    assert (experiment.schedule.lr, experiment.schedule.start_lr) == pytest.approx((5e-4, 2e-4))
    saved = replace(experiment, training=replace(experiment.training, batch=64))
    assert settled(experiment=saved).schedule == saved.schedule
    mae = settled(("--training.batch",), objective="mae")
    assert mae.schedule.lr == pytest.approx(2e-3)
    assert settled(experiment=experiment, objective="mae").schedule == mae.schedule
    assert settled(recipe="published-b16", batch=16).schedule.lr == 1e-3
