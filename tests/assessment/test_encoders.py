"""Any encoder can be judged: ours, those of transformers and timm, and features that were computed elsewhere."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.assessment import assess, assess_given, open_panel
from openjepa.assessment.encoders import Kind, panel_of
from openjepa.assessment.parts import HELD_OUT, IN_FOLDS
from openjepa.assessment.patch_features import PATCH_TOKENS, patch_encoders
from openjepa.assessment.precomputed import GIVEN, is_precomputed, read_given
from openjepa.assessment.tasks import Tasks, judge
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Splits
from openjepa.data.decode import decode
from openjepa.data.idx import ArraySource
from openjepa.data.loader import ordered_batches
from openjepa.data.masks import open_masked
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.evaluation.catalogue import choose, quick
from openjepa.evaluation.layer_decay import layers
from openjepa.evaluation.suite import LAST, LAST_FOUR, PIXELS, RANDOM, TARGET, TOKENS
from openjepa.pretrained import Pretrained

PATCHES, CLASS = "encoder (mean of patch tokens)", "encoder (class token)"
PREPROCESSING = Preprocessing(size=(16, 16), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def source(count: int, seed: int, name: str = "waves") -> ArraySource:
    """Grey images of three classes: stripes of three directions."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    rows, columns = np.mgrid[:16, :16]
    angle = labels[:, None, None]
    phase, pace = generator.uniform(0, 6, (count, 1, 1)), generator.uniform(0.5, 0.9, (count, 1, 1))
    waves = 127 + 100 * np.sin((rows * np.cos(angle) + columns * np.sin(angle)) * pace + phase)
    return ArraySource(name, waves[..., None].astype(np.uint8), labels, ("a", "b", "c"))


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits(train=source(90, 0), test=source(45, 1), sentence="Two parts.")


def ours(depth: int = 5) -> Pretrained:
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), width=24, depth=depth, heads=3)
    return Pretrained(Encoder(config, generator=torch.Generator().manual_seed(3)), PREPROCESSING)


VIT = {"hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3, "patch_size": 4}


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def features(panel, image: Image.Image) -> dict[Kind, torch.Tensor]:
    batch = panel.preprocessing.fit(image)[None]
    return {kind: value for one in panel.networks for kind, value in one.encode(batch, one.kinds).items()}


def test_the_views_of_our_encoder_are_what_they_say():
    pretrained = ours()
    found = features(panel_of(pretrained), picture())
    encoder, x = pretrained.encoder, PREPROCESSING.normalise(PREPROCESSING.fit(picture())[None])
    with torch.inference_mode():
        stream = encoder.stack.depths(encoder.tokens(x))
        blocks = [encoder.stack.norm(one) for one in stream[-4:]]
    torch.testing.assert_close(found[Kind(TARGET, LAST)], encoder(x).mean(1))
    torch.testing.assert_close(found[Kind(TARGET, LAST_FOUR)], torch.cat([block.mean(1) for block in blocks], 1))
    torch.testing.assert_close(found[Kind(TARGET, TOKENS)], blocks[-1])
    assert found[Kind(PIXELS, LAST)].shape == (1, 3 * 16 * 16)
    assert not torch.equal(found[Kind(RANDOM, LAST)], found[Kind(TARGET, LAST)])


def test_pixels_too_are_told_where_a_patch_is():
    """Else an attentive probe would beat them by what it knows of places alone."""
    tokens = features(panel_of(ours()), picture())[Kind(PIXELS, TOKENS)]
    x = PREPROCESSING.normalise(PREPROCESSING.fit(picture())[None])
    # The third patch of the second row, which 48 numbers would say whole: 2x2 averages of it are as many as 24 allow.
    patch = torch.nn.functional.adaptive_avg_pool2d(x[:, :, 4:8, 8:12], (2, 2))
    assert tokens.shape == (1, 16, 128)
    torch.testing.assert_close(tokens[:, 6, :12], patch.flatten(1))
    assert len({tuple(places) for places in tokens[0, :, 12 : 12 + 64].tolist()}) == 16


def test_what_all_images_share_is_taken_off_raw_pixels():
    """A camera's offset, by which all cosines would be 1."""
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=3)

    def pixels(mean: float, std: float, x: torch.Tensor) -> torch.Tensor:
        preprocessing = Preprocessing(size=(16, 16), channels=1, mean=(mean,), std=(std,))
        panel = panel_of(Pretrained(Encoder(config), preprocessing))
        return panel.networks[-1].encode(x, {Kind(PIXELS, LAST)})[Kind(PIXELS, LAST)].view_as(x)

    x = 0.5 + 0.001 * torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixels(0.5, 0.001, x), x - (0.5 - 3 * 0.001))
    assert torch.equal(pixels(0.5, 0.2, x), x)
    eight = torch.full((3, 1, 16, 16), 200, dtype=torch.uint8)
    torch.testing.assert_close(pixels(0.75, 0.05, eight), torch.full((3, 1, 16, 16), 200 / 255 - 0.6))


