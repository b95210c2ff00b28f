"""SGD, attentive and low-shot probes, retrieval and the k grid: known answers, outside code, and no peeping."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from openjepa import draws
from openjepa.errors import InputError
from openjepa.evaluation import logistic
from openjepa.evaluation.attentive import AttentiveProbe, heads_for, initial, logits
from openjepa.evaluation.catalogue import choose, full, quick
from openjepa.evaluation.features import Classifier, Features, Grader, Tokens
from openjepa.evaluation.knn import KNN, KNNGrid
from openjepa.evaluation.lowshot import LowShot
from openjepa.evaluation.retrieval import Retrieval, average_precision
from openjepa.evaluation.sgd_probe import SGDProbe
from openjepa.evaluation.split import split
from openjepa.evaluation.suite import TOKENS


def clusters(n: int, seed: int, classes: int = 4, width: int = 12, spread: float = 1.5) -> Features:
    centres = np.random.default_rng(99).normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(classes, size=n - classes)])
    return Features(centres[labels] + spread * generator.normal(size=(n, width)), labels, "clusters")


def needles(n: int, seed: int, places: int = 9, width: int = 16) -> Tokens:
    """Each image has one token of its class at a random place among tokens of noise: their mean says little."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(3), generator.integers(3, size=n - 3)])
    values = generator.normal(size=(n, places, width))
    needle = 4 * np.eye(width)[labels]
    needle[:, -1] = 6  # the mark of a needle
    values[np.arange(n), generator.integers(places, size=n)] = needle + 0.3 * generator.normal(size=(n, width))
    return Tokens(values.astype(np.float16), labels, "needles")


def shuffled(part):
    return type(part)(part.values, np.random.default_rng(5).permutation(part.labels), part.name)


@pytest.mark.parametrize(
    ("evaluator", "make"),
    [
        (KNNGrid(ks=(1, 5, 20)), clusters),
        (SGDProbe(epochs=3, rates=(0.01, 0.1, 1.0)), clusters),
        (SGDProbe(epochs=3, batch_norm=True), clusters),
        (AttentiveProbe(epochs=1), needles),
    ],
    ids=["knn", "sgd", "sgd with BatchNorm", "attentive"],
)
def test_nothing_is_chosen_by_the_test_part(evaluator, make):
    train, test = make(300, 0), make(150, 1)
    one, other = evaluator.classify(train, test), evaluator.classify(train, shuffled(test))
    assert one.settings == other.settings
    assert np.array_equal(one.predicted, other.predicted)
    assert evaluator(train, test) == one.scores()  # and repeating gives the same


def test_every_entry_of_the_suite_can_be_compared_image_by_image():
    for entry in full():
        assert isinstance(entry.evaluator, Classifier | Grader), entry.evaluator.name
    names = [entry.evaluator.name for entry in full()]
    assert len(set(names)) == len(names)
    first = ["k-NN", "linear probe", "linear probe, last four blocks"]
    assert [entry.evaluator.name for entry in quick()] == names[:3] == first


def test_evaluators_are_chosen_by_name():
    assert {entry.key for entry in choose("quick", ("knn", "retrieval"))} == {"knn", "retrieval"}
    with pytest.raises(InputError, match="no suite 'best'; choose from quick, full"):
        choose("best")
    with pytest.raises(InputError, match="no evaluator 'svm'; choose from knn, logistic, sgd, attentive"):
        choose("full", ("svm",))


