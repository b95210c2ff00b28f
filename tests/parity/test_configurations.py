"""Odd configurations, recorded by an independent implementation of the published step and replayed by the project's."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent


def neighbour(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"parity_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


independent, replay = neighbour("independent"), neighbour("replay")

# Of the initial weights. With 1, as published, a wrong number of heads changes the loss of such small nets by 1e-6.
# With much more the key biases would differ: their gradient is zero but for rounding, which AdamW blows up.
STRENGTH = 2.0
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "three contexts that overlap the targets, 5 heads, predictor of 7, cut total": {
        "num_context_masks": 3,
        "allow_overlap": True,
        "embed_dim": 60,
        "num_heads": 5,
        "predictor_dim": 28,
        "predictor_heads": 7,
        "mlp_ratio": 3.3,
        "batch_size": 2,
        "ipe_scale": 1.25,
        "iterations_per_epoch": 5,
        "epochs": 3,
    },
    "two contexts, patch 16, 7 heads, no biases, no warm-up": {
        "num_context_masks": 2,
        "image_size": 96,
        "patch_size": 16,
        "embed_dim": 84,
        "num_heads": 7,
        "predictor_dim": 36,
        "predictor_heads": 3,
        "mlp_ratio": 2.0,
        "qkv_bias": False,
        "norm_eps": 1e-5,
        "warmup_epochs": 0,
        "lr": 5e-4,
    },
    "patch 14, heads of 15 features, hidden width of no round ratio, half an epoch of warm-up, falling decay": {
        "image_size": 70,
        "patch_size": 14,
        "embed_dim": 60,
        "num_heads": 4,
        "predictor_dim": 20,
        "predictor_heads": 1,
        "mlp_ratio": 3.37,
        "warmup_epochs": 0.5,
        "iterations_per_epoch": 7,
        "epochs": 3,
        "ipe_scale": 1.1,
        "weight_decay": 0.3,
        "final_weight_decay": 0.01,
    },
    "one head, one image, patch 6, the whole of a schedule cut short, other betas and EMA": {
        "image_size": 36,
        "patch_size": 6,
        "embed_dim": 32,
        "num_heads": 1,
        "predictor_dim": 16,
        "mlp_ratio": 1.9,
        "batch_size": 1,
        "iterations_per_epoch": 3,
        "epochs": 3,
        "ipe_scale": 0.75,
        "ema": [0.9, 0.95],
        "optimizer": "AdamW betas (0.8, 0.95) eps 1e-6",
    },
    "four contexts, one target, one layer each, warm-up longer than the run": {
        "num_context_masks": 4,
        "num_target_masks": 1,
        "image_size": 40,
        "depth": 1,
        "predictor_depth": 1,
        "norm_eps": 1e-5,
        "batch_size": 2,
        "warmup_epochs": 40,
        "epochs": 30,
    },
    "predictor of another ratio and with biases the encoder lacks, constant EMA, no decay": {
        "image_size": 30,
        "patch_size": 6,
        "mlp_ratio": 2.7,
        "predictor_mlp_ratio": 4.0,
        "qkv_bias": False,
        "predictor_qkv_bias": True,
        "predictor_heads": 2,
        "ema": [0.99, 0.99],
        "start_lr": 0,
        "weight_decay": 0,
        "final_weight_decay": 0,
    },
    "overlap, heads of 5 features, two targets, whole numbers where fractions are usual": {
        "image_size": 48,
        "patch_size": 8,
        "allow_overlap": True,
        "num_target_masks": 2,
        "num_context_masks": 2,
        "embed_dim": 60,
        "num_heads": 12,
        "predictor_dim": 20,
        "predictor_heads": 4,
        "predictor_depth": 3,
        "mlp_ratio": 3,
        "ema": [0.996, 1],
        "ipe_scale": 2,
    },
    "larger than it looks: 12x12 tokens, 96 wide, schedules over 300 epochs": {
        "image_size": 48,
        "embed_dim": 96,
        "num_heads": 3,
        "predictor_dim": 48,
        "batch_size": 2,
        "epochs": 300,
        "warmup_epochs": 2.5,
        "iterations_per_epoch": 2,
    },
}


def within(errors: dict[str, float]) -> bool:
    return all(math.isfinite(error) and error < replay.TOLERANCES[name] for name, error in errors.items())


def rewrite(folder: Path, **changed: Any) -> None:
    """Change the recorded configuration; None takes a key out."""
    trace = json.loads((folder / "trace.json").read_text())
    trace["config"] = {name: value for name, value in (trace["config"] | changed).items() if value is not None}
    (folder / "trace.json").write_text(json.dumps(trace))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short trace with the default configuration."""
    folder = tmp_path_factory.mktemp("plain")
    independent.record({}, folder, 3, strength=STRENGTH)
    return folder


