"""The loop: exact resume, accumulation, refusals, interruptions. Real images, real steps, small networks."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from openjepa.data.augmentation import Augmentation, Preprocessing
from openjepa.data.base import BadImage, Header, Source
from openjepa.data.loader import LoaderError, training_batches
from openjepa.data.sources import ArraySource
from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.masking import MultiBlockMasking
from openjepa.masks import MultiBlockConfig
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig
from openjepa.training import checkpoint as checkpoints
from openjepa.training.distributed import Processes, join
from openjepa.training.energy import EnergyMeter
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import Step, TrainingConfig, refuse_uneven
from openjepa.training.trainer import Trainer, TrainingStopped, _Window

ENCODER = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=2)
PREDICTOR = PredictorConfig(width=16, depth=1, heads=2)
PREPROCESSING = Preprocessing(size=(16, 16), channels=1, mean=(0.5,), std=(0.25,))
ALONE = Processes(0, 1, torch.device("cpu"))


class Spoilt(Source):
    """Images of which some cannot be read."""

    name = "spoilt"

    def __init__(self, images, spoilt) -> None:
        self.images, self.spoilt = images, frozenset(spoilt)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index, at_least=None):
        if index in self.spoilt:
            raise BadImage(self.reference(index), "truncated")
        return self.images[index]

    def header(self, index):
        return Header(18, 18, 1, 8, "L")

    def encoded(self, index):
        return self.images[index].tobytes()

    def identity(self):
        yield b"spoilt"

    def reference(self, index):
        return f"image {index}"


def source(count=50, spoilt=()) -> Source:
    """Stripes of different width, direction and place."""
    numbers = np.random.default_rng(0).uniform(size=(count, 3, 1, 1))
    rows, columns = np.mgrid[:18, :18]
    angle, width, phase = 3.1 * numbers[:, 0], 0.3 + numbers[:, 1], 6.3 * numbers[:, 2]
    stripes = np.sin((rows * np.cos(angle) + columns * np.sin(angle)) * width + phase)
    images = (127 + 127 * stripes).astype(np.uint8)[..., None]
    return Spoilt(images, spoilt) if spoilt else ArraySource("stripes", images)


def objective(**config) -> IJEPA:
    return IJEPA(ENCODER, PREDICTOR, IJEPAConfig(**config), generator=torch.Generator().manual_seed(0))


def trainer(run, images=None, *, model=None, optimizer=None, watch=lambda: {"rankme": 1.0}, **training) -> Trainer:
    run.mkdir(exist_ok=True)
    images = images or source()
    settings = {"steps": 60, "batch": 8, "workers": 0, "save_every": 1000, "watch_every": 25, "precision": "float32"}
    config = TrainingConfig(**{**settings, **training})
    masking = MultiBlockMasking(ENCODER.grid, MultiBlockConfig(targets=2))

    def batches(start):
        return training_batches(
            images,
            PREPROCESSING,
            Augmentation(),
            masking,
            batch=config.batch,
            seed=0,
            workers=config.workers,
            start_step=start,
        )

    return Trainer(
        model or objective(target_norm="position", momentum=(0.9, 1.0)),
        batches=batches,
        preprocessing=PREPROCESSING,
        schedule=ScheduleConfig(lr=3e-3),
        optimizer=optimizer or OptimizerConfig(clip=1.0),
        training=config,
        processes=ALONE,
        run=run,
        reference=images.reference,
        images=len(images),
        watch=watch,
    )


def numbers(run) -> list[dict]:
    timed = ("images_per_s", "data_wait", "seconds", "peak_memory", "joules")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


@pytest.mark.parametrize("counted", [True, False])
def test_energy_of_a_part_is_not_taken_for_the_runs(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(EnergyMeter, "joules", lambda self: 3.0 if counted else None)
    trainer(tmp_path, steps=4).train(until=2, show=False)
    monkeypatch.setattr(EnergyMeter, "joules", lambda self: 2.0)
    resumed = trainer(tmp_path, steps=4)
    resumed.resume()
    resumed.train(show=False)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last.get("joules") == (5.0 if counted else None)


def same(one: dict, other: dict) -> bool:
    """Whether nested dictionaries of tensors are bit for bit the same."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_run_has_its_threads_and_gives_them_back(tmp_path):
    before, seen = torch.get_num_threads(), []
    watch = lambda: seen.append(torch.get_num_threads()) or {"rankme": 1.0}  # noqa: E731
    trainer(tmp_path, threads=before + 1, steps=2, watch=watch).train(show=False)
    assert seen[-1] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("precision", "workers", "accumulate", "replicas"), [("float32", 0, 1, 1), ("bf16", 2, 2, 1), ("bf16", 1, 1, 2)]
)
def test_sixty_steps_are_thirty_and_thirty(tmp_path, precision, workers, accumulate, replicas):
    settings = {"precision": precision, "accumulate": accumulate, "replicas": replicas, "log_every": 1}
    straight = trainer(tmp_path / "straight", **settings)
    assert straight.train(show=False) is None
    # 8 images a step of 50 are 6 steps an epoch: 32 is in the middle of one.
    first = trainer(tmp_path / "parts", **settings)
    first.train(until=32, show=False)
    second = trainer(
        tmp_path / "parts", workers=workers, model=objective(target_norm="position", momentum=(0.9, 1.0)), **settings
    )
    assert second.resume() == []
    assert second.done == 32
    second.train(show=False)
    one, other = (checkpoints.load_newest(tmp_path / name / "checkpoints")[0] for name in ("straight", "parts"))
    assert one.step == other.step == 60
    assert same(one.state, other.state)
    assert numbers(tmp_path / "straight") == numbers(tmp_path / "parts")
    assert len(numbers(tmp_path / "parts")) == 60


