"""Schedules and the optimiser's groups."""

import itertools
import math

import pytest
import torch

from openjepa.encoder import Encoder, EncoderConfig
from openjepa.training.optimizer import OptimizerConfig, build_optimizers, set_schedule
from openjepa.training.schedules import ScheduleConfig, learning_rate, progress, weight_decay

CONFIG = ScheduleConfig(start_lr=0.1, lr=1.0, final_lr=0.01, warmup=0.25, weight_decay=0.04, final_weight_decay=0.4)


def test_warm_up_is_linear_and_the_cosine_ends_where_it_should():
    rates = [learning_rate(CONFIG, step, 40) for step in range(40)]
    assert rates[0] == pytest.approx(0.1 + 0.9 / 10)
    assert rates[9] == 1.0 == max(rates)
    assert rates[24] == pytest.approx((1.0 + 0.01) / 2)
    assert rates[-1] == pytest.approx(0.01)
    assert all(b < a for a, b in itertools.pairwise(rates[9:]))


def test_weight_decay_is_a_cosine_from_start_to_end():
    decays = [weight_decay(CONFIG, step, 40) for step in range(40)]
    assert decays[19] == pytest.approx(0.22)
    assert decays[-1] == pytest.approx(0.4)
    assert decays[3] == pytest.approx(0.4 - 0.36 * 0.5 * (1 + math.cos(math.pi * 0.1)))


def test_a_stretched_schedule_stops_short():
    stretched = ScheduleConfig(lr=1.0, final_lr=0.0, warmup_steps=0, stretch=1.25)
    assert learning_rate(stretched, 39, 40) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.8)))
    assert progress(stretched, 40, 40) == pytest.approx(0.8)


def test_a_schedule_shorter_than_the_run_leaves_the_momentum_at_its_end():
    short = ScheduleConfig(stretch=0.5)
    assert [progress(short, step, 40) for step in (10, 20, 30, 40)] == [0.5, 1.0, 1.0, 1.0]


def test_beyond_its_last_step_a_run_stays_as_it_ended():
    for function in (learning_rate, weight_decay, progress):
        assert function(CONFIG, 400, 40) == pytest.approx(function(CONFIG, 40 if function is progress else 39, 40))
        with pytest.raises(ValueError, match="one step or more, got steps=0"):
            function(CONFIG, 0, 0)
    assert learning_rate(CONFIG, 60, 40) == pytest.approx(0.01)
    assert learning_rate(CONFIG, 0, 1) == pytest.approx(0.01)  # the only step is the last


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="warmup"):
        ScheduleConfig(warmup=1.5)
    with pytest.raises(ValueError, match="stretch"):
        ScheduleConfig(stretch=0.0)
    with pytest.raises(ValueError, match="lr must be a number of 0 or more, got -1"):
        ScheduleConfig(lr=-1.0)


def test_biases_and_norms_are_never_decayed():
    model = Encoder(EncoderConfig(signal=(8, 8), patch=(4, 4), width=16, depth=1, heads=2))
    (optimizer,) = build_optimizers(model, OptimizerConfig())
    assert set_schedule([optimizer], CONFIG, 0, 40)["lr"] == pytest.approx(0.19)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            plain = parameter.ndim == 1
            assert (group["weight_decay"] == 0) == plain, names[id(parameter)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    parameter = model.stack.norm.bias
    torch.testing.assert_close(parameter, torch.zeros(16))
