"""Patches of any encoder against masks: where its tokens are, where its own image tools put a mask, and the cache."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.assessment import open_panel
from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import Panel, panel_of
from openjepa.assessment.image_tools import ForeignPreprocessing, TimmTools
from openjepa.assessment.parts import IN_FOLDS
from openjepa.assessment.patch_features import PATCH_TOKENS, patch_encoders, patch_of
from openjepa.assessment.segmentation import assess_segmentation, open_parts
from openjepa.cli import main
from openjepa.data.augmentation import Preprocessing
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.evaluation.dense import Fitted, PatchKNN
from openjepa.evaluation.suite import PIXELS, RANDOM, TARGET
from openjepa.pretrained import Pretrained

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4}
SWIN = {"patch_size": 2, "embed_dim": 16, "num_heads": [2] * 4, "window_size": 2, "depths": [1] * 4}
STAGES = {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("kind", "size", "settings", "grid"),
    [
        ("ViT", 16, VIT, (4, 4)),
        ("Dinov2WithRegisters", 16, VIT | {"num_register_tokens": 3}, (4, 4)),
        ("Swin", 64, SWIN, (4, 4)),
        ("ConvNext", 64, STAGES, (2, 2)),
    ],
)
def test_tokens_of_transformers_models_are_on_their_grid(kind, size, settings, grid, tmp_path, transformers_directory):
    model = transformers_directory(tmp_path, kind, size, **settings)
    panel = open_panel(tmp_path)
    assert panel.grid == grid
    assert patch_of(panel) == (size // grid[0],) * 2
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    encoders = patch_encoders(panel)
    assert list(encoders) == [PATCH_TOKENS, RANDOM, PIXELS]
    with torch.no_grad():
        last = model(panel.preprocessing.normalise(images)).last_hidden_state
    last = last if last.ndim == 3 else last.flatten(2).mT
    torch.testing.assert_close(encoders[PATCH_TOKENS].encode(images), last[:, -grid[0] * grid[1] :])


@pytest.mark.parametrize(
    ("name", "settings", "grid"),
    [
        ("vit_tiny_patch16_224", TIMM_VIT | {"reg_tokens": 2}, (4, 4)),
        ("test_resnet", {}, (5, 5)),  # a feature map, channels first
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}, (7, 7)),
    ],
)
def test_tokens_of_timm_models_are_on_their_grid(name, settings, grid, tmp_path, timm_directory):
    model = timm_directory(tmp_path, name, **settings)
    panel = open_panel(tmp_path)
    size = panel.preprocessing.size
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = model.forward_features(panel.preprocessing.normalise(images))
    if last.ndim == 4:
        last = (last.permute(0, 2, 3, 1) if name == "test_resnet" else last).flatten(1, 2)
    assert panel.grid == grid
    torch.testing.assert_close(patch_encoders(panel)[PATCH_TOKENS].encode(images), last[:, -panel.tokens[0] :])


def test_without_a_grid_or_with_an_uneven_one_it_is_refused_in_a_sentence(
    tmp_path, transformers_directory, timm_directory
):
    # The last of its stages puts a class token before the patches, and nothing in its configuration says so.
    pyramid = STAGES | {"num_attention_heads": [1] * 4, "sequence_reduction_ratios": [8, 4, 2, 1]}
    transformers_directory(tmp_path / "pyramid", "Pvt", 64, **pyramid)
    with pytest.raises(InputError, match=r"which places this encoder's 5 tokens for 64 x 64 px stand for is not known"):
        patch_of(open_panel(tmp_path / "pyramid"))
    timm_directory(tmp_path / "stride", "resnet10t")
    with pytest.raises(InputError, match=r"grid of 6 x 6 does not divide its input of 176 x 176 px evenly"):
        patch_of(open_panel(tmp_path / "stride"))


def half_bright(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """An image whose upper left part is bright, and its mask."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 3, : width // 4] = 1
    return Image.fromarray(np.where(mask, 220, 30).astype(np.uint8)[..., None].repeat(3, 2)), mask