@pytest.mark.parametrize(("mean", "std", "far"), [(0.5, 0.25, False), (0.9, 0.05, True), (0.02, 0.01, True)])
def test_images_unlike_those_trained_on_are_told(mean, std, far, splits):
    preprocessing = Preprocessing(size=(16, 16), channels=3, mean=(mean,) * 3, std=(std,) * 3)
    notes = assess(Pretrained(ours().encoder, preprocessing), splits)["notes"]
    told = [note for note in notes if "are not like those trained on" in note]
    assert len(told) == far
    if far:
        pixels = np.mean([splits.train.read(number) for number in range(90)]) / 255
        assert f"is {pixels:.3g}," in told[0]
        assert f"from the {mean:.3g} there" in told[0]


def test_patches_of_more_channels_than_an_encoder_is_wide_have_no_tokens_of_pixels():
    many = Preprocessing(size=(16, 16), channels=30, mean=(0.5,) * 30, std=(0.25,) * 30)
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=30, width=24, depth=2, heads=3)
    kinds = panel_of(Pretrained(Encoder(config), many)).kinds
    assert Kind(PIXELS, LAST) in kinds
    assert Kind(PIXELS, TOKENS) not in kinds


def test_fewer_than_four_blocks_are_all_of_them_and_it_is_said(splits):
    panel = panel_of(ours(depth=2))
    assert features(panel, picture())[Kind(TARGET, LAST_FOUR)].shape == (1, 48)
    assert "has 2 blocks" in assess(panel, splits)["notes"][0]


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_a_transformers_model(kind, tmp_path, splits, transformers_directory):
    model = transformers_directory(tmp_path / "model", kind, 16, **VIT)
    panel = open_panel(tmp_path / "model")
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        output = model(**processor(picture(), return_tensors="pt"), output_hidden_states=True)
    tokens, found = output.last_hidden_state, features(panel, picture())
    torch.testing.assert_close(found[Kind(PATCHES, LAST)], tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[Kind(CLASS, LAST)], tokens[:, 0], rtol=1e-4, atol=1e-4)
    four = torch.cat([model.layernorm(state)[:, 1:].mean(1) for state in output.hidden_states[-4:]], 1)
    torch.testing.assert_close(found[Kind(PATCHES, LAST_FOUR)], four, rtol=1e-4, atol=1e-4)
    rows = assess(panel, splits, entries=choose("full", ("sgd",)))["rows"]
    assert {row["features"] for row in rows} == {PATCHES, CLASS, RANDOM, "random encoder (class token)", PIXELS}
    # The twin is of the same shape, is the same each time, and disturbs nobody's random numbers.
    state = torch.random.get_rng_state()
    again = features(open_panel(tmp_path / "model"), picture())
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(again[Kind(RANDOM, LAST)], found[Kind(RANDOM, LAST)])


