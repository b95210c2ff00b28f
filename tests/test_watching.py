"""The watch on real networks: any objective, the experiment's own crops, numbers that are a function of the seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from openjepa.data.augmentation import Augmentation
from openjepa.data.base import BadImage
from openjepa.data.sources import ArraySource
from openjepa.encoder import Encoder, EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.experiment import Experiment
from openjepa.objectives.base import Objective, Output
from openjepa.training.distributed import Processes
from openjepa.training.step import TrainingConfig
from openjepa.watching import Watch, affordable

ALONE = Processes(0, 1, torch.device("cpu"))
EXPERIMENT = Experiment(
    mean=(0.5,),
    std=(0.25,),
    encoder=EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=1, heads=2),
    predictor=PredictorConfig(width=16, depth=1, heads=2),
    training=TrainingConfig(precision="float32", steps=10, batch=8),
)
LABEL_FREE = {"rankme", "alpha_req", "uniformity", "lidar", "alignment", "features_over_images"}
LABEL_FREE |= {"features_over_positions", "pixel_r2"}


def source(labelled: bool = True, count: int = 240) -> ArraySource:
    """Stripes of two directions and contrasts, which are the classes; they take turns."""
    numbers = np.random.default_rng(0).uniform(size=(count, 2, 1, 1))
    rows, columns = np.mgrid[:18, :18]
    labels = np.arange(count) % 2
    axis = np.where(labels[:, None, None] == 0, rows, columns)
    stripes = np.sin(axis * (0.4 + numbers[:, 0]) + 6.3 * numbers[:, 1])
    images = (127 + np.where(labels[:, None, None] == 0, 120, 60) * stripes).astype(np.uint8)[..., None]
    return ArraySource("stripes", images, labels if labelled else None, ("rows", "columns") if labelled else ())


class Bare(Objective):
    """An objective that is no I-JEPA: an encoder and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(EXPERIMENT.encoder, generator=torch.Generator().manual_seed(0))

    def forward(self, x, masks) -> Output:
        return Output(self.encoder(x).square().mean())

    @property
    def representation(self) -> Encoder:
        return self.encoder


def test_it_measures_any_objective_and_the_same_each_time():
    objective = Bare()
    watch = Watch(source(), EXPERIMENT, objective, ALONE)
    found = watch()
    assert set(found) == LABEL_FREE | {"knn", "probe", "labelled"}
    assert watch() == found
    assert Watch(source(), EXPERIMENT, objective, ALONE)() == found
    assert Watch(source(), replace(EXPERIMENT, seed=1), objective, ALONE)() != found


def test_the_labels_are_read_where_there_are_enough():
    found = Watch(source(), EXPERIMENT, Bare(), ALONE)()
    assert found["knn"] > 0.8
    assert found["probe"] > 0.8
    assert set(Watch(source(labelled=False), EXPERIMENT, Bare(), ALONE)()) == LABEL_FREE
    assert "knn" not in Watch(source(count=90), EXPERIMENT, Bare(), ALONE)()


def test_an_encoder_that_says_the_same_of_all_is_seen_to():
    objective = Bare()
    with torch.no_grad():
        for parameter in objective.encoder.parameters():
            parameter.zero_()
    found = Watch(source(), EXPERIMENT, objective, ALONE)()
    assert found["features_over_images"] == 0
    assert found["rankme"] == 1
    assert found["lidar"] == 1
    assert found["pixel_r2"] == 0
    assert "alpha_req" not in found, "what is not finite is left out"


def test_an_encoder_of_positions_alone_is_seen_to():
    class Places(Bare):
        @property
        def representation(self):
            table = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))

            class Fixed(nn.Module):
                def forward(self, x, keep=None):
                    return table.expand(len(x), 16, 24)

            return Fixed()

    found = Watch(source(), EXPERIMENT, Places(), ALONE)()
    assert found["features_over_images"] == pytest.approx(0, abs=1e-12)
    assert found["features_over_positions"] > 0.5


class Averages(Bare):
    """A representation that is the sixteen patches' mean brightness, the same for every token."""

    @property
    def representation(self):
        class Fixed(nn.Module):
            def forward(self, x, keep=None):
                return nn.functional.avg_pool2d(x, 4).flatten(1)[:, None].expand(-1, 16, -1)

        return Fixed()


def test_what_features_tell_of_the_very_pictures_is_measured():
    watch = Watch(source(), EXPERIMENT, Averages(), ALONE)
    told = watch()["pixel_r2"]
    assert told > 0.3, "many stripes are narrower than a patch"
    watch.components = watch.components.roll(1, 0)
    assert watch()["pixel_r2"] < 0.1, "of other pictures they tell nothing"


def test_too_few_pictures_or_all_alike_have_no_pixel_r2():
    assert "pixel_r2" in Watch(source(count=60), EXPERIMENT, Bare(), ALONE)()
    assert "pixel_r2" not in Watch(source(count=59), EXPERIMENT, Bare(), ALONE)(), "2.5 times 24 features"
    flat = ArraySource("flat", np.full((100, 18, 18, 1), 7, np.uint8))
    assert "pixel_r2" not in Watch(flat, EXPERIMENT, Bare(), ALONE)()


def test_the_crops_are_those_of_the_experiment():
    still = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    watch = Watch(source(), replace(EXPERIMENT, augmentation=still), Bare(), ALONE)
    assert watch()["alignment"] == pytest.approx(0, abs=1e-6)
    assert Watch(source(), EXPERIMENT, Bare(), ALONE)()["alignment"] > 1e-3


def test_images_that_cannot_be_read_are_left_out():
    class Spoilt(ArraySource):
        def read(self, index, at_least=None):
            if index % 3 == 0:
                raise BadImage(self.reference(index), "truncated")
            return super().read(index, at_least)

    whole = source()
    watch = Watch(Spoilt("spoilt", whole.images, whole.labels), EXPERIMENT, Bare(), ALONE)
    assert sum(map(len, watch.images)) == 160
    assert len(watch.crops) == 32 * watch.views
    assert set(watch()) == LABEL_FREE | {"knn", "probe", "labelled"}

    class Lost(ArraySource):
        def read(self, index, at_least=None):
            raise BadImage(self.reference(index), "truncated")

    with pytest.raises(InputError, match="none of 240 images of lost"):
        Watch(Lost("lost", whole.images), EXPERIMENT, Bare(), ALONE)


def test_images_are_prepared_for_random_order_before_any_is_read():
    class Slow(ArraySource):
        prepared = False

        def prepare(self):
            self.prepared = True

        def read(self, index, at_least=None):
            assert self.prepared
            return super().read(index, at_least)

    assert Watch(Slow("slow", source().images), EXPERIMENT, Bare(), ALONE).images


def test_it_leaves_the_weights_and_the_statistics_alone():
    experiment = replace(EXPERIMENT, ijepa=replace(EXPERIMENT.ijepa, target_norm="whiten"))
    objective = experiment.objective()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    Watch(source(), experiment, objective, ALONE)()
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert not objective.standardise.sums.any()


def test_a_short_run_is_watched_with_fewer_images():
    assert affordable(TrainingConfig(steps=300, batch=32)) == 400
    assert affordable(TrainingConfig(steps=3000, batch=50)) == 625
    assert affordable(TrainingConfig(steps=30_000, batch=32)) == 1000
