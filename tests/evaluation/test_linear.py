import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from openjepa.evaluation import logistic
from openjepa.evaluation.features import Features
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.split import split


def mixture(n: int, classes: int, width: int, seed: int, signal: float = 0.35) -> Features:
    """Correlated features of very different scales and offsets, classes that overlap."""
    shared = np.random.default_rng(7)
    centres, mixing = signal * shared.normal(size=(classes, width)), shared.normal(size=(width, width)) / width**0.5
    scale, offset = np.exp(1.5 * shared.normal(size=width)), 3 * shared.normal(size=width)
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(classes, size=n - classes)])
    values = ((centres[labels] + generator.normal(size=(n, width))) @ (np.eye(width) + mixing)) * scale + offset
    return Features(values, labels, "mixture")


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_it_is_scikit_learns_model(classes, strength):
    train, test = mixture(3000, classes, 40, 0), mixture(4000, classes, 40, 1)
    scaler = StandardScaler().fit(train.values.astype(np.float64))
    x, x_test = (scaler.transform(part.values.astype(np.float64)) for part in (train, test))
    peer = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x, train.labels)
    probe = LinearProbe(strengths=(strength,)).classify(train, test)
    assert 0.5 < probe.correct.mean() < 0.99
    assert abs(probe.correct.mean() - (peer.predict(x_test) == test.labels).mean()) <= 0.001
    assert (probe.predicted == peer.predict(x_test)).mean() > 0.998

    def peer_objective(coefficients, intercepts):
        logits = torch.from_numpy(x @ coefficients.T + intercepts)
        if classes == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(train.labels))
        return float(loss) + (coefficients**2).sum() / (2 * strength * len(x))

    fitted = logistic.fit(
        logistic.standardise(torch.from_numpy(train.values)), torch.from_numpy(train.labels), classes, [strength]
    )
    best = peer_objective(peer.coef_, peer.intercept_)
    assert float(fitted.loss[0]) == pytest.approx(best, rel=1e-5)
    weights, bias = fitted.weights[0].double().numpy(), fitted.bias[0].double().numpy()
    if classes == 2:
        weights, bias = weights[1:] - weights[:1], bias[1:] - bias[:1]
    assert peer_objective(weights, bias) == pytest.approx(best, rel=1e-5)  # the loss told is that of the weights told


@pytest.mark.parametrize("strength", [10.0, 100.0, 1000.0])
def test_few_images_with_a_weak_penalty_are_solved_to_the_end(strength):
    values, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = (Features(values[part], labels[part], "digits") for part in (order[:1257], order[1257:]))
    scaler = StandardScaler().fit(train.values)
    peer = LogisticRegression(C=strength, tol=1e-9, max_iter=20_000).fit(scaler.transform(train.values), train.labels)
    probe = LinearProbe(strengths=(strength,)).classify(train, test)
    assert (probe.predicted != peer.predict(scaler.transform(test.values))).sum() <= 1


def test_strengths_side_by_side_equal_each_alone():
    train = mixture(1200, 5, 30, 0)
    features, labels = logistic.standardise(torch.from_numpy(train.values)), torch.from_numpy(train.labels)
    together = logistic.fit(features, labels, 5, [1e-3, 0.1, 10.0])
    for i, strength in enumerate([1e-3, 0.1, 10.0]):
        alone = logistic.fit(features, labels, 5, [strength])
        assert float(together.loss[i]) == pytest.approx(float(alone.loss[0]), rel=1e-5)
    assert (together.gradient <= 1e-5).all()