@pytest.mark.parametrize(("kind", "normed"), [("SiglipVision", True), ("CLIPVision", False)])
def test_earlier_blocks_go_through_the_norm_that_the_last_one_goes_through(
    kind, normed, tmp_path, transformers_directory
):
    """Both have a ``post_layernorm``; CLIP's is not of its patches."""
    model = transformers_directory(tmp_path, kind, 16, intermediate_size=48, **VIT)
    found = features(open_panel(tmp_path), picture())[Kind(PATCHES, LAST_FOUR)]
    x = open_panel(tmp_path).preprocessing
    with torch.no_grad():
        output = model(pixel_values=x.normalise(x.fit(picture())[None]), output_hidden_states=True)
        norm = next(part for name, part in model.named_modules() if name.endswith("post_layernorm"))
        states = [norm(state) if normed else state for state in output.hidden_states[-4:-1]]
    four = torch.cat([state[:, -16:].mean(1) for state in (*states, output.last_hidden_state)], 1)
    torch.testing.assert_close(found, four, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("EfficientNet", {"include_top": True}, r"EfficientNetImageProcessor\) makes 0 of black and 2 of white"),
        ("EfficientNet", {"include_top": False, "rescale_offset": True}, "makes -1 of black and 0 of white"),
        ("ViT", {"do_rescale": False}, "makes 0 of black and 255 of white"),
    ],
)
def test_image_tools_whose_black_and_white_are_not_0_and_1_are_refused(
    kind, settings, said, tmp_path, transformers_directory
):
    transformers_directory(tmp_path, "ViT", 16, **VIT)
    import transformers

    processor = getattr(transformers, f"{kind}ImageProcessor")
    processor(size={"height": 16, "width": 16}, rescale_factor=1 / 255, **settings).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=said):
        open_panel(tmp_path)


def test_a_masked_autoencoder_sees_all_patches_in_their_order(tmp_path, transformers_directory):
    model = transformers_directory(tmp_path, "ViTMAE", 16, **VIT)
    panel = open_panel(tmp_path)
    assert (panel.tokens, panel.grid, panel.subjects) == ((16, 24), (4, 4), (PATCHES, CLASS))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    part, x = model.embeddings, panel.preprocessing.normalise(images)
    with torch.no_grad():
        tokens = torch.cat([part.cls_token.expand(2, -1, -1), part.patch_embeddings(x)], 1) + part.position_embeddings
        for layer in model.layers:
            tokens = layer(tokens, None)
        tokens = model.layernorm(tokens)
    found = panel.networks[0].encode(images, panel.networks[0].kinds)
    torch.testing.assert_close(found[Kind(PATCHES, LAST)], tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[Kind(CLASS, LAST)], tokens[:, 0], rtol=1e-4, atol=1e-4)
    assert found[Kind(PATCHES, LAST_FOUR)].shape == (2, 4 * 24)
    of_patches = patch_encoders(panel)[PATCH_TOKENS].encode(images)
    torch.testing.assert_close(of_patches, tokens[:, 1:], rtol=1e-4, atol=1e-4)
    for one in panel.networks:
        again = one.encode(images, one.kinds)
        assert all(torch.equal(value, again[kind]) for kind, value in one.encode(images, one.kinds).items())


def covering(side: int) -> dict:
    return {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": side}, "resample": 3} | {
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
    }


def test_an_ijepa_whose_images_transformers_stretches_is_judged_on_those(tmp_path, transformers_directory):
    model = transformers_directory(tmp_path, "IJepa", 16, intermediate_size=48, **VIT)
    panel = open_panel(tmp_path)
    assert (panel.subjects, panel.grid) == ((PATCHES,), (4, 4))
    from transformers import AutoImageProcessor

    x = AutoImageProcessor.from_pretrained(tmp_path)(picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(pixel_values=x, output_hidden_states=True)
    found = features(panel, picture())
    torch.testing.assert_close(found[Kind(PATCHES, LAST)], output.last_hidden_state.mean(1), rtol=1e-4, atol=1e-4)
    four = torch.cat([model.layernorm(state).mean(1) for state in output.hidden_states[-4:]], 1)
    torch.testing.assert_close(found[Kind(PATCHES, LAST_FOUR)], four, rtol=1e-4, atol=1e-4)
    # Where the file asks for the very images that ours are, nothing needs transformers, and nothing is to be told.
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | covering(16)))
    assert open_panel(tmp_path).subjects == (TARGET,)


def test_an_ijepa_at_a_size_that_transformers_refuses_is_judged_in_our_way_and_told(tmp_path, transformers_directory):
    transformers_directory(tmp_path, "IJepa", 16, intermediate_size=48, **VIT)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"height": 24, "width": 24}}))
    with pytest.warns(UserWarning, match="stretches images to 24x24 px"):
        panel = open_panel(tmp_path)
    assert (panel.subjects, panel.grid) == ((TARGET,), (6, 6))


