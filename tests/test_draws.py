"""Random numbers as a function of keys."""

import numpy as np

from openjepa import draws


def test_numbers_depend_on_every_key_and_on_nothing_else():
    first = draws.uniform("crop", 1, 2, np.arange(1000))
    assert np.array_equal(first, draws.uniform("crop", 1, 2, np.arange(1000)))
    assert np.array_equal(first[100:110], draws.uniform("crop", 1, 2, np.arange(100, 110)))
    for other in (("mask", 1, 2), ("crop", 2, 2), ("crop", 1, 3)):
        moved = draws.uniform(*other, np.arange(1000))
        assert abs(np.corrcoef(first, moved)[0, 1]) < 0.12
        assert not (first == moved).any()


def test_numbers_are_uniform_and_neighbours_independent():
    u = draws.uniform("crop", 0, np.arange(400)[:, None], np.arange(500))
    counts, _ = np.histogram(u, 20, (0, 1))
    expected = u.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-squared, 19 degrees, p = 0.001
    for a, b in ((u[:-1], u[1:]), (u[:, :-1], u[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01


def test_a_permutation_is_one_and_differs_by_epoch():
    orders = [draws.permutation(1000, "order", 0, epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert (orders[0] == orders[1]).sum() < 10
    assert (orders[1] == orders[2]).sum() < 10
