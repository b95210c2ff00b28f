"""Looks at the representation during training: measures that need no labels, and k-NN and a probe where there are any.

The labels never reach the loss. The images are chosen, and the crops drawn, as a function of the experiment's seed.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from openjepa import draws
from openjepa.data.augmentation import NUMBERS, augment
from openjepa.data.base import BadImage, Source
from openjepa.data.loader import ordered_batches
from openjepa.data.pixels import to_unit
from openjepa.diagnosis.looks import images_looked_at
from openjepa.errors import InputError
from openjepa.evaluation import logistic
from openjepa.evaluation.knn import leave_one_out
from openjepa.evaluation.pixel_r2 import components, pixel_r2, thumbnails
from openjepa.evaluation.spectrum import alignment, alpha_req, lidar, rankme, uniformity, variance_shares
from openjepa.experiment import Experiment
from openjepa.objectives.base import Objective
from openjepa.training.distributed import Processes
from openjepa.training.step import TrainingConfig

# Fewer labelled images than this make an online accuracy mean nothing.
_FEWEST_LABELLED = 100
# Images for each feature that pixel R2 needs: whitened features of the same content then have up to 0.05 less of it.
_FOR_PIXEL_R2 = 2.5
# The probe's regularisation (scikit-learn's C): strong, as befits some hundred images.
_STRENGTH = 0.1


def affordable(training: TrainingConfig) -> int:
    """How many images to look at."""
    return images_looked_at(training.steps, training.batch)


class Watch:
    """Measures the representation of an objective, whichever it is.

    Training images are kept prepared in memory, and ``views`` augmented crops of a fifth of them.

    Args:
        images: how many; None takes 1,000, or fewer (400 at least) for a run that is too short to pay for them.
        views: crops of an image for LiDAR.
        batch: images encoded at a time.

    Raises:
        InputError: none of the images chosen can be used.
    """

    def __init__(
        self,
        source: Source,
        experiment: Experiment,
        objective: Objective,
        processes: Processes,
        *,
        images: int | None = None,
        views: int = 4,
        batch: int = 100,
    ) -> None:
        self.objective, self.preprocessing, self.device = objective, experiment.preprocessing, processes.device
        self.precision, self.batch, self.views = experiment.training.precision, batch, views
        images = images or affordable(experiment.training)
        source.prepare()  # the crops are of images in random order
        chosen = np.sort(draws.permutation(len(source), "watch", experiment.seed)[:images])
        batches = ordered_batches(source, experiment.preprocessing, chosen, batch=batch, workers=0)
        read = [(part.images, part.labels, part.samples) for part in batches if len(part.samples)]
        if not read:
            raise InputError(f"none of {len(chosen)} images of {source.name} that were tried can be used")
        self.images = [part for part, _, _ in read]
        self.labels = torch.cat([labels for _, labels, _ in read])
        samples = torch.cat([samples for _, _, samples in read]).numpy()
        of = samples[draws.permutation(len(samples), "watch views", experiment.seed)[: -(-len(samples) // 5)]]
        self.crops = _crops(source, experiment, of, views)

    @cached_property
    def components(self) -> Float[Tensor, "n K"]:
        """What pixel R2 asks of the features; made where a look needs it."""
        return components(torch.cat([thumbnails(self.preprocessing.normalise(part)) for part in self.images]))

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """The measures by name (benchmarks/collapse/README.md says what each is worth); those not finite are left out.

        ``rankme``, ``alpha_req`` and ``uniformity`` of the mean over tokens, ``pixel_r2`` (what it tells of the
        pictures, where they are 2.5 times as many as features), ``lidar`` and ``alignment`` of crops,
        ``features_over_images`` and ``features_over_positions`` (variances of tokens) and, with labels, ``knn``
        (leave-one-out) and ``probe`` (of one half on the other), accuracies in [0, 1], and how many are ``labelled``.
        """
        self.objective.eval()
        few, means = [], []
        for number, part in enumerate(self.images):  # all tokens of large images would fill the memory
            tokens = self._tokens(part)
            means.append(tokens.mean(1))
            few += [tokens] if number < 2 else []
        pooled = torch.cat(means)
        over_images, over_positions = variance_shares(torch.cat(few))
        found = {
            "rankme": rankme(pooled),
            "features_over_images": over_images,
            "features_over_positions": over_positions,
        }
        if len(pooled) > 1:
            found |= {"alpha_req": alpha_req(pooled), "uniformity": uniformity(pooled)}
        if len(pooled) >= _FOR_PIXEL_R2 * pooled.shape[1] and self.components.shape[1]:
            found["pixel_r2"] = pixel_r2(pooled, self.components)
        if len(self.crops) >= 2 * self.views:
            crops = torch.cat([self._tokens(part).mean(1) for part in self.crops.split(self.batch)])
            views = crops.unflatten(0, (-1, self.views))
            found |= {"lidar": lidar(views), "alignment": alignment(views)}
        return {name: value for name, value in (found | self._labelled(pooled)).items() if np.isfinite(value)}

    def _tokens(self, images: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        x = self.preprocessing.normalise(images.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.objective.representation(x).float().cpu()

    def _labelled(self, pooled: Float[Tensor, "n D"]) -> dict[str, float]:
        known = self.labels >= 0
        if int(known.sum()) < _FEWEST_LABELLED or len(self.labels[known].unique()) < 2:
            return {}
        return {
            "knn": leave_one_out(pooled, self.labels),
            "probe": _probe(pooled[known], self.labels[known]),
            "labelled": float(known.sum()),
        }


def _crops(
    source: Source, experiment: Experiment, samples: Int64[np.ndarray, "n"], views: int
) -> Shaped[Tensor, "_ C H W"]:
    """``views`` crops of each image, one image after the other, as the training would draw them."""
    preprocessing, augmentation = experiment.preprocessing, experiment.augmentation
    at_least = augmentation.at_least(preprocessing.size)
    found: list[Tensor] = []
    for sample in samples.tolist():
        u = draws.uniform("watch crop", experiment.seed, sample, np.arange(views)[:, None], np.arange(NUMBERS))
        try:
            image = source.read(sample, at_least=at_least)
            found += [augment(image, preprocessing, augmentation, own) for own in u]
        except BadImage:
            continue
    return _stacked(found, preprocessing.channels, preprocessing.size)


def _stacked(images: Sequence[Tensor], channels: int, size: tuple[int, int]) -> Shaped[Tensor, "_ C H W"]:
    if not images:
        return torch.empty((0, channels, *size), dtype=torch.uint8)
    same = all(image.dtype == torch.uint8 for image in images)
    return torch.stack([image if same else to_unit(image) for image in images])


def _probe(features: Float[Tensor, "n D"], labels: Int64[Tensor, "n"]) -> float:
    """Accuracy of logistic regression fitted to one half of the images, on the other; a class not learned is wrong."""
    classes, codes = labels.unique(return_inverse=True)
    # Drawn, for classes that take turns would fall into one half each.
    order = torch.from_numpy(draws.permutation(len(codes), "watch probe"))
    learn, test = order.tensor_split(2)
    learned = logistic.standardise(features[learn])
    fitted = logistic.fit(learned, codes[learn], len(classes), [_STRENGTH], tolerance=1e-3, limit=100)
    answer = logistic.predict(fitted, learned, features[test])[0]
    return float((answer == codes[test]).double().mean())
