import numpy as np
import pytest

from openjepa.errors import InputError
from openjepa.evaluation.features import Features
from openjepa.evaluation.split import FOLDS, at_most, check_parts, folds, learned_at_once, set_aside, split

LABELS = np.repeat([0, 1, 2, 3, -1], [100, 33, 2, 1, 10])


def test_every_class_keeps_its_share_and_no_image_is_in_both():
    train, test = split(LABELS, 0.2)
    assert sorted([*train, *test]) == list(range(136))  # all with a class, each once
    assert np.bincount(LABELS[test], minlength=4).tolist() == [20, 7, 1, 0]
    assert np.bincount(LABELS[train], minlength=4).tolist() == [80, 26, 1, 1]
    assert (np.diff(train) > 0).all()


def test_the_split_is_a_function_of_labels_and_seed():
    assert np.array_equal(split(LABELS, seed=3)[1], split(LABELS, seed=3)[1])
    assert not np.array_equal(split(LABELS, seed=3)[1], split(LABELS, seed=4)[1])
    # Each class draws for itself: another class more does not move an image.
    assert np.array_equal(split(LABELS[:133])[1], split(LABELS)[1][split(LABELS)[1] < 133])


@pytest.mark.parametrize("holdout", [0.0, 1.0])
def test_a_part_must_be_left(holdout):
    with pytest.raises(ValueError, match=str(holdout)):
        split(LABELS, holdout)


def features(labels, width=2) -> Features:
    return Features(np.ones((len(labels), width)), np.array(labels), "mine")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 0, 0], [0], "at least 2 classes in the train part, found 1 in 3 images"),
        ([0, 0, 1, 2], [0], r"2 of 3 classes have fewer than 2 train images \(class 1 has 1\)"),
        (
            [0, 0, 1, 1],
            [0, 5, 5],
            r"2 of 3 test images belong to classes without a train image \(the first is class 5\)",
        ),
        ([0, 0, 1, -1], [0], "1 of 4 train images have no class"),
        ([0, 0, 1, 1], [-1, -1], "2 of 2 test images have no class"),
    ],
)
def test_parts_that_cannot_be_judged_are_refused_with_the_numbers(train, test, message):
    with pytest.raises(InputError, match=message):
        check_parts(features(train), features(test))


def test_parts_of_two_encoders_are_refused():
    with pytest.raises(InputError, match="3 dimensions in the train part and 2 in the test"):
        check_parts(features([0, 0, 1, 1], 3), features([0, 1]))


def test_good_parts_pass():
    check_parts(features([0, 0, 4, 4]), features([4]))


def test_two_of_every_class_are_drawn_and_the_rest_by_chance():
    labels = np.repeat(np.arange(60), 20)
    chosen = at_most(np.arange(1200), 150, labels)
    assert len(np.unique(chosen)) == len(chosen) == 150
    assert np.bincount(labels[chosen], minlength=60).min() >= 2
    assert len(at_most(np.arange(1200), 50, labels)) == 120  # two of each are more than were asked for
    assert len(at_most(np.arange(1200), 5000, labels)) == 1200


def test_many_rare_classes_outlive_a_limit():
    random = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(500), 5), random.zipf(1.5, 20_000) % 500])
    chosen = at_most(np.arange(len(labels)), 4000, labels)
    assert len(chosen) == 4000
    assert np.bincount(labels[chosen], minlength=500).min() >= 2


def test_scarce_and_unseen_classes_are_set_aside_by_name():
    train, test = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 2, 3, 3])
    learn, held, sentence = set_aside(train, test, ("cat", "dog", "emu", "fox", "gnu").__getitem__)
    assert learn.tolist() == [True, True, True, True, False]
    assert held.tolist() == [True, True, False, False, False]
    assert sentence == (
        "Not judged: 2 of 4 classes, with fewer than 2 train images (emu, fox; 1 train and 3 test images in all)."
    )
    assert set_aside(train[:4], test[:2], ("cat", "dog").__getitem__)[2] == ""


def test_one_class_that_can_be_learned_is_not_enough():
    with pytest.raises(InputError, match=r"at least 2 classes of 2 train images or more, and of 3 classes 1 has"):
        set_aside(np.array([0, 0, 1, 2]), np.array([0]), str)
    with pytest.raises(InputError, match=r"1 of 3 test image\(s\) are of classes that can be judged"):
        set_aside(np.array([0, 0, 1, 1]), np.array([0, 2, 3]), str)


@pytest.mark.parametrize("sizes", [[100, 33, 3, 7, 3, 3], [3, 3], [50, 51]])
def test_folds_have_their_share_of_every_class_and_leave_two_of_each_to_learn_on(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat([*range(len(sizes)), -1], [*sizes, 10]))
    dealt = folds(labels)
    assert ((dealt == -1) == (labels == -1)).all()
    whole = np.bincount(dealt[labels >= 0], minlength=FOLDS)
    assert whole.max() - whole.min() <= 1
    for label, size in enumerate(sizes):
        own = np.bincount(dealt[labels == label], minlength=FOLDS)
        assert own.max() - own.min() <= 1
        assert size - own.max() >= 2
    for fold in range(FOLDS):
        outside = int((dealt[labels >= 0] != fold).sum())
        assert 0 <= learned_at_once(sum(sizes)) - outside <= 1
    assert np.array_equal(folds(labels), dealt)
    assert not np.array_equal(folds(labels, seed=1), dealt) or len(labels) < 20