@pytest.mark.parametrize("save_every", [1, 1000])
def test_saving_does_not_change_a_run(tmp_path, save_every):
    run = trainer(tmp_path, steps=4, save_every=save_every)
    run.train(show=False)  # which saves before its first step as well
    bare = trainer(tmp_path / "bare", steps=4)
    for number, batch in enumerate(itertools.islice(bare.batches(0), 4)):
        bare.step(PREPROCESSING.normalise(batch.images), batch.masks, number)
    one, other = (own.step.optimizers[0].state[own.step.parameters[0]]["step"].item() for own in (run, bare))
    assert one == other == 4
    assert same(run.objective.state_dict(), bare.objective.state_dict())


def test_a_run_resumed_before_its_first_step_is_the_same(tmp_path):
    straight, parts = (trainer(tmp_path / name, steps=3) for name in ("straight", "parts"))
    straight.train(show=False)
    parts.save()
    again = trainer(tmp_path / "parts", steps=3)
    assert again.resume() == []
    assert again.done == 0
    again.train(show=False)
    assert same(straight.objective.state_dict(), again.objective.state_dict())


def test_rows_of_steps_taken_again_are_not_doubled(tmp_path):
    run = tmp_path / "run"
    first = trainer(run, log_every=1, save_every=10)
    first.train(until=15, show=False)
    kept = numbers(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')  # killed in the middle of a row
    checkpoint = run / "checkpoints" / "step-15" / "state.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    second = trainer(run, log_every=1)
    damaged = second.resume()
    assert "step-15" in damaged[0]
    assert second.done == 10
    second.train(until=15, show=False)
    assert numbers(run) == kept


@pytest.mark.parametrize("variance_covariance", [0.0, 0.5])
def test_accumulated_gradients_equal_the_large_batch(variance_covariance):
    gradients = []
    images = source()
    masking = MultiBlockMasking(ENCODER.grid, MultiBlockConfig(contexts=2))
    batch = next(training_batches(images, PREPROCESSING, Augmentation(), masking, batch=12, seed=0, workers=0))
    for pieces in (1, 3, 6):
        model = objective(target_norm="position", variance_covariance=variance_covariance).double()
        step = Step(
            model,
            schedule=ScheduleConfig(),
            optimizer=OptimizerConfig(),
            training=TrainingConfig(batch=12, accumulate=pieces, precision="float32"),
            processes=ALONE,
        )
        row = step.backward(PREPROCESSING.normalise(batch.images).double(), batch.masks)
        gradients.append((row["loss"], [p.grad for p in step.parameters], model.gathered[0]))
    for loss, grads, sums in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-6)
        torch.testing.assert_close(sums, gradients[0][2], rtol=1e-5, atol=1e-4)
        for one, other in zip(grads, gradients[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_training_learns(tmp_path):
    run = tmp_path / "run"
    trainer(run, steps=80, log_every=1, model=objective()).train(show=False)
    losses = [row["loss"] for row in numbers(run)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_clipping_bounds_the_gradient_that_is_used(tmp_path):
    moved = []
    for clip in (None, 1e-8):
        run = trainer(tmp_path / str(clip), optimizer=OptimizerConfig(clip=clip, eps=1e-3))
        before = [p.detach().clone() for p in run.step.parameters]
        run.train(until=1, show=False)
        moved.append(sum((a - b).abs().sum() for a, b in zip(before, run.step.parameters, strict=True)))
    assert moved[1] < 0.5 * moved[0]


def test_a_replayed_step_is_clipped_by_its_own_norm():
    """A recording writes its numbers where they lay; here it is what was computed before, given back."""
    run, found = (
        Step(
            objective(),
            schedule=ScheduleConfig(),
            optimizer=OptimizerConfig(clip=1.0),
            training=TrainingConfig(steps=4, batch=8, precision="float32"),
            processes=ALONE,
        ),
        torch.tensor([0.5, 7.0], dtype=torch.float64),
    )
    run.recording = lambda work, x, masks: found
    run._names = ["loss", "grad_norm"]
    x, masks = torch.zeros(8, 1, 16, 16), MultiBlockMasking(ENCODER.grid, MultiBlockConfig(targets=2))(np.arange(8), 0)
    run.backward(x, masks)
    assert run.norm.item() == 7.0


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_weights_change(tmp_path, where):
    model = objective()
    run = trainer(tmp_path / "run", model=model)
    run.train(until=5, show=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if where == "loss":
        model.predictor.project.register_forward_hook(lambda module, given, output: output * torch.nan)
    else:
        model.predictor.mask_token.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingStopped, match=r"step 5 .*not finite.*batch of 8 images begins with .*nonfinite-step-5"):
        run.train(show=False)
    assert same(dict(model.state_dict()), before)
    assert run.done == 5
    assert checkpoints.load_newest(tmp_path / "run" / "checkpoints")[0].step == 5
    named = json.loads((tmp_path / "run" / "nonfinite-step-5.json").read_text())
    assert len(named["images"]) == 8


def test_a_step_that_is_refused_leaves_the_running_statistics_alone():
    model = objective(target_norm="whiten").train()
    training = TrainingConfig(steps=10, batch=8, precision="float32")
    step = Step(model, schedule=ScheduleConfig(), optimizer=OptimizerConfig(), training=training, processes=ALONE)
    masking = MultiBlockMasking(ENCODER.grid, MultiBlockConfig(targets=2))
    x = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    step(x, masking(torch.arange(8), 0), 0)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    with pytest.raises(FloatingPointError, match="nan"):
        step(torch.full_like(x, torch.nan), masking(torch.arange(8), 1), 1)
    assert same(dict(model.named_buffers()), before)
    for number in (1, 2, 3):
        assert np.isfinite(step(x, masking(torch.arange(8), number), number)["loss"])


def test_micro_batches_may_have_masks_of_different_sizes():
    masking = [MultiBlockMasking(ENCODER.grid, MultiBlockConfig(targets=2, context_tokens=k)) for k in (3, 5)]
    masks = [one(torch.arange(4), 0) for one in masking]
    x = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    model = objective().train()
    settings = {"schedule": ScheduleConfig(), "optimizer": OptimizerConfig(), "processes": ALONE}
    for replicas in (1, 2):
        training = TrainingConfig(batch=8, accumulate=2, replicas=replicas, precision="float32")
        row = Step(model, training=training, **settings).backward(x, masks)
        with torch.no_grad():
            losses = [model(part, own).loss.item() for part, own in zip(x.split(4), masks, strict=True)]
        assert losses[0] != pytest.approx(losses[1], rel=1e-3)
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    with pytest.raises(ValueError, match="masks of 3 micro-batches were given, and a step has 2"):
        Step(model, training=TrainingConfig(batch=8, accumulate=2), **settings).backward(x, [*masks, masks[0]])


def test_a_loader_that_dies_leaves_a_run_that_is_saved_where_it_was(tmp_path):
    run = trainer(tmp_path / "run")
    whole = run.batches

    def dying(start):
        yield from itertools.islice(whole(start), 7)
        raise LoaderError("a loader process was killed")

    run.batches = dying
    with pytest.raises(TrainingStopped, match=r"process was killed; the run is saved at step 7: openjepa resume"):
        run.train(show=False)
    assert checkpoints.load_newest(tmp_path / "run" / "checkpoints")[0].step == 7


@pytest.mark.parametrize("error", [InputError("33 images in a row cannot be read"), OSError("the drive is gone")])
def test_whatever_stops_the_batches_the_run_is_saved_first(tmp_path, error):
    run = trainer(tmp_path / "run", source(), steps=20, save_every=100)
    whole = run.batches

    def ending(start):
        yield from itertools.islice(whole(start), 7)
        raise error

    run.batches = ending
    with pytest.raises(type(error), match=str(error)) as told:
        run.train(show=False)
    assert checkpoints.load_newest(tmp_path / "run" / "checkpoints")[0].step == 7
    said = str(told.value) if isinstance(error, InputError) else told.value.__notes__[0]
    assert "the run is saved at step 7: openjepa resume" in said


def test_where_the_disk_is_gone_too_the_first_error_is_told(tmp_path, monkeypatch):
    run = trainer(tmp_path / "run", source(), steps=20, save_every=100)

    def lost() -> None:
        raise InputError("cannot write the checkpoint")

    def ending() -> Iterator:
        raise InputError("33 images in a row cannot be read")
        yield

    monkeypatch.setattr(run, "save", lost)
    with pytest.raises(InputError, match=r"33 images .*; the run could not be saved either \(cannot write the"):
        run._next(ending(), _Window())


def test_processes_that_cannot_share_a_batch_are_refused():
    refuse_uneven(TrainingConfig(batch=64, accumulate=2), Processes(0, 4, torch.device("cpu")))
    with pytest.raises(InputError, match=r"64 cannot be shared evenly by 3 processes with 1 .* multiple of 3"):
        refuse_uneven(TrainingConfig(batch=64), Processes(0, 3, torch.device("cpu")))


@pytest.mark.parametrize("device", ["mps", "meta", "xpu:0"])
def test_devices_of_other_kinds_are_refused(device):
    with pytest.raises(InputError, match=f"device '{device}' is not supported yet .*use cpu, cuda"):
        join(device)


def test_a_bad_image_is_set_aside_and_replaced_the_same_way_again(tmp_path):
    runs = []
    for name, workers in (("one", 0), ("two", 2)):
        run = trainer(tmp_path / name, source(400, spoilt=[3, 17]), workers=workers, batch=40, steps=30, log_every=1)
        run.train(show=False)
        rows = [json.loads(line) for line in (tmp_path / name / "bad_images.jsonl").read_text().splitlines()]
        assert len(rows) == 2
        assert {row["reason"] for row in rows} == {"truncated"}
        runs.append(numbers(tmp_path / name))
    assert runs[0] == runs[1]


def test_too_many_bad_images_stop_the_run_and_keep_it(tmp_path):
    run = trainer(tmp_path / "run", source(100, spoilt=range(0, 100, 20)))
    with pytest.raises(
        InputError, match=r"2 of 100 images could not be read, more than 1%.*truncated.*bad_images\.jsonl"
    ):
        run.train(show=False)
    assert checkpoints.load_newest(tmp_path / "run" / "checkpoints")[0].step == run.done
    # Those met anew count anew: as many stop it once more, and it goes on where more are allowed, or can be read again.
    again = trainer(tmp_path / "run", source(100, spoilt=range(0, 100, 20)), steps=30)
    assert again.resume() == []
    with pytest.raises(InputError, match=r"2 of 100 images .*: openjepa resume .*run --bad-images SHARE"):
        again.train(show=False)
    more = trainer(tmp_path / "run", source(100, spoilt=range(0, 100, 20)), steps=12, bad_images=0.05)
    more.resume()
    assert more.train(show=False) is None
    healed = trainer(tmp_path / "run", source(100), steps=13)
    healed.resume()
    assert len(healed.bad) > 1
    assert healed.train(show=False) is None
    assert healed.done == 13


def test_a_second_signal_exits_at_once_but_one_sent_twice_is_one_and_one_ignored_is_none():
    program = """
import signal, sys, time
from openjepa.training.interruption import Interruption
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
with Interruption() as interruption:
    signal.raise_signal(signal.SIGHUP)
    print(interruption.asked, flush=True)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    print(interruption.asked, flush=True)
    time.sleep(0.7)
    signal.raise_signal(signal.SIGINT)
    print("still here")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.returncode) == ("None\nSIGTERM\n", -signal.SIGINT), ended.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_leaves(tmp_path, name):
    number, log = signal.Signals[name], tmp_path / "run" / "metrics.jsonl"
    run = trainer(tmp_path / "run", steps=100_000)

    def interrupt() -> None:
        while not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # ignored, where nohup has begun the tests
    threading.Thread(target=interrupt, daemon=True).start()
    begin = time.monotonic()
    assert run.train(show=False) == name
    signal.signal(number, before)
    assert time.monotonic() - begin < 20
    assert 0 < run.done < 100_000
    assert checkpoints.load_newest(tmp_path / "run" / "checkpoints")[0].step == run.done


class Stopped(Processes):
    """One of two processes, of which the other has been sent a signal."""

    def any(self, found):
        return True

    def gather(self, found):
        return [found] if isinstance(found, dict) else [found, "SIGTERM"]


def test_a_signal_to_another_process_stops_the_run_and_is_told(tmp_path):
    run = trainer(tmp_path / "run", steps=100)
    run.processes = Stopped(0, 1, torch.device("cpu"))
    assert run.train(show=False) == "SIGTERM"
    assert run.done == 1


@pytest.mark.parametrize("change", [{"recompute": True}, {"workers": 1}])
def test_what_saves_memory_or_time_does_not_change_the_numbers(tmp_path, change):
    for name, more in (("plain", {}), ("other", change)):
        trainer(tmp_path / name, steps=6, log_every=1, **more).train(show=False)
    for one, other in zip(numbers(tmp_path / "plain"), numbers(tmp_path / "other"), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"steps": 0}, {"batch": 10, "accumulate": 3}, {"workers": -1}):
        with pytest.raises(ValueError, match="|".join(wrong)):
            replace(TrainingConfig(), **wrong)


def watching(run, values, **training) -> Trainer:
    """A trainer whose watch reports an alpha-ReQ from ``values``, by the steps done."""
    made: list[Trainer] = []

    def look() -> dict[str, float]:
        return {"rankme": 10.0, "alpha_req": values[made[0].done // 5 if made else 0]}

    made.append(trainer(run, watch=look, watch_every=5, log_every=1, steps=30, **training))
    return made[0]


ALPHAS = [2.5, 2.4, 2.2, 2.3, 2.6, 2.1, 2.4]


def test_the_untrained_encoder_is_looked_at_and_stands_in_the_first_row(tmp_path):
    watching(tmp_path / "run", ALPHAS).train(show=False)
    rows = numbers(tmp_path / "run")
    assert rows[0]["untrained_alpha_req"] == 2.5
    assert not any(name.startswith("untrained") for row in rows[1:] for name in row)
    assert [row["alpha_req"] for row in rows if "rankme" in row] == ALPHAS[1:]


def test_the_best_checkpoint_is_kept_also_over_a_stop(tmp_path):
    straight = watching(tmp_path / "straight", ALPHAS, keep_best=True, keep=1)
    straight.train(until=22, show=False)
    assert straight.best == 10
    assert checkpoints.steps(tmp_path / "straight" / "checkpoints") == [10, 22]
    again = watching(tmp_path / "straight", ALPHAS, keep_best=True, keep=1)
    again.resume()
    assert again.best == 10
    again.train(show=False)
    assert again.best == 25
    assert checkpoints.steps(tmp_path / "straight" / "checkpoints") == [25, 30]
    one = watching(tmp_path / "one", ALPHAS, keep_best=True, keep=1)
    one.train(show=False)
    assert (one.best, numbers(tmp_path / "one")) == (25, numbers(tmp_path / "straight"))
    best = [checkpoints.load(tmp_path / name / "checkpoints" / "step-25").state for name in ("one", "straight")]
    assert same(*best)


def test_without_keep_best_nothing_is_kept_for_it(tmp_path):
    run = watching(tmp_path / "run", ALPHAS, keep=1)
    run.train(show=False)
    assert run.best is None
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == [30]


def test_a_trouble_is_told_once_on_stderr_and_so_is_its_end(tmp_path, capsys):
    run = watching(tmp_path / "run", [2.5, 3.5, 3.6, 3.7, 2.4, 2.3, 2.2])
    run.train(until=17)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("openjepa: step 10: By measures without labels")
    assert "since step 5" in told[0]
    again = watching(tmp_path / "run", [2.5, 3.5, 3.6, 3.7, 2.4, 2.3, 2.2])
    again.resume()
    again.train()
    (ended,) = capsys.readouterr().err.splitlines()
    assert ended.startswith("openjepa: step 20: no longer so: By measures")
