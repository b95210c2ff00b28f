import numpy as np
import pytest
import torch

from openjepa.errors import InputError
from openjepa.evaluation.features import (
    Classifier,
    Evaluator,
    Features,
    Outcome,
    Tokens,
    extract,
    pixel_size,
    raw_pixels,
)
from openjepa.evaluation.knn import KNN, KNNGrid
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.lowshot import LowShot
from openjepa.evaluation.retrieval import Retrieval
from openjepa.evaluation.sgd_probe import SGDProbe


def test_values_and_labels_take_the_types_of_the_contract():
    features = Features(np.ones((3, 2), np.float64), np.array([0, 1, 2], np.int32), "mine")
    assert (features.values.dtype, features.labels.dtype) == (np.float32, np.int64)
    assert (len(features), features.dimensions) == (3, 2)
    taken = features.take(np.array([2, 0]))
    assert taken.labels.tolist() == [2, 0]
    assert taken.name == "mine"


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (4, 2)])
def test_wrong_shapes_are_refused_with_the_numbers(shape):
    with pytest.raises(InputError, match=rf"\({shape[0]}, {shape[1]}\) and \(3,\)"):
        Features(np.zeros(shape, np.float32), np.zeros(3, np.int64), "mine")


def test_values_that_are_not_finite_are_counted_by_image():
    values = np.zeros((5, 3), np.float32)
    values[1, 0] = values[1, 2] = np.nan
    values[4, 1] = np.inf
    with pytest.raises(InputError, match="NaN or infinity in 2 of 5 images"):
        Features(values, np.zeros(5, np.int64), "mine")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0.2, 1.0, 2.0]), "1 of 3 are not, for example 0.2"),
        (np.array([0.0, np.nan, 2.0]), "1 of 3 are not, for example nan"),
        (np.array([0, 1, 2**63 + 1], np.uint64), "below 2.63"),
        (np.array(["cat", "dog", "cat"]), "return_inverse"),
    ],
)
def test_no_label_is_made_of_another(labels, said):
    for made in (Features, Tokens):
        with pytest.raises(InputError, match=said):
            made(np.ones((3, 2, 2) if made is Tokens else (3, 2), np.float16), labels, "mine")
    kept = Features(np.ones((3, 2)), np.array([0.0, 1.0, -1.0]), "mine").labels
    assert kept.tolist() == [0, 1, -1]
    assert Features(np.ones((3, 2)), np.array([True, False, True]), "mine").labels.tolist() == [1, 0, 1]


def test_complex_features_and_tokens_of_the_wrong_shape_are_refused():
    with pytest.raises(InputError, match="complex128; real numbers are wanted"):
        Features(np.ones((3, 2), complex), np.zeros(3, int), "mine")
    with pytest.raises(InputError, match=r"\(20, 2, 2\) and \(1,\)"):
        Tokens(np.ones((20, 2, 2), np.float16), np.zeros(1, int), "mine")


@pytest.mark.parametrize(
    "evaluator", [KNN(), KNNGrid(), LinearProbe(), LowShot(), Retrieval(), SGDProbe(epochs=1)], ids=lambda one: one.name
)
def test_an_evaluator_by_itself_refuses_images_without_a_class_and_other_widths(evaluator):
    part = Features(np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 2, "mine")
    bare = Features(part.values, np.where(np.arange(40) < 7, -1, part.labels), "mine")
    with pytest.raises(InputError, match="7 of 40 train images have no class"):
        evaluator(bare, part)
    assert evaluator(part, bare), "what images without a class are can be asked"
    with pytest.raises(InputError, match="4 dimensions in the train part and 3"):
        evaluator(part, Features(part.values[:, :3], part.labels, "mine"))


def test_extract_keeps_what_it_was_given_where_memory_is_used_again():
    images, targets = torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64)

    def batches():
        for number in range(3):
            targets.fill_(number)
            images.fill_(number / 10)
            yield images, targets

    found = extract(lambda x: {"mine": x.flatten(1)}, batches())["mine"]
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(found.values[:, 0], [0, 0, 0.1, 0.1, 0.2, 0.2])


def test_both_evaluators_keep_the_contract():
    for evaluator in (KNN(), LinearProbe()):
        assert isinstance(evaluator, Evaluator)
        assert isinstance(evaluator, Classifier)


def test_an_outcome_scores_with_its_interval_and_settings():
    correct = np.array([True] * 8 + [False] * 2)
    scores = Outcome(predicted=np.zeros(10, np.int64), correct=correct, settings={"k": 3.0}).scores()
    assert scores["accuracy"] == pytest.approx(0.8)
    assert scores["accuracy_low"] < 0.8 < scores["accuracy_high"]
    assert scores["k"] == 3


def test_extract_reads_every_batch_once_for_all_encoders():
    images = torch.arange(24, dtype=torch.uint8).view(6, 1, 2, 2)
    read = []

    def batches():
        for start in (0, 4):
            read.append(start)
            part = images[start : start + 4]
            yield part, torch.arange(start, start + len(part))

    mean = lambda x: x.float().mean((1, 2, 3), keepdim=False)[:, None]  # noqa: E731
    found = extract(lambda x: {"mean": mean(x), "pixels": raw_pixels(x)[0]}, batches())
    assert read == [0, 4]
    assert found["mean"].values[:, 0].tolist() == [1.5 + 4 * i for i in range(6)]
    assert np.allclose(found["pixels"].values, images.numpy().reshape(6, 4) / 255)
    assert found["pixels"].labels.tolist() == found["mean"].labels.tolist() == list(range(6))
    assert found["mean"].name == "mean"


def test_extract_of_nothing_is_refused():
    with pytest.raises(InputError, match="no images"):
        extract(lambda x: {"pixels": raw_pixels(x)[0]}, [])


def test_raw_pixels_keep_small_images_and_average_large_ones():
    small, size = raw_pixels(torch.full((2, 1, 28, 28), 51, dtype=torch.uint8))
    assert size == (28, 28)
    assert torch.allclose(small, torch.full((2, 784), 0.2))
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2  # one-pixel squares: their average is grey
    averaged, size = raw_pixels(board.float().expand(1, 3, 64, 64))
    assert size == (32, 32)
    assert averaged.shape == (1, 3072)
    assert torch.allclose(averaged, torch.full_like(averaged, 0.5))


@pytest.mark.parametrize(
    ("channels", "height", "width", "limit"),
    [
        (3, 224, 224, 3072),
        (1, 96, 400, 3072),
        (3, 2, 90000, 3072),
        (13, 64, 64, 3072),
        (3000, 7, 1, 3072),
        (1, 5, 7, 4),
    ],
)
def test_the_reduced_size_fits_and_is_near_the_limit(channels, height, width, limit):
    rows, columns = pixel_size(channels, height, width, limit)
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    assert channels * rows * columns <= limit
    if min(rows, columns) > 1:
        assert channels * (rows + 1) * (columns + 1) > limit


def test_more_channels_than_dimensions_are_refused():
    with pytest.raises(InputError, match="4000 channels"):
        pixel_size(4000, 8, 8)
