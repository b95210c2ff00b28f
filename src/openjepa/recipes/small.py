"""Small compute: an encoder of 2.7 or 4.8 million parameters on 4x4 to 8x8 tokens, whatever the images' size.

Paper:    I-JEPA, with what small data needs: small steps, a fast teacher, whitened targets, a little of C-JEPA's terms
Command:  openjepa pretrain --out RUN --minutes 4        (the bundled sample; see LOG.md for the trials behind it)
Hardware: two CPU cores, bfloat16
Result:   k-NN 80.8, linear probe 84.2 after 2,628 steps (random encoder 67.3 and 80.0, raw pixels 81.9 and 84.4)

Long runs (:func:`lengthened`, :func:`paced`), Fashion-MNIST, 27,500 steps of 256x6: k-NN 86.3 and linear probe
88.6 on all 60,000 labels, where whitened targets and a faster teacher give 83.9 and 87.6; CIFAR-10, 6,830 steps with
Muon and flips: 60.7 and 63.4 on all 50,000, where 9,402 with AdamW (another seed, a faster teacher) give 53.7 and 61.2
(benchmarks/README.md).
"""

import math
from dataclasses import replace

from openjepa.data.augmentation import Augmentation
from openjepa.diagnosis.advice import slow_teacher, spread_weight
from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.experiment import Experiment
from openjepa.masks import MultiBlockConfig
from openjepa.objectives.ijepa import IJEPAConfig
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import TrainingConfig


def small(
    *, signal: tuple[int, int], patch: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> Experiment:
    """A small encoder for small compute; ``signal`` and ``patch`` in pixels, ``mean`` and ``std`` of each channel.

    The learning rate grows with the root of the tokens, of which so many are predicted, from 4x4 to 8x8: with 1e-3
    instead of 5e-4 the sample (4x4) loses 1.3 points of linear probe in 1,500 steps, and data of 8x8 tokens gain 1.2,
    a mean over eight pairs of runs from -1.7 to 3.2 (LOG.md, 2026-11-27).
    """
    tokens = math.prod(pixels // edge for pixels, edge in zip(signal, patch, strict=True))
    lr = 5e-4 * math.sqrt(min(max(tokens, 16), 64) / 16)
    return Experiment(
        recipe="small",
        mean=mean,
        std=std,
        encoder=EncoderConfig(signal=signal, patch=patch, channels=len(mean), width=192, depth=6, heads=3),
        predictor=PredictorConfig(width=128, depth=1, heads=4),
        masks=MultiBlockConfig(context_share=0.25),
        ijepa=IJEPAConfig(
            momentum=(0.99, 1.0),
            target_norm="whiten",
            statistics_momentum=0.95,
            variance_covariance=spread_weight("whiten"),
        ),
        augmentation=Augmentation(crop_scale=(0.5, 1.0)),
        schedule=ScheduleConfig(lr=lr, start_lr=1e-4),
        optimizer=OptimizerConfig(betas=(0.9, 0.95)),
        training=TrainingConfig(batch=BATCH),
    )


# Images of a step, which the learning rates are for.
BATCH = 64
# Tokens of a step from which Muon is worth what it multiplies, which is the same however few they are: with 64 images
# of 8x8 it makes I-JEPA's step of the wider encoder a third dearer, with 4x4 one of the narrow encoder twice as dear
# (benchmarks/README.md). It was measured with 64 images of 8x8 alone.
_MANY = 49 * BATCH


def _many(asked: Experiment) -> bool:
    return asked.training.batch * asked.encoder.grid.size >= _MANY


def long_from(asked: Experiment) -> int:
    """How many steps of the recipe, with the settings that were asked for, there has to be time for, that
    :func:`lengthened` takes over.

    With many tokens, and so with Muon, it is ahead at the cost of 3,000 steps on CIFAR-10 (one seed), and of 5,600 on
    tiles of photographs (benchmarks/README.md). With few, and so without, it is level on Fashion-MNIST's linear probe
    at that of 10,000, behind on the sample at that of 5,000 (LOG.md).
    """
    return 3_000 if _many(asked) else 10_000


def lengthened(short: Experiment, asked: Experiment | None = None) -> Experiment:
    """The recipe where there is time for it: a wider encoder, of any method, and for I-JEPA targets standardised per
    feature, which need fewer directions kept apart by hand and bear a larger learning rate. Where a step has tokens
    enough Muon moves the matrices, for all methods.

    Args:
        short: the recipe as it is.
        asked: the same with the settings that were asked for, whose tokens count; None where none were.
    """
    wide = replace(
        short,
        encoder=replace(short.encoder, width=256, heads=4),
        optimizer=replace(short.optimizer, matrices="muon" if _many(asked or short) else short.optimizer.matrices),
    )
    if short.method != "ijepa":
        return wide
    return replace(
        wide,
        ijepa=replace(wide.ijepa, target_norm="feature", variance_covariance=spread_weight("feature")),
        schedule=replace(wide.schedule, lr=1e-3 * math.sqrt(short.training.batch / BATCH)),
    )


def paced(long: Experiment) -> Experiment:
    """The long recipe with a teacher that is the slower the more steps there are, settled once their number is.

    With 0.99 from the start, as short runs have it, 24,000 steps on CIFAR-10 got worse from the 4,000th on (online k-NN
    41.6, then 36.5); with 0.998 they went on getting better (LOG.md).
    """
    if long.method != "ijepa":
        return long
    first, last = long.ijepa.momentum
    slower = max(first, slow_teacher(long.training.steps))
    return replace(long, ijepa=replace(long.ijepa, momentum=(min(slower, last), last)))