def test_a_model_that_draws_at_random_is_refused(tmp_path, monkeypatch, transformers_directory):
    transformers_directory(tmp_path, "ViTMAE", 16, **VIT)
    monkeypatch.setattr("openjepa.assessment.foreign._MASKING", "another")
    with pytest.raises(InputError, match="is not deterministic"):
        open_panel(tmp_path)


def test_large_jpegs_reach_the_tools_of_another_library_whole(tmp_path, timm_directory):
    """These resize to more than the model's size before they cut; ours may get a smaller version."""
    timm_directory(tmp_path / "model", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    photo = tmp_path / "images" / "a.jpg"
    Image.fromarray(noise).resize((640, 480)).save(photo)
    Image.fromarray((noise[..., 0] > 127).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    preprocessing = open_panel(tmp_path / "model").preprocessing
    data = open_masked(tmp_path / "images", tmp_path / "masks")
    expected = preprocessing.fit(decode(photo, "a.jpg"))
    assert not torch.equal(preprocessing.fit(decode(photo, "a.jpg", preprocessing.size)), expected)
    assert torch.equal(data.read(0, preprocessing)[0], expected)
    (batch,) = ordered_batches(data.images, preprocessing, batch=1, workers=0)
    assert torch.equal(batch.images[0], expected)


def test_a_transformers_model_with_missing_weights_is_refused(tmp_path, transformers_directory):
    transformers_directory(tmp_path, "ViT", 16, **VIT)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layernorm_before" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match=r"lacks 1 weights .*layernorm_before"):
        open_panel(tmp_path)


def test_a_timm_model(tmp_path, splits, timm_directory):
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 5, "num_heads": 3}
    model = timm_directory(tmp_path / "model", **size)
    panel = open_panel(tmp_path / "model")
    from timm.data import create_transform, resolve_model_data_config

    data = resolve_model_data_config(model) | {"input_size": (3, 32, 32)}
    x = create_transform(**data, is_training=False)(picture())[None]
    with torch.no_grad():
        tokens, found = model.forward_features(x), features(panel, picture())
        states = model.forward_intermediates(x, indices=4, norm=True, output_fmt="NLC")[1]
    torch.testing.assert_close(found[Kind(PATCHES, LAST)], tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[Kind(CLASS, LAST)], tokens[:, 0], rtol=1e-4, atol=1e-4)
    four = torch.cat([state.mean(1) for state in states], 1)
    torch.testing.assert_close(found[Kind(PATCHES, LAST_FOUR)], four, rtol=1e-4, atol=1e-4)
    # The class token is of the last block alone.
    assert len(assess(panel, splits)["rows"]) == 2 * 5 + 3


def test_nothing_that_a_directory_brings_is_executed(tmp_path, monkeypatch, timm_directory):
    timm_directory(tmp_path / "timm", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    (tmp_path / "timm" / "pytorch_model.bin").write_bytes(b"pickled")
    monkeypatch.setattr("timm.__version__", "1.0.30")
    with pytest.raises(InputError, match=r"a pickle \(pytorch_model.bin\), which timm 1.0.30 would execute"):
        open_panel(tmp_path / "timm")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Own: pass\n")
    named = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    (theirs / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": named}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whatever who sits there would answer
    with pytest.raises(InputError, match="cannot read"):
        open_panel(theirs)
    assert not (tmp_path / "executed").exists()


def test_tokens_of_a_timm_model_that_norms_after_pooling_go_through_that_norm(tmp_path, timm_directory):
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 5, "num_heads": 3, "global_pool": "avg"}
    model = timm_directory(tmp_path / "model", **size)
    assert isinstance(model.norm, torch.nn.Identity)
    with torch.no_grad():
        model.fc_norm.weight.uniform_(0.5, 2)
        model.fc_norm.bias.normal_()
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "model" / "model.safetensors")
    panel = open_panel(tmp_path / "model")
    x = panel.preprocessing.normalise(panel.preprocessing.fit(picture())[None])
    with torch.no_grad():
        tokens = model.fc_norm(model.forward_features(x))
        states = model.forward_intermediates(x, indices=4, norm=True, output_fmt="NLC", intermediates_only=True)
        four = torch.cat([model.fc_norm(state).mean(1) for state in states], 1)
    for blocks in (1, 4):  # they are read in two ways
        kinds = (
            panel.networks[0].kinds if blocks == 4 else (Kind(PATCHES, LAST), Kind(PATCHES, TOKENS), Kind(CLASS, LAST))
        )
        found = panel.networks[0].encode(panel.preprocessing.fit(picture())[None], kinds)
        torch.testing.assert_close(found[Kind(PATCHES, TOKENS)], tokens[:, 1:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[Kind(CLASS, LAST)], tokens[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[Kind(PATCHES, LAST_FOUR)], four, rtol=1e-4, atol=1e-4)


def test_a_timm_model_that_cannot_take_the_image_of_its_own_file_is_told_in_a_sentence(
    tmp_path, monkeypatch, timm_directory
):
    timm_directory(tmp_path, img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    from timm.data import resolve_model_data_config

    other = {"input_size": (3, 64, 64)}
    monkeypatch.setattr("timm.data.resolve_model_data_config", lambda model: resolve_model_data_config(model) | other)
    with pytest.raises(
        InputError, match=r"VisionTransformer of timm.*image of \(64, 64\) px.*input_size there must be"
    ):
        open_panel(tmp_path)
    monkeypatch.undo()
    # CrossViT's features are of two sizes, and it gives a list.
    monkeypatch.setattr("timm.models.VisionTransformer.forward_features", lambda self, x: [x, x])
    with pytest.raises(InputError, match="'list' object has no attribute 'ndim'"):
        open_panel(tmp_path)


def test_the_registers_of_a_timm_model_are_not_its_class_token(tmp_path, timm_directory):
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    registers = {"class_token": False, "reg_tokens": 4, "global_pool": "avg"}
    model = timm_directory(tmp_path / "model", **size, **registers)
    panel = open_panel(tmp_path / "model")
    assert panel.subjects == (PATCHES,)
    assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape[1] == 4 + 16
    assert panel.tokens == (16, 24)


def test_a_convolutional_timm_model_has_no_blocks_and_no_class_token(tmp_path, splits, timm_directory):
    timm_directory(tmp_path / "model", "resnet10t")
    panel = open_panel(tmp_path / "model")
    assert panel.subjects == (PATCHES,)
    found = assess(panel, splits, entries=choose("full", ("sgd",)), limit=18)
    assert {row["evaluator"] for row in found["rows"]} == {"SGD probe", "SGD probe with BatchNorm"}
    assert any("nothing is said of the last four" in note for note in found["notes"])


def staged(folder: Path, kind: str, timm_directory) -> Path:
    """A network of stages, whose shapes are not those of the last: of transformers or, with a small letter, timm."""
    if kind.islower():
        timm_directory(folder, kind)
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"] |= {
            "input_size": [3, 64, 64],
            "test_input_size": [3, 64, 64],
        }  # a convolution's to take
        (folder / "config.json").write_text(json.dumps(config))
        return folder
    transformers = pytest.importorskip("transformers")
    swin = {"patch_size": 2, "embed_dim": 16, "num_heads": [2] * 4, "window_size": 2}
    settings = swin if kind == "Swin" else {"hidden_sizes": [8, 16, 16, 16]}
    config = getattr(transformers, f"{kind}Config")(image_size=32, depths=[1] * 4, num_stages=4, **settings)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["Swin", "ConvNext", "efficientnet_b0"])
def test_blocks_that_are_stages_are_not_read_as_blocks(kind, tmp_path, splits, timm_directory):
    panel = open_panel(staged(tmp_path / "model", kind, timm_directory))
    assert Kind(PATCHES, LAST_FOUR) not in panel.kinds
    found = assess(panel, splits, limit=18)
    assert {row["evaluator"] for row in found["rows"]} == {"k-NN", "linear probe"}
    assert any("nothing is said of the last four" in note for note in found["notes"])


@pytest.mark.parametrize(("kind", "blocks"), [("ViT", 5), ("vit", 5), ("Swin", 4), ("resnet10t", 0)])
def test_other_libraries_encoders_are_fine_tuned(
    kind, blocks, tmp_path, splits, transformers_directory, timm_directory
):
    if kind == "ViT":
        transformers_directory(tmp_path / "model", kind, 16, **VIT)
    elif kind == "vit":
        timm_directory(tmp_path / "model", img_size=32, patch_size=8, embed_dim=24, depth=5, num_heads=3)
    else:
        staged(tmp_path / "model", kind, timm_directory)
    panel = open_panel(tmp_path / "model")
    mine, random = panel.backbones
    names, depth = layers(mine.encoder)
    assert depth == blocks
    assert set(names.values()) == (set(range(blocks + 2)) if blocks else {1})
    batch = panel.preprocessing.normalise(panel.preprocessing.fit(picture())[None])
    kinds = features(panel, picture())
    for backbone, subject in ((mine, PATCHES), (random, RANDOM)):
        assert backbone.encoder(batch).requires_grad
        torch.testing.assert_close(backbone.encoder(batch).detach(), kinds[Kind(subject, TOKENS)])
    tasks = Tasks(names=("finetune",), finetune_epochs=3 if blocks else 1)  # a convolution is slow
    found = judge(panel, splits, entries=(), tasks=tasks)
    assert [row["features"] for row in found["rows"]] == [PATCHES, "from scratch"]
    assert max(row["value"] for row in found["rows"]) > (0.4 if blocks else 0.3)  # of three classes
    assert found["differences"][0]["features"] == PATCHES
    assert found["notes"] == []


@pytest.mark.parametrize(("library", "extra"), [("transformers", "export"), ("timm", "timm")])
def test_a_missing_library_is_named_with_what_to_install(library, extra, tmp_path, monkeypatch):
    content = {"model_type": "vit"} if library == "transformers" else {"architecture": "vit_tiny_patch16_224"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"pip install 'openjepa\[{extra}\]'"):
        open_panel(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"model_type": "no such model"}', '{"architecture": "no_such_model"}', "{}"])
def test_what_is_no_encoder_is_told_in_a_sentence(content, tmp_path):
    if "architecture" in content:
        pytest.importorskip("timm")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"cannot read|cannot be read|only 'ijepa'"):
        open_panel(tmp_path)


def saved(folder: Path, splits: Splits) -> Path:
    """Features of both parts: their pixels, made small."""
    for part, images in (("train", splits.train), ("test", splits.test)):
        values = images.images.reshape(len(images), 4, 4, 4, 4).mean((2, 4)).reshape(len(images), 16) / 255
        np.save(folder / f"{part}.npy", values.astype(np.float32))
        np.save(folder / f"{part}_labels.npy", images.labels.astype(np.int32) + 5)
    return folder


def test_features_that_were_computed_elsewhere(tmp_path, splits):
    folder = saved(tmp_path, splits)
    assert is_precomputed(folder)
    found = assess_given(read_given(folder), None, entries=choose("full", ("knn", "logistic", "attentive")))
    assert {row["features"] for row in found["rows"]} == {GIVEN}
    assert found["rows"][0]["value"] > 0.8
    notes = " ".join(found["notes"])
    for said in ("random encoder is not available", "Raw pixels are not available", "attentive probe"):
        assert said in notes
    beside = assess_given(read_given(folder), splits, entries=quick())
    assert {row["features"] for row in beside["rows"]} == {GIVEN, PIXELS}
    assert {row["against"] for row in beside["differences"]} == {PIXELS}
    few = Splits(train=source(30, 0), test=splits.test, sentence="")
    with pytest.raises(InputError, match=r"30 and 45 images, and the features are of 90 and 45"):
        assess_given(read_given(folder), few, entries=quick())
    turned = ArraySource("turned", splits.train.images, np.roll(splits.train.labels, 1) * [1], ("a", "b", "c"))
    turned.labels = np.random.default_rng(0).permutation(turned.labels)
    with pytest.raises(InputError, match="is the order another"):
        assess_given(read_given(folder), Splits(train=turned, test=splits.test, sentence=""), entries=quick())


def test_of_features_too_a_rare_class_is_set_aside(tmp_path, splits):
    folder = saved(tmp_path, splits)
    for part, rare in (("train", 1), ("test", 3)):
        labels = np.load(folder / f"{part}_labels.npy")
        labels[np.flatnonzero(labels == labels[0])[:rare]] = 10**9
        np.save(folder / f"{part}_labels.npy", labels)
    found = assess_given(read_given(folder), None, entries=quick())
    assert (found["train_images"], found["test_images"], found["classes"]) == (89, 42, 3)
    assert "class 1000000000; 1 train and 3 test images" in found["split"]
    beside = assess_given(read_given(folder), splits_of_other_labels(splits, folder), entries=quick())
    assert {row["features"] for row in beside["rows"]} == {GIVEN, PIXELS}


def splits_of_other_labels(splits: Splits, folder: Path) -> Splits:
    """The same images with the labels that the features in ``folder`` have."""
    parts = {}
    for part, images in (("train", splits.train), ("test", splits.test)):
        labels = np.load(folder / f"{part}_labels.npy")
        codes = np.where(labels == 10**9, 3, labels - 5).astype(np.int64)
        parts[part] = ArraySource(part, images.images, codes, ("a", "b", "c", "d"))
    return Splits(train=parts["train"], test=parts["test"], sentence="")


def test_one_file_of_features_is_judged_in_folds_and_many_are_split(tmp_path, splits):
    saved(tmp_path, splits)
    (tmp_path / "one").mkdir()
    values, labels = np.load(tmp_path / "train.npy"), np.load(tmp_path / "train_labels.npy")
    np.save(tmp_path / "one" / "mine.npy", values)
    np.save(tmp_path / "one" / "labels.npy", labels)
    given = read_given(tmp_path / "one" / "mine.npy")
    assert (len(given.train), len(given.test)) == (90, 90)
    alone = Splits(train=splits.train, test=None, sentence="")
    found = assess_given(given, alone, entries=quick())
    assert {row["features"] for row in found["rows"]} == {GIVEN, PIXELS}
    labels[[3, 50]] = -1
    np.save(tmp_path / "one" / "labels.npy", labels)
    found = assess_given(read_given(tmp_path / "one" / "mine.npy"), alone, entries=quick())
    assert {row["features"] for row in found["rows"]} == {GIVEN, PIXELS}
    assert (found["train_images"], found["test_images"]) == (71, 88)
    assert found["split"] == IN_FOLDS
    np.save(tmp_path / "one" / "mine.npy", np.tile(values, (60, 1)))  # 5,400 are more than are tested on
    np.save(tmp_path / "one" / "labels.npy", np.tile(labels, 60))
    given = read_given(tmp_path / "one" / "mine.npy")
    assert not set(given.rows[0]) & set(given.rows[1])
    found = assess_given(given, None, entries=quick())
    assert found["train_images"] + found["test_images"] == 60 * 88
    assert found["split"] == HELD_OUT


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.npy", np.zeros((90, 4, 4), np.float32), r"got float32 of shape \(90, 4, 4\)"),
        ("train.npy", np.zeros((90, 4), np.int64), "got int64"),
        ("train.npy", np.full((90, 16), np.nan, np.float32), "NaN or infinity in 90 of 90"),
        # Cast to float32 these would be infinite; those would be finite, but not their squares.
        (
            "test.npy",
            np.full((45, 16), -1e39),
            r"test.npy holds -1e\+39 \(row 0, column 0.* of 720 numbers .*divide all",
        ),
        (
            "train.npy",
            np.eye(90, 16, dtype=np.float32) * 1e20,
            r"train.npy holds 1e\+20 .*one of 16 numbers beyond 1e\+15",
        ),
        ("train_labels.npy", np.zeros(7, np.int64), r"each of the 90 images .* got int64 of shape \(7,\)"),
        ("test_labels.npy", np.zeros(45, np.float32), "one whole number"),
        ("test_labels.npy", np.full(45, 2**63, np.uint64), "holds 9223372036854775808, .* below 2"),
        ("test.npy", np.zeros((45, 3), np.float32), "16 dimensions in the train part and 3"),
        ("test_labels.npy", np.array(["a"] * 45, object), "is no plain .npy array"),
        ("train.npy", {"features": np.eye(90, 16)}, "train.npy is no plain .npy array .it is an archive"),
        ("test_labels.npy", None, "there is no .*test_labels.npy"),
    ],
)
def test_features_of_the_wrong_shape_are_told_in_a_sentence(name, content, said, tmp_path, splits):
    path = saved(tmp_path, splits) / name
    path.unlink()
    if isinstance(content, dict):
        with path.open("wb") as file:
            np.savez(file, **content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=said):
        assess_given(read_given(tmp_path), None, entries=quick())