@pytest.mark.parametrize("library", ["transformers", "timm"])
@pytest.mark.parametrize("extents", [(60, 96), (96, 60), (20, 20)])
def test_a_mask_goes_the_way_of_its_image(library, extents, tmp_path, transformers_directory, timm_directory):
    """The one squeezes images, the other cuts their middle out."""
    if library == "transformers":
        transformers_directory(tmp_path, "ViT", 16, **VIT)
    else:
        timm_directory(tmp_path, "vit_tiny_patch16_224", **TIMM_VIT)
    preprocessing = open_panel(tmp_path).preprocessing
    image, mask = half_bright(*extents)
    pixels, fitted = preprocessing.fit(image)[0].numpy(), preprocessing.fit_mask(mask)
    assert fitted.shape == preprocessing.size
    assert fitted.dtype == np.uint8
    assert set(np.unique(fitted)) == {0, 1}
    # Between the two colours, at the border, either is right.
    sure = (pixels < 0.2) | (pixels > 0.8)
    assert sure.mean() > 0.7
    np.testing.assert_array_equal(fitted[sure], (pixels > 0.5)[sure])


@pytest.mark.parametrize("fill", [0, 1, 128, 254, 255])
def test_what_the_tools_add_around_an_image_is_not_labelled(fill):
    """Whatever its colour; the mask's own numbers are 0 and 1."""
    pytest.importorskip("timm")
    from timm.data import create_transform

    steps = create_transform((3, 32, 32), crop_mode="border", crop_pct=1.0).transforms[:-1]
    steps[1].fill = fill
    preprocessing = ForeignPreprocessing(
        size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, process=TimmTools(tuple(steps))
    )
    assert ((255 * preprocessing.fit(half_bright(32, 64)[0])[:, :8]).round() == fill).all()
    fitted = preprocessing.fit_mask(half_bright(32, 64)[1])
    assert (fitted[:8] == 255).all()
    assert (fitted[-8:] == 255).all()
    assert set(np.unique(fitted[8:-8])) == {0, 1}


@pytest.fixture
def masked(tmp_path) -> tuple[Path, Path]:
    """Photos whose bright part is the class 1."""
    images, masks, random = tmp_path / "images", tmp_path / "masks", np.random.default_rng(0)
    images.mkdir()
    masks.mkdir()
    for number in range(16):
        truth = np.zeros((32, 48), np.uint8)
        truth[:, random.integers(12, 36) :] = 1
        photo = np.where(truth[..., None] > 0, 190, 60) + random.normal(0, 8, (32, 48, 3))
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(images / f"{number}.png")
        Image.fromarray(truth).save(masks / f"{number}.png")
    return images, masks


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_directories_of_other_libraries_are_judged_on_masks(
    library, masked, tmp_path, capsys, transformers_directory, timm_directory
):
    folder, written = tmp_path / "model", tmp_path / "found.json"
    if library == "transformers":
        transformers_directory(folder, "ViT", 16, **VIT)
    else:
        timm_directory(folder, "vit_tiny_patch16_224", **TIMM_VIT)
    asked = ("--segmentation", *map(str, masked), "--json", str(written), "--pictures", str(tmp_path / "pictures"))
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(folder), *asked])
    assert not left.value.code, capsys.readouterr().err
    found = json.loads(written.read_text())
    rows = {(row["evaluator"], row["features"]): row["value"] for row in found["rows"]}
    evaluators = ("patch k-NN", "linear segmentation")
    assert list(rows) == [(one, name) for one in evaluators for name in (PATCH_TOKENS, RANDOM, PIXELS)]
    # Nothing but brightness is asked, and it goes through the same tools as the masks.
    assert rows["linear segmentation", PIXELS] > 0.8
    assert rows["linear segmentation", PATCH_TOKENS] > 0.6
    assert {(row["features"], row["against"]) for row in found["differences"]} == {
        (PATCH_TOKENS, RANDOM),
        (PATCH_TOKENS, PIXELS),
    }
    assert (tmp_path / "pictures" / "segmentation.png").is_file()


