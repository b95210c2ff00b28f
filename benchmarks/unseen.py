"""The demo's headline on images that the recipe was not chosen on.

    python benchmarks/unseen.py RUN [RUN ...]

The small recipe was chosen by trials that were judged on the bundled sample's 5,000 test images, so what it reaches on
them may be flattered by that choice. Fashion-MNIST has 5,000 more test images (only long runs of other settings were
ever judged on those as well): the same run, taught by the same labels, is asked about both.
"""

import argparse
from pathlib import Path

import numpy as np

import openjepa
from openjepa.data.base import Source
from openjepa.data.sources import open_data
from openjepa.evaluation.features import Features
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.pretrained import Pretrained


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="runs on the bundled sample")
    options = parser.parse_args()
    sample, everything = open_data(None), open_data("fashion-mnist").test
    assert everything is not None
    assert sample.test is not None
    known = {sample.test.read(index).tobytes() for index in range(len(sample.test))}
    rest = [index for index in range(len(everything)) if everything.read(index).tobytes() not in known]
    print(f"{len(sample.test):,} test images of the sample, {len(rest):,} others")
    for run in (None, *options.runs):
        encoder = None if run is None else openjepa.load(run)
        train, test = (features(encoder, part, range(len(part))) for part in (sample.train, sample.test))
        unseen = features(encoder, everything, rest)
        for evaluator in (KNN(), LinearProbe()):
            own, others = (100 * evaluator.classify(train, part).scores()["accuracy"] for part in (test, unseen))
            print(f"{run or 'raw pixels'}, {evaluator.name}: {own:.1f} on the sample's, {others:.1f} on the others")


def features(encoder: Pretrained | None, source: Source, chosen: range | list[int]) -> Features:
    """Features, or pixels, and labels of the chosen images."""
    labels = np.asarray(source.labels)[np.asarray(chosen)]
    images = [np.asarray(source.read(index)) for index in chosen]
    if encoder is None:
        return Features(np.stack(images).reshape(len(images), -1).astype(np.float32) / 255, labels, "raw pixels")
    return Features(encoder.encode(images, batch=500), labels, "trained encoder")


if __name__ == "__main__":
    main()
