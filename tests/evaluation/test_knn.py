import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.utils._python_dispatch import TorchDispatchMode

from openjepa.evaluation.features import Features
from openjepa.evaluation.knn import KNN, KNNGrid, leave_one_out, unit


def clusters(n: int, classes: int, width: int, spread: float, seed: int) -> Features:
    centres = np.random.default_rng(99).normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    return Features(centres[labels] + spread * generator.normal(size=(n, width)), labels, "clusters")


@pytest.mark.parametrize("k", [1, 5, 20, 200])
def test_it_agrees_with_scikit_learn(k):
    train, test = clusters(1500, 7, 24, 1.8, 0), clusters(700, 7, 24, 1.8, 1)
    peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = peer.fit(train.values.astype(np.float64), train.labels).predict(test.values.astype(np.float64))
    found = KNN(k=k).classify(train, test)
    assert 0.3 < found.correct.mean() < 0.99  # hard enough to tell
    assert (found.predicted == expected).mean() >= 0.999
    assert found.settings == {"k": k}


def test_the_vote_is_weighted_by_similarity():
    # One neighbour at 0 degrees against two at 60: exp(1 / T) beats 2 exp(0.5 / T) at T 0.07, not at T 10.
    train = Features(np.array([[1.0, 0], [0.5, 0.75**0.5], [0.5, -(0.75**0.5)]]), np.array([4, 9, 9]), "hand")
    test = Features(np.array([[2.0, 0.0]]), np.array([4]), "hand")
    assert KNN(k=3).classify(train, test).predicted.tolist() == [4]
    assert KNN(k=3, temperature=10.0).classify(train, test).predicted.tolist() == [9]


def test_the_length_of_a_vector_does_not_matter():
    train, test = clusters(300, 4, 8, 1.5, 0), clusters(100, 4, 8, 1.5, 1)
    scale = np.exp(np.random.default_rng(2).normal(size=(300, 1)))
    stretched = Features(train.values * scale, train.labels, "stretched")
    assert np.array_equal(KNN().classify(train, test).predicted, KNN().classify(stretched, test).predicted)


def test_ties_go_to_the_earlier_image_and_the_lower_class():
    one = np.ones((6, 2), np.float32)
    train = Features(one, np.array([3, 1, 1, 2, 2, 2]), "same")
    test = Features(one[:1], np.array([3]), "same")
    said = {k: int(KNN(k=k).classify(train, test).predicted[0]) for k in (1, 2, 5, 6)}
    assert said == {1: 3, 2: 1, 5: 1, 6: 2}


def test_memory_bound_does_not_change_the_answers():
    train, test = clusters(400, 5, 16, 2.0, 0), clusters(300, 5, 16, 2.0, 1)
    whole = KNN().classify(train, test).predicted
    for at_once in (1, 400 * 7, 400 * 299):
        assert np.array_equal(KNN(at_once=at_once).classify(train, test).predicted, whole)


def test_no_more_similarities_are_held_than_the_bound_allows():
    train, test = clusters(400, 5, 16, 2.0, 0), clusters(300, 5, 16, 2.0, 1)

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else (out,):
                if isinstance(one, torch.Tensor):
                    self.numbers = max(self.numbers, one.numel())
            return out

    def held(evaluator) -> int:
        with Largest() as largest:
            evaluator.classify(train, test)
        return largest.numbers

    features = 400 * 16
    assert held(KNN()) == 400 * 300
    assert held(KNN(at_once=features)) == features
    assert held(KNNGrid(ks=(10, 20), at_once=features)) == features


@pytest.mark.parametrize("temperature", [1e-3, 1e-5])
def test_a_small_temperature_is_the_nearest_alone(temperature):
    """exp(1 / temperature) is no number any more."""
    train, test = clusters(400, 7, 24, 1.8, 0), clusters(200, 7, 24, 1.8, 1)
    nearest = KNN(k=1).classify(train, test).predicted
    assert np.array_equal(KNN(k=20, temperature=temperature).classify(train, test).predicted, nearest)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**60, 2.0**110])
def test_the_length_of_features_does_not_matter(scale):
    """Whose squares are no numbers in float32."""
    train, test = clusters(400, 7, 24, 1.8, 0), clusters(200, 7, 24, 1.8, 1)
    far = [Features(part.values * np.float32(scale), part.labels, part.name) for part in (train, test)]
    assert np.array_equal(KNN().classify(*far).predicted, KNN().classify(train, test).predicted)
    torch.testing.assert_close(unit(torch.zeros(2, 3)), torch.zeros(2, 3))
    plain = torch.from_numpy(train.values)
    assert torch.equal(unit(plain), torch.nn.functional.normalize(plain, dim=1)), "to the last bit"


def test_leaving_one_out_knows_nothing_of_features_that_are_not_finite():
    part = clusters(50, 3, 6, 0.5, 0)
    values, labels = torch.from_numpy(part.values.copy()), torch.from_numpy(part.labels)
    assert leave_one_out(values, labels) > 0.8
    values[7, 2] = torch.nan
    assert np.isnan(leave_one_out(values, labels))
    with pytest.raises(ValueError, match="k-NN needs"):
        leave_one_out(values, labels, temperature=0.0)


def test_k_is_capped_at_the_number_of_images():
    train, test = clusters(9, 3, 4, 0.1, 0), clusters(5, 3, 4, 0.1, 1)
    assert KNN(k=50)(train, test)["k"] == 9


@pytest.mark.parametrize("setting", [{"k": 0}, {"temperature": 0.0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match="k-NN needs"):
        KNN(**setting)


@pytest.mark.parametrize("evaluator", [KNN(k=5), KNNGrid(ks=(3, 5))])
def test_labels_may_be_any_numbers(evaluator):
    train, test = clusters(60, 4, 6, 1.0, 3), clusters(40, 4, 6, 1.0, 4)
    ids = np.array([3, 1_440_764, 15_075_141, 2**60])
    renamed = [Features(part.values, ids[part.labels], part.name) for part in (train, test)]
    found, plain = evaluator.classify(*renamed), evaluator.classify(train, test)
    assert np.array_equal(found.predicted, ids[plain.predicted])
    assert np.array_equal(found.correct, plain.correct)


def test_leave_one_out_equals_one_query_at_a_time():
    data = clusters(60, 4, 6, 1.0, 3)
    hits = 0
    for i in range(60):
        rest = np.delete(np.arange(60), i)
        hits += int(KNN(k=5).classify(data.take(rest), data.take(np.array([i]))).correct[0])
    found = leave_one_out(torch.from_numpy(data.values), torch.from_numpy(data.labels), k=5)
    assert found == pytest.approx(hits / 60)
    assert 0.3 < found < 1  # an image that found itself would give 1


def test_leave_one_out_passes_over_images_without_a_class():
    data = clusters(60, 4, 6, 1.0, 3)
    values, labels = torch.from_numpy(data.values), torch.from_numpy(data.labels)
    with_strangers = leave_one_out(
        torch.cat([values, torch.randn(20, 6, generator=torch.Generator().manual_seed(0))]),
        torch.cat([labels, torch.full((20,), -1)]),
    )
    assert with_strangers == leave_one_out(values, labels)
    with pytest.raises(ValueError, match="got 1"):
        leave_one_out(values[:1], labels[:1])