@pytest.fixture
def variant(plain: Path, tmp_path: Path) -> Path:
    """A copy of the short trace, to change."""
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_the_independent_implementation_reproduces_the_published_one():
    trace = json.loads((HERE / "trace" / "trace.json").read_text())
    networks = independent.Networks(independent.complete(trace["config"]))
    networks.load(torch.load(HERE / "trace" / "start.pth.tar", weights_only=True))
    with np.load(HERE / "trace" / "batches.npz") as recorded:
        images = recorded["images_uint8"]
        batches = [(images[i], recorded[f"context_{i}"], recorded[f"target_{i}"]) for i in range(len(images))]
    first = independent.computed_for(networks, batches[0])
    with np.load(HERE / "trace" / "step0.npz") as recorded:
        assert set(recorded) == set(first)
        for name, tensor in first.items():
            np.testing.assert_allclose(tensor.detach().numpy(), recorded[name], rtol=0, atol=2e-6, err_msg=name)
    rows, _ = independent.train(networks, trace["config"], batches)
    for row, theirs in zip(rows, trace["steps"], strict=True):
        assert row == pytest.approx(theirs, rel=1e-6, abs=0)
        for name in ("lr", "wd", "momentum"):
            assert row[name] == pytest.approx(theirs[name], rel=1e-9, abs=0)
    end = torch.load(HERE / "trace" / "end.pth.tar", weights_only=True)
    for section, weights in networks.sections().items():
        assert list(weights) == list(end[section])
        for name, weight in weights.items():
            torch.testing.assert_close(weight, end[section][name], rtol=0, atol=1e-5, msg=f"{section} {name}")


def test_the_independent_implementation_writes_the_recorded_format(plain: Path):
    golden, folder = HERE / "trace", plain
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in golden.iterdir())
    theirs, ours = (json.loads((place / "trace.json").read_text()) for place in (golden, folder))
    assert set(theirs["config"]) <= set(ours["config"])
    assert theirs["steps"][0].keys() == ours["steps"][0].keys()
    for name in ("start", "end"):
        theirs, ours = (torch.load(place / f"{name}.pth.tar", weights_only=True) for place in (golden, folder))
        assert set(theirs) == set(ours)
        assert theirs["opt"].keys() == ours["opt"].keys()
        assert bool(theirs["opt"]["state"]) == bool(ours["opt"]["state"])
    for name in ("batches", "step0"):
        with np.load(golden / f"{name}.npz") as theirs, np.load(folder / f"{name}.npz") as ours:
            common = set(theirs) & set(ours)
            assert common == set(ours)
            assert all(theirs[key].ndim == ours[key].ndim and theirs[key].dtype == ours[key].dtype for key in common)


@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_an_odd_configuration_is_replayed(tmp_path: Path, config: dict[str, Any]):
    rows = independent.record(config, tmp_path, 6, seed=7, strength=STRENGTH)
    assert all(row["grad_norm"] > 1e-3 for row in rows)
    errors = replay.replay(tmp_path)
    assert within(errors), errors


def test_contexts_of_different_lengths_are_replayed(plain: Path):
    with np.load(plain / "batches.npz") as recorded:
        assert len({recorded[f"context_{step}"].shape[-1] for step in range(3)}) > 1
    errors = replay.replay(plain)
    assert within(errors), errors


def test_what_a_configuration_leaves_out_is_as_published(tmp_path: Path):
    needed = ("num_heads", "iterations_per_epoch", "epochs", "warmup_epochs")
    written = {name: independent.DEFAULTS[name] for name in needed}
    scaler = {
        "scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 0,
    }
    independent.record({}, tmp_path, 3, written=written, masks="int32", scaler=scaler)
    errors = replay.replay(tmp_path)
    assert within(errors), errors


def test_a_run_without_planned_epochs_ends_with_the_recorded_steps(tmp_path: Path):
    independent.record({"epochs": 1}, tmp_path, 4)
    rewrite(tmp_path, epochs=None)
    errors = replay.replay(tmp_path)
    assert within(errors), errors


def test_a_position_table_that_averaging_moved_is_no_difference(variant: Path):
    # As after some 1,500 steps with a momentum of 0.996: m * t + (1 - m) * t is not t in float32.
    end = torch.load(variant / "end.pth.tar", weights_only=True)
    end["target_encoder"]["module.pos_embed"] += 2e-5
    torch.save(end, variant / "end.pth.tar")
    errors = replay.replay(variant)
    assert within(errors), errors


@pytest.mark.parametrize(
    "described",
    [
        "AdamW betas (0.8, 0.95) eps 1e-6",
        "AdamW, betas=(0.8,0.95), eps=1e-06",
        {"name": "AdamW", "betas": [0.8, 0.95], "eps": 1e-6},
    ],
    ids=["words", "call", "mapping"],
)
def test_the_optimizer_is_understood_however_it_is_written(described: Any):
    found = replay.settings(independent.DEFAULTS | {"optimizer": described}, 6)[2]
    assert (found.betas, found.eps) == ((0.8, 0.95), 1e-6)


@pytest.mark.parametrize(
    ("changed", "shows"),
    [
        ({"num_heads": 2}, "loss"),
        ({"predictor_heads": 1}, "grad_norm"),
        ({"norm_eps": 1e-5}, "grad_norm"),
        ({"ipe_scale": 1.25}, "weight_decay"),
        ({"warmup_epochs": 0.5}, "lr"),
        ({"epochs": 3}, "momentum"),
        ({"optimizer": "AdamW betas (0.9, 0.95) eps 1e-8"}, "weights"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_another_configuration_than_the_recorded_one_is_noticed(variant: Path, changed: dict[str, Any], shows: str):
    rewrite(variant, **changed)
    errors = replay.replay(variant)
    assert errors[shows] > replay.TOLERANCES[shows], errors


def test_a_recorded_loss_that_is_no_number_is_noticed(variant: Path):
    trace = json.loads((variant / "trace.json").read_text())
    trace["steps"][1]["loss"] = math.nan
    (variant / "trace.json").write_text(json.dumps(trace))
    assert not within(replay.replay(variant))