def counting(seed: int, seen: list[str]) -> Panel:
    """A panel whose networks tell when they compute."""
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=3, width=24, depth=2, heads=3)
    preprocessing = Preprocessing(size=(16, 16), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    panel = panel_of(Pretrained(Encoder(config, generator=torch.Generator().manual_seed(seed)), preprocessing))

    def told(network):
        def encode(images, wanted):
            seen.append(network.kinds[0].subject)
            return network.encode(images, wanted)

        return replace(network, encode=encode)

    return replace(panel, networks=tuple(told(one) for one in panel.networks))


def test_a_second_run_takes_features_of_patches_from_the_cache(masked, tmp_path):
    cache, seen = FeatureCache(folder=tmp_path / "features"), list[str]()

    def assessed(seed: int = 3, cache: FeatureCache | None = cache, **more) -> dict:
        return assess_segmentation(counting(seed, seen), *masked, cache=cache, **more) | {"seconds": 0}

    first = assessed()
    both = [TARGET, RANDOM]
    assert seen == both * 6  # to learn on, to test on in each fold
    assert assessed() == first
    assert seen == both * 6
    assert assessed(cache=None) == first
    del seen[:]
    assert assessed(seed=4)["rows"] != first["rows"]
    assert seen == [TARGET] * 6, "the random encoder is the same"
    del seen[:]
    found = assessed(seed=4, limit=9)  # other images to learn on and to test on
    assert (found["train_images"], found["test_images"]) == (9, 2)
    assert "A fifth of the images was held out" in found["split"]
    assert seen == both * 2
    del seen[:]
    photo = masked[0] / "3.png"
    Image.fromarray(255 - np.asarray(Image.open(photo))).save(photo)
    assessed()
    assert seen == both * 2, "of the parts that the photo is in"


def test_images_that_cannot_be_read_are_left_out_from_the_cache_too(masked, tmp_path):
    cache, seen = FeatureCache(folder=tmp_path / "features"), list[str]()
    for number in (3, 4, 5, 6):
        path = masked[0] / f"{number}.png"
        path.write_bytes(path.read_bytes()[:-40])
    found = [
        assess_segmentation(counting(3, seen), *masked, cache=one, bad_images=0.5) | {"seconds": 0}
        for one in (cache, cache, None)
    ]
    assert found[0] == found[1] == found[2]
    assert seen == [TARGET, RANDOM] * 12
    assert (found[0]["train_images"], found[0]["test_images"]) == (10, 12)


def test_every_image_with_a_mask_is_tested_on_by_what_was_learned_on_the_others(masked):
    learned, tested = list[set[int]](), list[set[int]]()

    class Seeing(PatchKNN):
        def fit(self, train):
            learned.append(set(train.image.tolist()))
            bank = set(map(bytes, train.values.numpy()))
            fitted = super().fit(train)

            def score(tokens):
                assert not bank & set(map(bytes, tokens.flatten(0, 1).numpy()))
                tested.append(len(tokens))
                return fitted.score(tokens)

            return Fitted(score=score, settings=fitted.settings | {"C": float(len(learned))})

    found = assess_segmentation(counting(3, []), *masked, segmenters=(Seeing(),))
    parts = open_parts(*masked)
    images = set(range(len(parts.data)))
    for learn, test in zip(parts.learn, parts.test, strict=True):
        assert set(learn.tolist()) == images - set(test.tolist())
    assert sorted(number for test in parts.test for number in test.tolist()) == sorted(images)
    assert learned == [set(learn.tolist()) for learn in parts.learn for _ in range(3)]
    assert sum(tested) == 3 * len(images)
    assert found["test_images"] == len(images)
    assert found["split"].count(IN_FOLDS) == 1
    assert [row["settings"]["C"] for row in found["rows"]] == [7.0, 8.0, 9.0], "of five folds the third"
