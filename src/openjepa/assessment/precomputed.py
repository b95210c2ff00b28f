"""Features that somebody has computed already, as .npy files with their labels."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int64

from openjepa.assessment.parts import HELD_OUT, IN_FOLDS
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Source, Splits
from openjepa.data.loader import ordered_batches
from openjepa.data.survey import survey
from openjepa.errors import InputError
from openjepa.evaluation.features import Features, pixel_size, raw_pixels
from openjepa.evaluation.split import in_folds_at_most, split
from openjepa.evaluation.suite import PIXELS

GIVEN = "given features"
_WANTED = "a folder with train.npy, test.npy, train_labels.npy and test_labels.npy, or one .npy with its labels.npy"

# As many as may be tested on where an encoder is judged by its images.
_MOST_IN_FOLDS = 5000
# Features are judged in float32: squares of larger ones, summed over the dimensions, overflow and leave only chance.
_LARGEST = np.float64(1e15)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Two parts of features, how they were told apart, the number of images in each file, and the rows of the one file
    that they are, if it was one (those without a class are in neither part); ``folded``: both are all of it, in folds.
    """

    train: Features
    test: Features
    sentence: str
    images: tuple[int, ...]
    rows: tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "test"]] | None
    folded: bool = False


def is_precomputed(path: Path) -> bool:
    """Whether ``path`` names features in .npy files and not an encoder."""
    return path.suffix == ".npy" or (path / "train.npy").is_file()


def read_given(path: Path) -> Given:
    """The features in a folder with a train and a test part, or in one file, in which each image is tested on in one of
    five folds; of more than 5,000 a fifth is held out.

    Raises:
        InputError: a file is missing, is no array of the right shape, or labels and features do not match.
    """
    if path.suffix == ".npy":
        whole = Features(*_pair(path, path.with_name("labels.npy")), GIVEN)
        labelled = np.flatnonzero(whole.labels >= 0)
        folded = in_folds_at_most(whole.labels, _MOST_IN_FOLDS)
        train, test = (labelled, labelled) if folded else (labelled[part] for part in split(whole.labels[labelled]))
        parts, sentence = (whole.take(train), whole.take(test)), IN_FOLDS if folded else HELD_OUT
        return Given(
            train=parts[0],
            test=parts[1],
            sentence=sentence,
            images=(len(whole),),
            rows=(train, test),
            folded=folded,
        )
    parts = [Features(*_pair(path / f"{part}.npy", path / f"{part}_labels.npy"), GIVEN) for part in ("train", "test")]
    images, sentence = tuple(map(len, parts)), "Train and test are the files' own."
    return Given(train=parts[0], test=parts[1], sentence=sentence, images=images, rows=None)


def pixels_of(given: Given, splits: Splits) -> tuple[tuple[Features, Features], tuple[int, int]]:
    """Raw pixels of the images that the features are of, in their order, and the (height, width) used.

    Raises:
        InputError: there are another number of images, one cannot be read, or their labels contradict the features'.
    """
    train, test = splits.train, splits.test
    if given.rows is not None:
        sources, rows, have = (train, train), given.rows, (len(train),)
    elif test is not None:
        sources, rows = (train, test), (np.arange(len(train)), np.arange(len(test)))
        have = len(train), len(test)
    else:
        raise InputError(f"{train.name} has no test part; the features have one. Leave DATA out, or give both parts")
    if given.images != have:
        raise InputError(
            f"{train.name} has {_told(have)} images, and the features are of {_told(given.images)}: "
            "give the images that the features are of, or leave DATA out"
        )
    look = survey(train)
    size = pixel_size(look.channels, *look.typical)
    preprocessing = Preprocessing(
        size=size, channels=look.channels, mean=(0.0,) * look.channels, std=(1.0,) * look.channels
    )
    learn = _pixels(sources[0], preprocessing, rows[0], given.train.labels)
    if given.folded:
        return (learn, learn), size
    return (learn, _pixels(sources[1], preprocessing, rows[1], given.test.labels)), size


def _pixels(
    source: Source, preprocessing: Preprocessing, chosen: Int64[np.ndarray, "n"], labels: Int64[np.ndarray, "n"]
) -> Features:
    parts = []
    for batch in ordered_batches(source, preprocessing, chosen, batch=128, workers=0):
        if batch.bad:
            raise InputError(f"{batch.bad[0].reference}: {batch.bad[0].reason}; leave DATA out to judge without pixels")
        parts.append(raw_pixels(batch.images)[0].numpy())
    if source.labels is not None and not _same_partition(source.labels[chosen], labels):
        raise InputError(f"the classes of the images of {source.name} are not the features': is the order another?")
    return Features(np.concatenate(parts), labels, PIXELS)


def _same_partition(one: Int64[np.ndarray, "n"], other: Int64[np.ndarray, "n"]) -> bool:
    """Whether two labellings group the images alike, whatever numbers the groups have."""
    pairs = len(np.unique(np.stack([one, other]), axis=1).T)
    return pairs == len(np.unique(one)) == len(np.unique(other))


def _told(counts: tuple[int, ...]) -> str:
    return " and ".join(f"{count:,}" for count in counts)


def _pair(values: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    features, classes = _array(values), _array(labels)
    if features.ndim != 2 or features.dtype.kind != "f" or not features.size:
        raise InputError(
            f"{values} should hold floats of shape (images, dimensions), got {features.dtype} of shape {features.shape}"
        )
    if classes.shape != features.shape[:1] or classes.dtype.kind not in "iu":
        raise InputError(
            f"{labels} should hold one whole number for each of the {len(features)} images in {values.name}, got "
            f"{classes.dtype} of shape {classes.shape}"
        )
    if (highest := int(classes.max())) > np.iinfo(np.int64).max:
        raise InputError(f"{labels} holds {highest}, and classes are numbers below 2^63: number them from 0")
    beyond = np.isfinite(features) & (np.abs(features) > _LARGEST)
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        raise InputError(
            f"{values} holds {features[row, column]:g} (row {row}, column {column}, from 0), one of {beyond.sum():,} "
            f"numbers beyond {_LARGEST:g}, with which float32 cannot compute: mend those images' features, or divide "
            "all features, of train and test, by one number"
        )
    return features, classes.astype(np.int64)


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"there is no {path}; precomputed features are {_WANTED}")
    try:
        with open(path, "rb") as file:
            array = np.load(file, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("it is an archive of arrays, .npz")
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is no plain .npy array ({error}): save it again with numpy.save") from error
    return array