@pytest.mark.parametrize("classes", [2, 5])
def test_sets_side_by_side_equal_each_alone(classes):
    drawn = [mixture(60, classes, 200, seed) for seed in range(3)]
    labels = torch.arange(60) % classes
    sets = [logistic.standardise(torch.from_numpy(one.values)) for one in drawn]
    strengths = [[0.01, 1.0], [0.1, 10.0], [1e-3, 0.3]]
    # At a gradient of 1e-5 weak penalties leave weights open to what the number of threads rounds.
    together = logistic.fit_each(sets, labels, classes, strengths, tolerance=1e-6)
    for one, own, fitted in zip(sets, strengths, together, strict=True):
        alone = logistic.fit(one, labels, classes, own, tolerance=1e-6)
        torch.testing.assert_close(fitted.loss, alone.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(fitted.weights, alone.weights, rtol=1e-2, atol=2e-4)
        torch.testing.assert_close(fitted.bias, alone.bias, rtol=1e-2, atol=1e-3)
        assert (fitted.gradient <= 1e-5).all()


def test_more_dimensions_than_images():
    train, test = mixture(120, 3, 400, 0), mixture(500, 3, 400, 1)
    scaler = StandardScaler().fit(train.values.astype(np.float64))
    x, x_test = (scaler.transform(part.values.astype(np.float64)) for part in (train, test))
    peer = LogisticRegression(C=0.01, tol=1e-8, max_iter=5000).fit(x, train.labels)
    probe = LinearProbe(strengths=(0.01,)).classify(train, test)
    assert (probe.predicted == peer.predict(x_test)).mean() >= 0.996


def test_constant_and_collapsed_features_do_no_harm():
    train, test = mixture(600, 4, 10, 0), mixture(600, 4, 10, 1)
    plain = LinearProbe().classify(train, test)

    def widened(part: Features) -> Features:
        noise = 1e-4 * np.random.default_rng(3).normal(size=(len(part), 1))  # rounding of a constant 1e4
        return Features(np.concatenate([part.values, np.full((len(part), 1), 7.0), 1e4 + noise], 1), part.labels, "w")

    assert np.array_equal(LinearProbe().classify(widened(train), widened(test)).predicted, plain.predicted)
    flat = Features(np.ones((600, 10)), train.labels, "collapsed")
    most_common = np.bincount(train.labels).argmax()
    assert (LinearProbe().classify(flat, flat).predicted == most_common).all()


def test_the_choice_never_looks_at_the_test_part():
    train, test = mixture(800, 4, 60, 0), mixture(400, 4, 60, 1)
    shuffled = Features(test.values, np.random.default_rng(0).permutation(test.labels), "shuffled")
    first, second = LinearProbe().classify(train, test), LinearProbe().classify(train, shuffled)
    assert first.settings == second.settings
    assert np.array_equal(first.predicted, second.predicted)
    # Nor does its answer for an image depend on which others are asked.
    some = np.arange(0, 400, 7)
    assert np.array_equal(LinearProbe().classify(train, test.take(some)).predicted, first.predicted[some])


def test_the_strength_is_the_best_on_the_part_held_out():
    train, test = mixture(300, 4, 120, 0, signal=0.15), mixture(2000, 4, 120, 1, signal=0.15)
    chosen = LinearProbe()(train, test)["C"]
    kept, held = split(train.labels, 0.2, 0)
    by_hand = {
        c: LinearProbe(strengths=(c,)).classify(train.take(kept), train.take(held)).correct.mean()
        for c in LinearProbe().strengths
    }
    assert by_hand[chosen] >= max(by_hand.values()) - 0.02  # one image: the scaling is of 300 here, of 240 by hand
    free = LinearProbe(strengths=(10.0,))(train, test)["accuracy"]
    assert LinearProbe()(train, test)["accuracy"] > free + 0.01  # choosing pays where freedom overfits


def test_class_numbers_may_have_gaps():
    train, test = mixture(400, 3, 10, 0), mixture(300, 3, 10, 1)
    names = np.array([5, 17, 400])
    gaps = [Features(part.values, names[part.labels], "gaps") for part in (train, test)]
    expected = names[LinearProbe().classify(train, test).predicted]
    assert np.array_equal(LinearProbe().classify(*gaps).predicted, expected)


def test_repeating_gives_the_same():
    train, test = mixture(500, 4, 20, 0), mixture(200, 4, 20, 1)
    assert LinearProbe()(train, test) == LinearProbe()(train, test)


def test_strengths_must_be_positive():
    with pytest.raises(ValueError, match="above 0"):
        LinearProbe(strengths=(0.0, 1.0))