def test_the_k_grid_is_k_nn_with_every_k_and_the_best_on_the_part_held_out():
    train, test = clusters(600, 0), clusters(300, 1)
    found = KNNGrid(ks=(1, 5, 20, 600, 1000)).classify(train, test)
    assert list(found.also) == [f"accuracy, k={k}" for k in (1, 5, 20, 600)]  # there are no 1,000 to vote
    assert list(KNNGrid(ks=(1000,)).classify(train, test).also) == ["accuracy, k=600"]
    for k in (1, 5, 20, 600):
        alone = KNN(k=k).classify(train, test)
        assert np.array_equal(found.also[f"accuracy, k={k}"], alone.correct)
    kept, held = split(train.labels)
    by_hand = {k: KNN(k=k)(train.take(kept), train.take(held))["accuracy"] for k in (1, 5, 20, 600)}
    assert by_hand[int(found.settings["k"])] == max(by_hand.values())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_sgd_probe_is_torchs_sgd(batch_norm):
    """One member of a grid, trained beside others, equals torch.optim.SGD on nn.Linear on the same batches."""
    train, test = clusters(200, 0), clusters(100, 1)
    probe = SGDProbe(rates=(0.05, 0.5), decays=(0.0, 0.01), epochs=10, batch=64, batch_norm=batch_norm)
    x, y = torch.from_numpy(train.values), torch.from_numpy(train.labels)
    grid = [(rate, decay) for rate in probe.rates for decay in probe.decays]
    found = probe.fit(x, y, 4, grid)
    for member, (rate, decay) in enumerate(grid):
        layer = torch.nn.Linear(12, 4)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        norm = torch.nn.BatchNorm1d(12, affine=False) if batch_norm else torch.nn.Identity()
        groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias], "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=rate * 64 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.1)  # every 15 of 50 epochs
        for epoch in range(10):
            order = torch.from_numpy(draws.permutation(200, "sgd probe", 0, epoch))
            for index in order[:192].split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(layer(norm(x[index])), y[index]).backward()
                optimizer.step()
            schedule.step()
        torch.testing.assert_close(found.weights[member], layer.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bias[member], layer.bias.detach(), rtol=1e-4, atol=1e-5)
    answers = found.predict(torch.from_numpy(test.values))
    assert (answers == torch.from_numpy(test.labels)).float().mean(1).min() > 0.5


def test_batch_norm_makes_the_scale_of_features_irrelevant():
    train, test = clusters(400, 0), clusters(400, 1)
    scale = np.exp(4 * np.random.default_rng(0).normal(size=12)).astype(np.float32)
    stretched = [Features(part.values * scale + 5 * scale, part.labels, "s") for part in (train, test)]
    best = LogisticRegression(C=10, max_iter=2000).fit(train.values, train.labels).score(test.values, test.labels)
    for parts in ((train, test), stretched):
        assert SGDProbe(batch_norm=True)(*parts)["accuracy"] > best - 0.02
    assert SGDProbe()(*stretched)["accuracy"] < best - 0.05


def test_a_rate_that_blows_up_is_not_chosen():
    train, test = clusters(300, 0), clusters(300, 1)
    huge = [Features(part.values * 1e6, part.labels, "huge") for part in (train, test)]
    found = SGDProbe(rates=(1e-12, 1e30), decays=(0.0,), epochs=5).classify(*huge)
    assert found.settings["lr"] == 1e-12
    assert found.correct.mean() > 0.5


def test_attention_without_projected_tokens_is_multi_head_attention():
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(w.shape, generator=generator) * 0.3 for name, w in initial(2, 16, 3, 2.0, 0).items()}
    tokens = torch.randn(5, 7, 16, generator=generator)
    found = logits(weights, tokens, 4)
    norm = torch.nn.functional.layer_norm
    for g in range(2):
        own = {name: w[g] for name, w in weights.items()}
        x = norm(tokens, (16,), eps=1e-6)
        identity = torch.eye(16)
        peer, _ = torch.nn.functional.multi_head_attention_forward(
            own["query"].expand(1, 5, 16), x.transpose(0, 1), x.transpose(0, 1), 16, 4, None,
            torch.cat([torch.zeros(32), own["value_bias"][0]]), None, None, False, 0.0, own["out"], own["out_bias"][0],
            use_separate_proj_weight=True, q_proj_weight=identity, k_proj_weight=own["key"], v_proj_weight=own["value"],
        )  # fmt: skip
        z = own["query"] + peer[0]
        inner = norm(z, (16,), own["norm_scale"][0], own["norm_bias"][0], 1e-6) @ own["mlp_in"].T + own["mlp_in_bias"]
        z = z + torch.nn.functional.gelu(inner) @ own["mlp_out"].T + own["mlp_out_bias"]
        z = norm(z, (16,), own["last_norm_scale"][0], own["last_norm_bias"][0], 1e-6)
        torch.testing.assert_close(found[g], z @ own["linear"].T + own["linear_bias"], rtol=1e-4, atol=1e-4)


