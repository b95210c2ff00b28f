"""Few labelled images: how often the intervals hold, of a fifth held out and of five folds, and how wide they are.

    python benchmarks/folds.py RUN DATA --json FILE [--images 100 300 1000] [--draws 200] [--population 10000]

Of ``--population`` images of DATA's train part as many sets as ``--draws`` says are drawn, each of so few images, as
many of every class (with more of one, what is learned favours it, and so does the test part). k-NN and the linear
probe are judged on a set in both ways, on features of RUN's encoder and of a random one of its shape. The truth is
known here: what was learned on the set is asked about all images of the population outside it as well.
An interval covers the mean over all sets, what so many labels are worth (``on average``), or the mean of what was
learned on its own set (``its own``). A difference is that of the encoder from the random one. Nothing is kept but the
JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

import openjepa
from measure import machine
from openjepa import draws
from openjepa.assessment.encoders import Kind, panel_of
from openjepa.assessment.extraction import Chosen, extract_kinds
from openjepa.data.sources import open_data
from openjepa.evaluation.features import Evaluator, Features, Part, shares_of
from openjepa.evaluation.folds import in_folds
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.split import at_most, split
from openjepa.evaluation.suite import LAST, RANDOM, TARGET, Found, judge
from openjepa.progress import progress


class Outside:
    """A judge that asks what was learned about the images outside as well, and keeps how often that was right."""

    def __init__(self, images: Features) -> None:
        self.images = images
        self.right: list[float] = []

    def __call__(self, evaluator: Evaluator, train: Part, test: Part) -> Found:
        every = Features(
            np.concatenate([test.values, self.images.values]), np.concatenate([test.labels, self.images.labels]), ""
        )
        correct = judge(evaluator, train, every).correct["accuracy"]
        self.right.append(float(correct[len(test) :].mean()))
        own = {"accuracy": correct[: len(test)]}
        return Found(scores=shares_of(own), correct=own, grades={}, dimensions=train.dimensions)


def asked(
    evaluator: KNN | LinearProbe, features: dict[str, Features], drawn: Int64[np.ndarray, "n"], folded: bool
) -> dict[str, tuple[float, float, float, float]]:
    """Of both encoders and their difference: what was found on the images drawn, its interval, and the truth."""
    outside = np.setdiff1d(np.arange(len(features[TARGET])), drawn)
    truth, found = {}, {}
    for name, part in features.items():
        own, ask = part.take(drawn), Outside(part.take(outside))
        if folded:
            found[name] = in_folds(ask)(evaluator, own, own)
        else:
            learn, held = (own.take(index) for index in split(own.labels))
            found[name] = ask(evaluator, learn, held)
        truth[name] = float(np.mean(ask.right))
    told = {
        name: (*(one.scores[f"accuracy{end}"] for end in ("", "_low", "_high")), truth[name])
        for name, one in found.items()
    }
    apart = found[TARGET].differences(found[RANDOM])["accuracy"]
    return told | {"difference": (apart.value, apart.low, apart.high, truth[TARGET] - truth[RANDOM])}


def even(labels: Int64[np.ndarray, "n"], images: int, number: int) -> Int64[np.ndarray, "m"]:
    """The set of that number: as many images of every class, so many in all or a few fewer."""
    classes = np.unique(labels)
    parts = []
    for label in classes:
        own = np.flatnonzero(labels == label)
        order = draws.permutation(len(own), "folds study", number, int(label))
        parts.append(own[order[: images // len(classes)]])
    return np.sort(np.concatenate(parts))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--population", type=int, default=10_000)
    options = parser.parse_args()
    panel, source = panel_of(openjepa.load(options.run)), open_data(options.data).train
    part = Chosen(source=source, indices=at_most(np.arange(len(source)), options.population), name="train")
    taken = extract_kinds(panel, part, [Kind(name, LAST) for name in (TARGET, RANDOM)])
    features = {kind.subject: made for kind, made in taken.parts.items() if isinstance(made, Features)}
    rows = []
    for images in options.images:
        for evaluator in (KNN(), LinearProbe()):
            for folded in (False, True):
                found: dict[str, list[tuple[float, float, float, float]]] = {}
                with progress(f"{evaluator.name}, {images} images") as advance:
                    for number in range(options.draws):
                        drawn = even(features[TARGET].labels, images, number)
                        for name, one in asked(evaluator, features, drawn, folded).items():
                            found.setdefault(name, []).append(one)
                        advance(number + 1, options.draws)
                for name, values in found.items():
                    value, low, high, truth = np.array(values).T
                    rows.append(
                        {
                            "images": images,
                            "evaluator": evaluator.name,
                            "way": "five folds" if folded else "a fifth held out",
                            "of": name,
                            "truth": truth.mean(),
                            "found": value.mean(),
                            "spread": value.std(ddof=1),
                            "width": (high - low).mean(),
                            "covers, on average": ((low <= truth.mean()) & (truth.mean() <= high)).mean(),
                            "covers, its own": ((low <= truth) & (truth <= high)).mean(),
                        }
                    )
                    print(json.dumps(rows[-1]), flush=True)
    report = {"draws": options.draws, "population": len(features[TARGET]), "rows": rows}
    options.json.write_text(json.dumps(report | {"machine": machine(torch.device("cpu"))}, indent=1) + "\n")


if __name__ == "__main__":
    main()
