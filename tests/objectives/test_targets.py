"""Running statistics of targets, on features with known ones."""

import pytest
import torch

from openjepa.objectives.targets import RunningNorm


def correlated(images: int = 500) -> torch.Tensor:
    """Features "B N V" of 6 tokens and 5 values: a mean for every place, and values that go together."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator)
    places = 3 * torch.randn(6, 5, generator=generator)
    return torch.randn(images, 6, 5, generator=generator) @ mixing + places


def norm(kind: str, **more) -> RunningNorm:
    return RunningNorm(kind, tokens=6, values=5, **{"momentum": 0.0, "floor": 1e-6, **more})


@pytest.mark.parametrize("kind", ["feature", "position", "whiten"])
def test_each_kind_takes_out_what_it_says(kind):
    features, standardise = correlated(), norm(kind)
    standardise(features)
    standardise.update()
    standard = standardise.eval()(features)
    flat = standard.flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(flat.std(0), torch.ones(5), rtol=0, atol=5e-3)
    assert (standard.mean(0).abs().max() < 1e-3) == (kind != "feature")
    correlation = flat.T.corrcoef() - torch.eye(5)
    assert (correlation.abs().max() < 1e-2) == (kind == "whiten")


@pytest.mark.parametrize("kind", ["feature", "position", "whiten"])
def test_pieces_of_a_step_count_as_one(kind):
    features = correlated()
    one, other = norm(kind), norm(kind)
    one(features)
    for piece in features.split(130):
        other(piece)
    for both in (one, other):
        both.update()
        assert not both.sums.any()
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.spread, other.spread, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["feature", "position", "whiten"])
def test_statistics_move_slowly_and_only_in_training(kind):
    standardise = norm(kind, momentum=0.9)
    standardise(correlated())
    standardise.update()
    first = standardise.mean.clone()
    torch.testing.assert_close(first, correlated().mean(0) if kind != "feature" else correlated().mean((0, 1))[None])
    standardise(correlated() + 1)
    standardise.update()
    torch.testing.assert_close(standardise.mean, first + 0.1)
    standardise.eval()(correlated() + 100)
    standardise.update()
    torch.testing.assert_close(standardise.mean, first + 0.1)


def test_a_direction_without_spread_stays_finite():
    features = correlated()
    features[..., 1] = features[..., 0]
    standardise = norm("whiten", floor=0.05)
    standardise(features)
    standardise.update()
    assert standardise(features).isfinite().all()