def test_attention_finds_what_the_mean_hides():
    train, test = needles(800, 0), needles(300, 1)
    probe = AttentiveProbe(epochs=20, rates=(3e-3, 1e-2))
    pooled = [Features(part.values.astype(np.float32).mean(1), part.labels, "mean") for part in (train, test)]
    peer = LogisticRegression(max_iter=1000).fit(pooled[0].values, train.labels).score(pooled[1].values, test.labels)
    assert probe(train, test)["accuracy"] > max(0.97, peer + 0.03)


def test_whoever_asks_may_have_gradients_switched_off_and_doubles_as_default():
    train, test = needles(60, 0), needles(40, 1)
    probe = AttentiveProbe(epochs=2, rates=(1e-2,))
    plain = probe.classify(train, test).predicted
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert (probe.classify(train, test).predicted == plain).all()
    torch.set_default_dtype(torch.float64)
    try:
        assert (probe.classify(train, test).predicted == plain).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_members_of_the_attentive_grid_do_not_touch_each_other():
    train = needles(160, 0)
    both = AttentiveProbe(epochs=2).fit(train.values, train.labels, 3, (1e-3, 1e-2))
    alone = AttentiveProbe(epochs=2).fit(train.values, train.labels, 3, (1e-2,))
    for name, weight in alone.items():
        torch.testing.assert_close(both[name][1:], weight, rtol=1e-3, atol=1e-4)


def test_heads_divide_the_width():
    assert [heads_for(width) for width in (64, 96, 192, 384, 768, 1280, 7)] == [1, 2, 3, 6, 12, 20, 1]


def test_low_shot_draws_what_it_says_and_more_labels_do_better():
    train, test = clusters(2000, 0, spread=1.0), clusters(500, 1, spread=1.0)
    probe = LowShot(repeats=4)
    per_class = np.array([5, 5, 5, 5])
    chosen = [probe.chosen(train.labels, per_class, repeat) for repeat in range(4)]
    assert all((np.bincount(train.labels[index]) == 5).all() for index in chosen)
    assert len({tuple(index) for index in chosen}) == 4
    found = probe(train, test)
    assert found["images, 5 per class"] == 20
    assert found["accuracy, 10 per class"] > found["accuracy, 2 per class"] > found["accuracy, 1 per class"] > 0.3
    for name in ("1% of labels", "1 per class", "10 per class"):
        value, low, high = (found[f"accuracy, {name}{side}"] for side in ("", "_low", "_high"))
        assert low < value < high
    # A wide interval where draws differ much.
    width = {n: found[f"accuracy, {n} per class_high"] - found[f"accuracy, {n} per class_low"] for n in (1, 10)}
    assert width[1] > width[10]


def test_a_share_of_the_labels_goes_by_its_name_only_where_it_is_one():
    train, test = clusters(60, 0), clusters(60, 1)
    found = LowShot(shots=(1,), shares=(0.01, 0.5), repeats=2).grade(train, test)
    assert set(found.measures) == {"accuracy, 1 per class", "accuracy, 50% of labels"}  # 1% of 15 images is none


def test_low_shot_draws_are_solved_side_by_side_as_each_alone(monkeypatch):
    train, test = clusters(400, 0, spread=1.5), clusters(300, 1, spread=1.5)
    probe, fit_each = LowShot(shots=(1, 5), shares=(0.1,)), logistic.fit_each
    solved: list[list[list[float]]] = []

    def noted(sets, labels, classes, strengths, **limits):
        solved.append([list(own) for own in strengths])
        return fit_each(sets, labels, classes, strengths, **limits)

    monkeypatch.setattr(logistic, "fit_each", noted)

    def graded(most: int) -> tuple[dict[str, np.ndarray], list[float]]:
        """Right answers of every draw, and the C of each."""
        solved.clear()
        monkeypatch.setattr(logistic, "_SIDE_BY_SIDE", most)
        right = probe.grade(train, test).measures
        return right, [own[0] for sets in solved for own in sets if len(own) == 1]

    together, strengths = graded(2**20)
    assert max(len(sets) for sets in solved) == 5
    alone, same = graded(0)
    assert {len(sets) for sets in solved} == {1}
    assert strengths == same
    assert len(set(strengths[5:])) > 1, "draws choose their own"
    for name, right in together.items():
        np.testing.assert_array_equal(right, alone[name])


