"""The recipe for somebody's images: sizes that fit, and the same for every method."""

import pytest

from openjepa.errors import InputError
from openjepa.recipes.baselines import baseline
from openjepa.recipes.choice import choose
from openjepa.recipes.small import lengthened, long_from


def chosen(size, channels=1, *, name="auto", method="ijepa", device="cpu", images=10_000, wanted=None):
    mean, std = (0.5,) * channels, (0.25,) * channels
    return choose(name, method=method, size=size, mean=mean, std=std, images=images, device=device, wanted=wanted)[0]


@pytest.mark.parametrize(
    ("size", "channels", "signal", "patch"),
    [
        ((28, 28), 1, (28, 28), 7),  # 49 values a patch
        ((32, 32), 3, (32, 32), 4),  # 48
        ((32, 32), 1, (32, 32), 8),
        ((28, 28), 3, (28, 28), 4),
        ((8, 8), 1, (16, 16), 2),  # enlarged
        ((8, 12), 3, (16, 24), 2),
        ((16, 16), 1, (16, 16), 4),  # never fewer than 4 tokens on a side
        ((64, 64), 3, (64, 64), 8),  # nor more than 8
        ((64, 64), 1, (64, 64), 8),
        ((480, 640), 3, (128, 128), 16),
        ((480, 1280), 3, (128, 336), 16),
        ((64, 1600), 1, (64, 1024), 8),  # a part of the length: 1,024 tokens
        ((4000, 128), 3, (2048, 128), 16),
        ((1, 500), 1, (16, 256), 2),
    ],
)
def test_tokens_are_four_to_eight_on_the_short_side(size, channels, signal, patch):
    made = chosen(size, channels)
    assert made.recipe == "small"
    assert made.encoder.signal == signal
    assert made.encoder.patch == (patch, patch)
    made.masking()


@pytest.mark.parametrize(
    ("size", "tokens", "lr"),
    [((28, 28), (4, 4), 5e-4), ((48, 48), (6, 6), 7.5e-4), ((32, 96), (4, 12), 8.66e-4), ((64, 192), (8, 24), 1e-3)],
)
def test_the_learning_rate_grows_with_the_root_of_the_tokens_from_16_to_64(size, tokens, lr):
    made = chosen(size)
    assert tuple(pixels // edge for pixels, edge in zip(made.encoder.signal, made.encoder.patch, strict=True)) == tokens
    assert made.schedule.lr == pytest.approx(lr, rel=1e-3)


def test_the_learning_rates_go_with_the_root_of_a_smaller_batch():
    full, few = chosen((28, 28)), chosen((28, 28), images=64)
    assert (full.training.batch, few.training.batch) == (64, 16)
    for name in ("start_lr", "lr", "final_lr"):
        assert getattr(few.schedule, name) == pytest.approx(getattr(full.schedule, name) / 2)
    assert few.schedule.weight_decay == full.schedule.weight_decay
    long = lengthened(few).schedule.lr / lengthened(full).schedule.lr
    assert long == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["ijepa", "mae", "denoising"])
@pytest.mark.parametrize(
    ("size", "channels", "images", "matrices"),
    [
        ((64, 64), 1, 256, "muon"),  # 64 images of 8x8 tokens
        ((28, 28), 3, 256, "muon"),  # of 7x7
        ((32, 96), 3, 256, "muon"),
        ((48, 48), 1, 256, "adamw"),  # of 6x6
        ((28, 28), 1, 256, "adamw"),
        ((64, 64), 1, 64, "adamw"),  # 16 of 8x8
    ],
)
def test_muon_moves_the_matrices_of_long_runs_whose_steps_have_many_tokens(size, channels, images, matrices, method):
    short = chosen(size, channels, images=images, method=method)
    assert short.optimizer.matrices == "adamw"
    assert lengthened(short).optimizer.matrices == matrices
    assert long_from(short) == (3_000 if matrices == "muon" else 10_000)


def test_a_gpu_and_photos_get_the_standard_recipe():
    made = chosen((480, 640), 3, device="cuda")
    assert (made.recipe, made.encoder.signal, made.encoder.patch) == ("standard", (224, 224), (16, 16))
    assert chosen((32, 32), 3, device="cuda").recipe == "small"
    colour = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "images": 9000, "method": "ijepa", "device": "cuda"}
    why = choose("auto", size=(480, 640), wanted=(64, 64), **colour)[1]
    assert why.startswith("small images; ")


def test_a_part_of_long_images_is_taken_unless_a_size_is_asked_for():
    colour = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "images": 9000, "method": "ijepa"}
    made, why = choose("auto", size=(128, 4000), device="cuda", **colour)
    assert made.encoder.signal == (224, 73 * 16)
    assert "a part of their length: whole they would be more than 1,024 tokens" in why
    made, why = choose("auto", size=(64, 1600), wanted=(64, 1600), device="cpu", **colour)
    assert made.encoder.signal == (64, 1600)
    assert "a part" not in why


def test_images_that_lie_and_stand_are_told_by_their_own_size():
    colour = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "images": 9000, "method": "ijepa", "device": "cpu"}
    made, why = choose("auto", size=(3000, 3000), median=(3000, 4000), **colour)
    assert made.encoder.signal == (128, 128)
    assert "resized to 128x128 px from about 3000x4000, square because some lie and some stand" in why
    assert "square" not in choose("auto", size=(3000, 4000), median=(3000, 4000), **colour)[1]


def test_the_published_giant_has_the_mlp_of_a_vit_g():
    giant = chosen((300, 400), 3, name="published-g16").encoder
    assert giant.width * giant.mlp_ratio == 6144


def test_the_published_recipes_keep_the_published_mean_and_spread_of_colours():
    assert chosen((300, 400), 3, name="published-b16").mean == (0.485, 0.456, 0.406)
    grey = chosen((300, 400), 1, name="published-b16")
    assert (grey.mean, grey.encoder.channels) == ((0.5,), 1)


@pytest.mark.parametrize("method", ["mae", "denoising"])
def test_a_baseline_gets_the_same_encoder(method):
    for name, images in (("small", 9000), ("small", 64), ("standard", 9000), ("standard", 400)):
        ours, theirs = (chosen((224, 224), 3, name=name, method=each, images=images) for each in ("ijepa", method))
        assert theirs.method == method
        assert theirs.encoder == ours.encoder
        assert theirs.schedule != ours.schedule
        assert theirs == baseline(ours, method), "as from a saved experiment, of whatever batch"


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InputError, match="published-b16 is a published I-JEPA recipe; --objective mae goes with"):
        chosen((224, 224), 3, name="published-b16", method="mae")
    with pytest.raises(InputError, match="no recipe 'tiny'"):
        chosen((32, 32), name="tiny")
    with pytest.raises(
        InputError, match=r"--image-size 256 256 is no multiple of published-h14's .* nearest is 252 252"
    ):
        chosen((300, 400), 3, name="published-h14", wanted=(256, 256))
    assert chosen((300, 400), 3, name="published-h14", wanted=(252, 448)).encoder.signal == (252, 448)
