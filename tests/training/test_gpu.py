"""What only a GPU can show: left out where there is none."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.cli import main
from openjepa.experiment import Experiment
from openjepa.masks import MultiBlockConfig
from openjepa.recipes.baselines import baseline
from openjepa.recipes.small import small
from openjepa.training.distributed import Processes
from openjepa.training.energy import EnergyMeter
from openjepa.training.recording import Recording
from openjepa.training.step import Step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def experiment(method="ijepa", *, masks=None, side=8, matrices="adamw", **training) -> Experiment:
    made = small(signal=(4 * side, 4 * side), patch=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
    made = replace(baseline(made, method), **({} if masks is None else {"masks": masks}))
    made = replace(made, encoder=replace(made.encoder, width=96, depth=3))
    made = replace(made, optimizer=replace(made.optimizer, matrices=matrices))
    return replace(made, training=replace(made.training, **{"steps": 100, "batch": 32, **training}))


def trained(made: Experiment, device: torch.device, steps: int):
    """The rows of some steps on drawn images, and the weights after them."""
    objective = made.objective().to(device).train()
    step = Step(
        objective,
        schedule=made.schedule,
        optimizer=made.optimizer,
        training=made.training,
        processes=Processes(0, 1, device),
    )
    if made.training.compile:
        step.call.compile()
    masking, rows = made.masking(), []
    for number in range(steps):
        x = torch.randn(made.training.batch, 3, *made.encoder.signal, generator=torch.Generator().manual_seed(number))
        masks = masking(torch.arange(len(x)) + number, number)
        rows.append(step(x.to(device), masks.to(device), number))
    return rows, torch.cat([p.detach().flatten().cpu() for p in objective.parameters()])


@pytest.mark.parametrize("method", ["ijepa", "mae", "denoising"])
@pytest.mark.parametrize("change", [{}, {"accumulate": 2, "recompute": True}, {"matrices": "muon"}])
def test_a_recorded_step_is_the_step(method, change):
    (plain, before), (recorded, after) = (
        trained(experiment(method, record=record, **change), GPU, 12) for record in (False, True)
    )
    for one, other in zip(plain, recorded, strict=True):
        assert other == pytest.approx(one, rel=2e-2, abs=1e-4)
    # Attention's gradient is summed in no fixed order, so the last bits differ from run to run.
    assert (after - before).norm() < 2e-3 * before.norm()


def test_what_waits_for_the_gpu_is_computed_as_it_comes():
    masks = experiment().masking()(torch.arange(8), 0).to(GPU)
    found, x = Recording([]), torch.ones(8, 1, device=GPU)

    def work(x, _):
        return x * x.sum().item()

    for _ in range(3):
        found(work, x, masks)
    with pytest.warns(UserWarning, match="cannot be recorded"):
        assert (found(work, x, masks) == 8).all()
    assert not found.made
    assert (found(work, 2 * x, masks) == 32).all()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_batches_of_another_shape_are_computed_as_they_come():
    masks = experiment().masking()(torch.arange(8), 0).to(GPU)
    weight = torch.nn.Parameter(torch.ones(1, device=GPU))
    found, x = Recording([weight]), torch.arange(8.0, device=GPU)[:, None]

    def work(x, _):
        loss = (weight * x).sum()
        loss.backward()
        return loss.detach()

    for number in range(6):
        for part in (8, 4):  # the four are no part of the recording
            own = x[:part] + number
            told = found(work, own, masks.rows(0, part))
            assert told == own.sum()
            assert weight.grad is not None
            assert weight.grad.item() == own.sum().item()
            weight.grad = None
            if not found.made and part == 8:
                break
    assert found.made


@pytest.mark.parametrize("method", ["ijepa", "mae", "denoising"])
def test_a_gpu_computes_what_a_cpu_does(method):
    made = experiment(method, precision="float32")
    (here, before), (there, after) = (trained(made, device, 6) for device in (CPU, GPU))
    for one, other in zip(here, there, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    assert (after - before).norm() < 1e-3 * before.norm()


@pytest.mark.parametrize("side", [8, 14])  # rows of more than 128 tokens have a kernel of their own
def test_packed_rows_equal_padded_ones(side, monkeypatch):
    import openjepa.transformer

    packed = MultiBlockConfig(shape="packed", context_share=1.0)
    exact, _ = trained(experiment(masks=packed, side=side, precision="float32"), GPU, 4)
    kernel, _ = trained(experiment(masks=packed, side=side), GPU, 4)
    monkeypatch.setattr(openjepa.transformer, "_varlen", lambda *_: None)
    padded, _ = trained(experiment(masks=packed, side=side), GPU, 4)
    for right, one, other in zip(exact, kernel, padded, strict=True):
        assert one["loss"] == pytest.approx(right["loss"], rel=1e-2)
        assert other["loss"] == pytest.approx(right["loss"], rel=1e-2)
        assert one["grad_norm"] == pytest.approx(right["grad_norm"], rel=5e-2)


SCRIPT = """
import sys
import warnings
import pytest
from openjepa.masks import MultiBlockConfig
sys.path.insert(0, sys.argv[1])
from test_gpu import GPU, experiment, trained

warnings.filterwarnings("error", message=".*cannot be recorded")
change = eval(sys.argv[2])
(plain, before), (other, after) = (
    trained(experiment(**given), GPU, 8) for given in (change | {"record": False, "compile": False}, change)
)
for one, two in zip(plain, other, strict=True):
    assert two["loss"] == pytest.approx(one["loss"], rel=2e-2), (one, two)
assert (after - before).norm() < 1e-2 * before.norm(), (after - before).norm() / before.norm()
"""


@pytest.mark.parametrize(
    "change",
    [
        {"compile": True},
        {"compile": True, "masks": MultiBlockConfig(shape="packed", context_share=1.0)},
    ],
)
def test_a_compiled_step_is_the_step(change):
    # In a process of its own: the checks of shapes that tests switch on cannot be traced.
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), repr(change)]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_a_run_on_a_gpu_goes_on_where_it_stopped_and_is_judged_on_a_cpu(tmp_path, capsys):
    def call(*arguments) -> None:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert not end.value.code, capsys.readouterr().err

    run, part = tmp_path / "run", tmp_path / "part"
    small_run = ("--steps", 60, "--encoder.width", 48, "--encoder.depth", 2, "--optimizer.clip", 1.0)
    call("pretrain", "--out", run, "--device", "cuda", *small_run, "--training.save-every", 20, "--training.keep", 9)
    assert json.loads((run / "plan.json").read_text())["device"] == torch.cuda.get_device_name(GPU)
    shutil.copytree(run, part)
    for step in (40, 60):
        shutil.rmtree(part / "checkpoints" / f"step-{step}")
    call("resume", part)
    whole, rest = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (run, part)
    )
    assert [row["step"] for row in whole] == [row["step"] for row in rest]
    assert rest[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=2e-2)
    assert whole[-1]["loss"] < whole[0]["loss"]
    call("evaluate", part, "--device", "cpu", "--limit", 500, "--only", "knn")


def test_the_board_counts_its_energy():
    pytest.importorskip("pynvml")
    meter = EnergyMeter(GPU)
    if not meter.covers:
        pytest.skip("the board's counter cannot be read")
    x = torch.randn(4096, 4096, device=GPU)
    for _ in range(200):
        x = (x @ x).clamp(-1, 1)
    torch.cuda.synchronize()
    spent = meter.joules()
    assert spent is not None
    assert 1 < spent < 10_000
