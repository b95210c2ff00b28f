import numpy as np
import pytest
import torch

from openjepa.errors import InputError
from openjepa.evaluation.features import Classifier, Evaluator, Features, Outcome, extract, pixel_size, raw_pixels
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe


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
