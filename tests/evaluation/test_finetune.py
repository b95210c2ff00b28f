import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from openjepa.encoder import Encoder, EncoderConfig
from openjepa.evaluation.finetune import Backbone, FineTuned, FineTuning, Labelled, cropped
from openjepa.evaluation.layer_decay import layers, parameter_groups, share_of_rate

CONFIG = EncoderConfig(signal=(8, 8), patch=(4, 4), channels=1, width=16, depth=2, heads=2)


def backbone() -> Backbone:
    encoder = Encoder(CONFIG, generator=torch.Generator().manual_seed(0))
    return Backbone(encoder=encoder, width=16, normalise=lambda x: x.float() / 127.5 - 1)


def test_a_class_token_belongs_to_the_first_layer_and_is_not_decayed():
    encoder = Encoder(dataclasses.replace(CONFIG, class_token=True), generator=torch.Generator().manual_seed(0))
    made = dataclasses.replace(backbone(), encoder=encoder)
    model = FineTuned(made, 3, generator=torch.Generator())
    groups = parameter_groups(model.encoder, model.head, rate=1.0, layer_decay=0.5, weight_decay=0.1)
    (own,) = [group for group in groups if any(p is model.encoder.class_token for p in group["params"])]
    assert (own["lr"], own["weight_decay"]) == (0.125, 0.0)


