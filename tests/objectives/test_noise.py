"""Noise that is a function of keys."""

import numpy as np
import torch

from openjepa import draws
from openjepa.objectives.noise import gaussian, uniform


def test_uniform_numbers_are_those_of_the_generator_in_draws():
    keys = torch.tensor([0, -5, 2**62 + 11])
    found = uniform(keys, 2, 7)
    golden = draws._GOLDEN
    with np.errstate(over="ignore"):
        state = draws._mix(keys.numpy().astype(np.uint64)[:, None] * golden + np.uint64(2))
        wanted = draws._mix(state + np.arange(7, dtype=np.uint64) * golden) >> np.uint64(40)
    np.testing.assert_allclose(found.double().numpy(), (wanted.astype(np.float64) + 0.5) / 2**24, rtol=0, atol=2**-24)


def test_normal_numbers_are_normal_and_each_keys_own():
    keys = torch.arange(200)
    found = gaussian(keys, 5, 500).double()
    assert abs(found.mean()) < 5 / np.sqrt(found.numel())
    assert abs(found.std() - 1) < 0.01
    assert abs((found.abs() < 1).double().mean() - 0.6827) < 0.006
    assert found.mean(0).abs().max() < 5 / np.sqrt(200)  # no place is favoured
    torch.testing.assert_close(gaussian(keys[7:8], 5, 500).double(), found[7:8], rtol=0, atol=0)
    assert not torch.isclose(gaussian(keys, 7, 500).double(), found).all(1).any()