def test_low_shot_is_scikit_learns_model_and_never_sees_the_test_labels():
    train, test = clusters(500, 0), clusters(300, 1)
    probe = LowShot(shots=(10,), shares=(), repeats=3, strengths=(0.1,))
    grades = probe.grade(train, test).measures["accuracy, 10 per class"]
    for repeat in range(3):
        drawn = train.take(probe.chosen(train.labels, np.full(4, 10), repeat))
        mean, std = drawn.values.mean(0), drawn.values.std(0)
        peer = LogisticRegression(C=0.1, tol=1e-6, max_iter=2000).fit((drawn.values - mean) / std, drawn.labels)
        assert abs(peer.score((test.values - mean) / std, test.labels) - grades[repeat].mean()) < 0.005
    other = LowShot(shots=(10,), shares=(), repeats=3).grade(train, shuffled(test))
    assert other.settings == LowShot(shots=(10,), shares=(), repeats=3).grade(train, test).settings


def test_retrieval_is_scikit_learns_average_precision():
    train, test = clusters(400, 0), clusters(60, 1)
    grades = Retrieval(at_once=400 * 7).grade(train, test).measures
    unit = [part.values / np.linalg.norm(part.values, axis=1, keepdims=True) for part in (train, test)]
    similarity = unit[1] @ unit[0].T
    expected = [
        average_precision_score(train.labels == label, row) for label, row in zip(test.labels, similarity, strict=True)
    ]
    np.testing.assert_allclose(grades["mAP"][0], expected, atol=1e-6)
    first = np.argsort(-similarity, 1)[:, :10]
    np.testing.assert_allclose(
        grades["precision at 10"][0], (train.labels[first] == test.labels[:, None]).mean(1), atol=1e-6
    )


def test_average_precision_by_hand():
    relevant = torch.tensor([[True, False, True, False], [False, False, False, True], [False] * 4])
    assert average_precision(relevant).tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 4, 0])


def test_tokens_beyond_half_precision_are_refused():
    values = np.full((2, 3, 4), np.inf, np.float16)
    with pytest.raises(InputError, match="beyond 65,504 in 2 of 2"):
        Tokens(values, np.zeros(2, np.int64), "broken")
    assert [entry.evaluator.name for entry in full() if entry.view == TOKENS] == ["attentive probe"]


@pytest.mark.parametrize("evaluator", [SGDProbe, AttentiveProbe])
def test_impossible_settings_are_refused(evaluator):
    with pytest.raises(ValueError, match="rates"):
        evaluator(rates=())
    with pytest.raises(ValueError, match="repeats"):
        LowShot(repeats=1)
    with pytest.raises(ValueError, match="rising"):
        KNNGrid(ks=(5, 1))


def test_k_nn_and_logistic_regression_equal_scikit_learn_on_real_images():
    """The protocol check: the same pixels of the sample, accuracies within 0.1 point."""
    from openjepa.data.sources import open_data
    from openjepa.evaluation.linear import LinearProbe

    splits = open_data(None)
    parts = []
    for source, count in ((splits.train, 2000), (splits.test, 1000)):
        pooled = source.images[:count, ..., 0].reshape(count, 14, 2, 14, 2).mean((2, 4)).reshape(count, -1) / 255
        parts.append(Features(pooled, source.labels[:count], "pixels"))
    train, test = parts
    peer = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = peer.fit(train.values.astype(np.float64), train.labels).score(
        test.values.astype(np.float64), test.labels
    )
    assert abs(KNN()(train, test)["accuracy"] - expected) <= 0.001
    mean, std = train.values.mean(0, dtype=np.float64), train.values.std(0, dtype=np.float64)
    std[std <= 1e-6 * abs(mean)] = 1
    x, x_test = ((part.values - mean) / std for part in parts)
    expected = LogisticRegression(C=0.01, tol=1e-6, max_iter=2000).fit(x, train.labels).score(x_test, test.labels)
    assert abs(LinearProbe(strengths=(0.01,))(train, test)["accuracy"] - expected) <= 0.001