def stripes(count: int, seed: int) -> Labelled:
    """Lines across, down, or none, in noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=count)
    wave = 70.0 * np.array([1, -1, 1, -1, 1, -1, 1, -1])
    kinds = np.stack([np.broadcast_to(wave[:, None], (8, 8)), np.broadcast_to(wave, (8, 8)), np.zeros((8, 8))])
    pixels = 128 + kinds[labels] * generator.choice([-1, 1], (count, 1, 1)) + generator.normal(0, 40, (count, 8, 8))
    return Labelled(images=torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))[:, None], labels=labels + 5)


def test_every_parameter_has_its_layers_rate():
    model = FineTuned(backbone(), 3, generator=torch.Generator())
    groups = parameter_groups(model.encoder, model.head, rate=1.0, layer_decay=0.5, weight_decay=0.1)
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters())) == sum(len(group["params"]) for group in groups)
    expected = {
        "encoder.embed.": 0.5**3,
        "encoder.stack.blocks.0.": 0.5**2,
        "encoder.stack.blocks.1.": 0.5,
        "encoder.stack.norm.": 1.0,
        "head.": 1.0,
    }
    for name, parameter in model.named_parameters():
        lr = next(value for start, value in expected.items() if name.startswith(start))
        assert rate[id(parameter)] == (lr, 0.1 if parameter.ndim > 1 else 0.0), name


def test_the_layers_of_other_networks():
    def stage(width: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(2)))

    parts = {"stem": nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), "one": stage(4)}
    parts |= {"between": nn.Linear(4, 8), "two": stage(8), "norm": nn.LayerNorm(8)}
    found, depth = layers(nn.ModuleDict(parts))
    told = {name.removesuffix(".weight"): layer for name, layer in found.items() if name.endswith("weight")}
    stages = {"one.0.0": 1, "one.1.0": 2, "between": 2, "two.0.0": 3, "two.1.0": 4}
    assert (told, depth) == ({"stem.0": 0, "stem.1": 0, **stages, "norm": 5}, 4)
    assert layers(nn.Linear(3, 3)) == ({"weight": 1, "bias": 1}, 0), "no blocks: all has the head's rate"


def test_what_a_network_draws_at_random_goes_by_the_seed():
    encoder = nn.Sequential(nn.Flatten(2), nn.Linear(64, 16), nn.Dropout(0.5))
    made, train, test = dataclasses.replace(backbone(), encoder=encoder), stripes(60, 0), stripes(90, 1)
    tuning = FineTuning(epochs=4, batch=16, rates=(1e-2,))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = tuning.classify(made, train, test).predicted
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert (tuning.classify(made, train, test).predicted == one).all()
    assert (dataclasses.replace(tuning, seed=1).classify(made, train, test).predicted != one).any()


def test_the_rate_warms_up_and_falls_to_nothing():
    shares = [share_of_rate(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert shares[10] == 1
    assert (np.diff(shares[10:]) < 0).all()
    assert shares[-1] < 0.001
    assert share_of_rate(0, 1, 0.1) == 1


def test_a_crop_shows_a_part_and_a_mirror_image_its_other_side():
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    whole = cropped(ramp, np.array([[1.0, 0.5, 0.5, 0.5, 0.9]]), (1.0, 1.0), flip=True)
    assert whole.sub(ramp).abs().max() < 1e-4
    mirrored = cropped(ramp, np.array([[1.0, 0.5, 0.5, 0.5, 0.1]]), (1.0, 1.0), flip=True)
    assert mirrored.sub(ramp.flip(-1)).abs().max() < 1e-4
    left = cropped(ramp, np.array([[0.0, 0.5, 0.5, 0.0, 0.1]]), (0.25, 1.0), flip=False)
    assert left.max() < 0.52
    assert left.min() < 0.02


def test_what_the_test_images_are_decides_on_nothing():
    own, train, test = backbone(), stripes(60, 0), stripes(40, 1)
    tuning = FineTuning(epochs=2, batch=16, rates=(1e-4, 1e-2))
    outcome = tuning.classify(own, train, test)
    with torch.inference_mode():
        assert (tuning.classify(own, train, test).predicted == outcome.predicted).all()
    others = tuning.classify(own, train, Labelled(images=test.images, labels=test.labels[::-1].copy()))
    assert (others.predicted == outcome.predicted).all()
    assert others.settings == outcome.settings
    assert (others.correct != outcome.correct).any()


def test_fine_tuning_learns_and_leaves_the_encoder_as_it_was():
    own, train, test = backbone(), stripes(120, 0), stripes(150, 1)
    before = {name: value.clone() for name, value in own.encoder.state_dict().items()}
    tuning = FineTuning(epochs=16, batch=32, rates=(1e-6, 1e-2), crop_scale=(0.8, 1.0))
    steps = []
    outcome = tuning.classify(own, train, test, lambda: steps.append(1))
    assert outcome.correct.mean() > 0.7  # three classes
    assert set(outcome.predicted) <= {5, 6, 7}
    assert outcome.settings["lr"] == 1e-2
    assert len(steps) == tuning.steps(train.labels) == 2 * 16 * 3 + 16 * 4
    assert all(torch.equal(before[name], value) for name, value in own.encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in own.encoder.parameters())
    assert outcome.scores()["accuracy_low"] < outcome.correct.mean() < outcome.scores()["accuracy_high"]


def test_the_same_seed_gives_the_same_answers():
    train, test = stripes(60, 0), stripes(60, 1)
    tuned = [FineTuning(epochs=4, rates=(3e-3,), seed=seed).classify(backbone(), train, test) for seed in (0, 0, 1)]
    assert np.array_equal(tuned[0].predicted, tuned[1].predicted)
    assert not np.array_equal(tuned[0].predicted, tuned[2].predicted)


def test_every_layer_is_trained():
    model = FineTuning(epochs=2, rates=(1e-2,))._trained(backbone(), stripes(40, 0), 1e-2, lambda: None)
    before = dict(backbone().encoder.named_parameters())
    for name, parameter in model.encoder.named_parameters():
        assert not torch.equal(before[name], parameter), name


def test_the_time_of_a_step_is_measured():
    assert 0 < FineTuning().seconds_a_step(backbone(), stripes(40, 0)) < 5


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"rates": ()}, {"rates": (0.0,)}, {"layer_decay": 0.0}, {"warmup": 1.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="fine-tuning needs"):
        FineTuning(**wrong)
