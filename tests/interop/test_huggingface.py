"""Encoders leave as directories that transformers reads to equal numbers, and come back; no half-written one stays."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from openjepa.data.augmentation import Preprocessing
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.interop import folders, huggingface
from openjepa.interop.card import model_card


@dataclass(frozen=True)
class Facts:
    """Preprocessing as the data side has it."""

    size: tuple[int, ...]
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


GREY = {"channels": 1, "mean": (0.2860,), "std": (0.3530,)}
SMALL = {
    "square": EncoderConfig(signal=(32, 32), patch=(8, 8), width=48, depth=2, heads=3),
    "grey, another epsilon": EncoderConfig(
        signal=(28, 28), patch=(4, 4), channels=1, width=36, depth=2, heads=4, norm_eps=1e-3, mlp_ratio=48 / 11
    ),
    "oblong, no qkv bias": EncoderConfig(signal=(24, 40), patch=(8, 8), width=48, depth=2, heads=3, qkv_bias=False),
    "oblong patch": EncoderConfig(signal=(24, 40), patch=(8, 4), width=48, depth=2, heads=3),
    "learned table": EncoderConfig(signal=(32, 32), patch=(8, 8), width=48, depth=2, heads=3, positions="learned"),
    "H/14, two blocks": EncoderConfig(signal=(224, 224), patch=(14, 14), width=1280, depth=2, heads=16),
    "g/16, one block": EncoderConfig(
        signal=(224, 224), patch=(16, 16), width=1408, depth=1, heads=16, mlp_ratio=48 / 11
    ),
}


def random_encoder(config: EncoderConfig) -> Encoder:
    """Large random weights everywhere, norms and biases too, so that a swapped tensor shows."""
    torch.manual_seed(7)
    encoder = Encoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3 if config.width < 100 else 0.05)
        if config.positions == "learned":
            encoder.table.normal_()
    return encoder


def facts_for(config: EncoderConfig) -> Facts:
    return Facts(config.signal, **(GREY if config.channels == 1 else {}))


@pytest.fixture
def small(tmp_path) -> tuple[Encoder, Path]:
    encoder = random_encoder(SMALL["square"])
    huggingface.export(encoder, tmp_path / "encoder", preprocessing=facts_for(encoder.config))
    return encoder, tmp_path / "encoder"


@pytest.mark.parametrize("name", SMALL)
def test_transformers_computes_the_same_features(name, tmp_path):
    from transformers import AutoModel, IJepaModel

    encoder = random_encoder(SMALL[name])
    config = encoder.config
    huggingface.export(encoder, tmp_path / "encoder", preprocessing=facts_for(config))
    model, report = AutoModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert type(model) is IJepaModel
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    back = huggingface.load(tmp_path / "encoder").encoder
    images = torch.randn(2, config.channels, *config.signal)
    with torch.no_grad():
        ours, theirs = encoder(images), model(images).last_hidden_state
        assert torch.equal(back(images), ours)
    assert (ours - theirs).abs().max() < 1e-5
    assert (back.config.signal, back.config.patch, back.config.heads) == (config.signal, config.patch, config.heads)
    assert (back.config.norm_eps, back.config.positions) == (config.norm_eps, config.positions)
    assert back.state_dict().keys() == encoder.state_dict().keys()


@pytest.mark.parametrize("name", ["square", "grey, another epsilon", "oblong, no qkv bias"])
def test_the_image_processor_makes_our_input(name, tmp_path):
    from transformers import AutoImageProcessor

    encoder = random_encoder(SMALL[name])
    config, facts = encoder.config, facts_for(encoder.config)
    huggingface.export(encoder, tmp_path / "encoder", preprocessing=facts)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "encoder")
    pixels = np.random.default_rng(0).integers(0, 256, (*config.signal, config.channels), dtype=np.uint8)
    image = Image.fromarray(pixels if config.channels == 3 else pixels[..., 0])
    found = processor(image, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (facts.mean, facts.std))
    expected = (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - mean) / std
    assert found.shape == (1, config.channels, *config.signal)
    assert (found[0] - expected).abs().max() < 1e-6


def test_the_image_processor_covers_a_square_and_cuts_its_centre(small):
    from torchvision.transforms.v2 import functional as transform
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(small[1])
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    found = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    covered = transform.resize(
        torch.from_numpy(pixels).permute(2, 0, 1), [32], transform.InterpolationMode.BICUBIC, antialias=True
    )
    cut = transform.center_crop(covered, [32, 32]).float() / 255
    expected = transform.normalize(cut, list(Facts((32, 32)).mean), list(Facts((32, 32)).std))
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [20, 28, 45])
def test_the_image_processor_agrees_with_training(channels, side, tmp_path):
    from transformers import AutoImageProcessor

    encoder = Encoder(EncoderConfig(signal=(28, 28), patch=(4, 4), channels=channels, width=24, depth=1, heads=2))
    preprocessing = Preprocessing(size=(28, 28), channels=channels, mean=(0.3,) * channels, std=(0.2,) * channels)
    huggingface.export(encoder, tmp_path / "encoder", preprocessing=preprocessing)
    assert Preprocessing(**huggingface.load(tmp_path / "encoder").preprocessing) == preprocessing
    coarse = np.random.default_rng(0).integers(0, 256, (9, 9, channels), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((5, 5, 1), np.uint8))[:side, :side]
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "encoder")(image, return_tensors="pt")["pixel_values"]
    ours = preprocessing.normalise(preprocessing.fit(image)[None])
    # The two resize to 8 bits with arithmetic of their own: at most one grey level apart, and nothing at native size.
    assert (ours - theirs).abs().max() <= (1e-5 if side == 28 else 1.01 / 255 / 0.2)


def test_preprocessing_comes_back(small):
    loaded = huggingface.load(small[1])
    assert loaded.preprocessing == {
        "size": (32, 32),
        "channels": 3,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    assert loaded.metadata == {
        "model_type": "ijepa",
        "written_by": "openjepa",
        "preprocessing_assumed": False,
        "ignored": [],
    }


@pytest.mark.parametrize(("signal", "patch"), [((64,), (8,)), ((8, 24, 40), (2, 8, 4))])
def test_what_transformers_cannot_hold_still_comes_back_and_the_card_says_so(signal, patch, tmp_path):
    from transformers import AutoModel

    encoder = random_encoder(EncoderConfig(signal=signal, patch=patch, channels=1, width=48, depth=1, heads=3))
    huggingface.export(encoder, tmp_path / "encoder", preprocessing=Facts(signal, **GREY))
    loaded = huggingface.load(tmp_path / "encoder")
    assert loaded.encoder.config == encoder.config
    assert loaded.preprocessing == {"size": signal, **GREY}
    x = torch.randn(2, 1, *signal)
    with torch.no_grad():
        assert torch.equal(loaded.encoder(x), encoder(x))
    assert "transformers cannot hold this architecture" in (tmp_path / "encoder" / "README.md").read_text()
    with pytest.raises(ValueError, match="openjepa_encoder"):
        AutoModel.from_pretrained(tmp_path / "encoder")


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("kind", ["IJepaModel", "IJepaForImageClassification", "with a pooler"])
def test_a_directory_that_transformers_has_saved_is_read(kind, shards, tmp_path):
    import transformers

    config = transformers.IJepaConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=100,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-5,
    )
    if kind == "IJepaForImageClassification":
        model = transformers.IJepaForImageClassification(config)
        network = model.ijepa
    else:
        model = network = transformers.IJepaModel(config, add_pooling_layer=kind == "with a pooler")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.eval().save_pretrained(tmp_path / "theirs", max_shard_size="50KB" if shards else "1GB")
    assert (tmp_path / "theirs" / "model.safetensors").exists() is not shards
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, do_rescale=False, image_mean=[10.0, 20.0, 30.0], image_std=[51.0] * 3
    ).save_pretrained(tmp_path / "theirs")
    loaded = huggingface.load(tmp_path / "theirs")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (loaded.encoder(images) - network(images).last_hidden_state).abs().max() < 1e-5
    assert loaded.encoder.config.positions == "learned"
    assert (loaded.encoder.config.norm_eps, loaded.metadata["written_by"]) == (1e-5, "transformers")
    left_out = {"IJepaModel": [], "with a pooler": ["pooler.dense.bias", "pooler.dense.weight"]}
    expected = left_out.get(kind, ["classifier.bias", "classifier.weight"])
    assert loaded.metadata["ignored"] == expected
    # Values that were not scaled to [0, 1] are: the same numbers, in our convention.
    assert loaded.preprocessing["mean"] == pytest.approx((10 / 255, 20 / 255, 30 / 255))
    assert loaded.preprocessing["std"] == pytest.approx((0.2, 0.2, 0.2))


def test_a_fine_tuned_export_that_transformers_saves_again_is_read(small, tmp_path):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(small[1])
    with torch.no_grad():
        model.layernorm.weight.add_(1)
        model.embeddings.position_embeddings.add_(1)
    model.save_pretrained(tmp_path / "again")
    loaded = huggingface.load(tmp_path / "again")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert (loaded.encoder(images) - model(images).last_hidden_state).abs().max() < 1e-5
    assert loaded.encoder.config.positions == "learned"
    assert loaded.preprocessing["mean"] == (0.485, 0.456, 0.406)


def test_the_newer_names_are_read_and_half_precision_too(small):
    encoder, directory = small
    renamed = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        for old, new in (
            ("encoder.layer.", "layers."),
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            name = name.replace(old, new)
        renamed[name] = tensor.half()
    save_file(renamed, directory / "model.safetensors")
    loaded = huggingface.load(directory).encoder
    assert loaded.embed.weight.dtype == torch.float32
    for name, tensor in encoder.state_dict().items():
        assert (loaded.state_dict()[name] - tensor).abs().max() < 1e-3


def test_without_a_preprocessor_file_the_assumption_is_marked(tmp_path, small):
    directory = small[1]
    (directory / "preprocessor_config.json").unlink()
    config = json.loads((directory / "config.json").read_text())
    del config["openjepa"]
    (directory / "config.json").write_text(json.dumps(config))
    loaded = huggingface.load(directory)
    assert loaded.metadata["preprocessing_assumed"]
    assert loaded.preprocessing["std"] == (0.229, 0.224, 0.225)


def _edit(name, **changes):
    def change(directory: Path) -> None:
        content = json.loads((directory / name).read_text()) | changes
        (directory / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def _retensor(edit):
    def change(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors")

    return change


def _index(weight_map):
    def change(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


LAYER = "encoder.layer.1."
BROKEN = {
    "no config": (lambda d: (d / "config.json").unlink(), "holds no config.json"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "is not JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "a JSON object"),
    "another model": (_edit("config.json", model_type="dinov2"), "'dinov2' model"),
    "no model type": (_edit("config.json", model_type=None), "None model"),
    "another activation": (_edit("config.json", hidden_act="relu"), "'relu'"),
    "heads do not divide": (_edit("config.json", num_attention_heads=5), "5 heads"),
    "no whole number": (_edit("config.json", hidden_size="48"), "hidden_size"),
    "patch does not divide": (_edit("config.json", patch_size=7), "not positive multiples"),
    "fewer layers": (_edit("config.json", num_hidden_layers=1), rf"unexpected: {LAYER}"),
    "more layers": (_edit("config.json", num_hidden_layers=3), r"missing: encoder\.layer\.2"),
    "another image size": (_edit("config.json", image_size=64), "position table"),
    "more channels": (_edit("config.json", num_channels=4), "patch embedding"),
    "wider MLP": (
        _edit("config.json", intermediate_size=96),
        r"mlp\.0\.weight is \(192, 48\) and should be \(96, 48\)",
    ),
    "mean of another length": (_edit("preprocessor_config.json", image_mean=[0.5]), "1 values"),
    "no deviation": (_edit("preprocessor_config.json", image_std=[0.1, 0.0, 0.1]), "must be positive"),
    "unknown size": (_edit("preprocessor_config.json", do_center_crop=False, size={"longest_edge": 3}), "image size"),
    "missing tensor": (_retensor(lambda t: t.pop("layernorm.bias")), r"missing: layernorm\.bias"),
    "unknown tensor": (_retensor(lambda t: t.update(extra=torch.ones(1))), "unexpected: extra"),
    "wrong shape": (_retensor(lambda t: t.update({"layernorm.bias": torch.ones(3)})), "another shape"),
    "not finite": (_retensor(lambda t: t["layernorm.bias"].fill_(float("inf"))), "not finite"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
    "cut short": (lambda d: os.truncate(d / "model.safetensors", 999), "cannot be read as safetensors"),
    "garbage": (lambda d: (d / "model.safetensors").write_bytes(b"x" * 99), "cannot be read as safetensors"),
    "shard outside": (_index({"a": "../a.safetensors"}), "outside its folder"),
    "shard missing": (_index({"a": "a.safetensors"}), "is not there"),
    "no weight map": (_index(None), "weight_map"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_directory_that_is_not_an_encoder_is_refused(name, small):
    change, message = BROKEN[name]
    change(small[1])
    with pytest.raises(InputError, match=message):
        huggingface.load(small[1])


def test_no_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        huggingface.load(tmp_path / "absent")


def test_an_earlier_export_is_replaced_and_nothing_else_is_left(small):
    _, directory = small
    other = random_encoder(SMALL["grey, another epsilon"])
    huggingface.export(other, directory, preprocessing=facts_for(other.config), card={"name": "second"})
    assert huggingface.load(directory).encoder.config.channels == 1
    assert [entry.name for entry in directory.parent.iterdir()] == ["encoder"]
    files = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert {entry.name for entry in directory.iterdir()} == files
    modes = {(directory / name).stat().st_mode for name in files}
    assert len(modes) == 1, "safetensors' own files are for their owner alone"


def test_a_folder_of_somebody_else_is_not_replaced(small, tmp_path):
    encoder, directory = small
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"precious")
    (tmp_path / "file").write_text("precious")
    (directory / "notes.txt").write_text("precious")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "ijepa"}')
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for name in ("photos", "file", "encoder", "foreign"):
        with pytest.raises(InputError, match="will not write"):
            huggingface.export(encoder, tmp_path / name, preprocessing=facts_for(encoder.config))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    (tmp_path / "empty").mkdir()
    huggingface.export(encoder, tmp_path / "empty", preprocessing=facts_for(encoder.config))
    assert huggingface.load(tmp_path / "empty").encoder.config == encoder.config


def test_a_failed_export_leaves_the_earlier_one_whole(small, tmp_path, monkeypatch):
    encoder, directory = small
    before = {file.name: file.read_bytes() for file in directory.iterdir()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "save_file", full_disk)
    for name in ("encoder", "new"):
        with pytest.raises(InputError, match="No space left"):
            huggingface.export(encoder, tmp_path / name, preprocessing=facts_for(encoder.config))
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["encoder"]


def test_preprocessing_that_does_not_fit_is_refused(tmp_path):
    encoder = random_encoder(SMALL["square"])
    for facts in (Facts((32, 32), **GREY), Facts((32,)), Facts((32, 32), std=(0.0, 1.0, 1.0))):
        with pytest.raises(InputError, match="preprocessing"):
            huggingface.export(encoder, tmp_path / "encoder", preprocessing=facts)
    assert list(tmp_path.iterdir()) == []


def test_the_card_is_one_that_the_hub_reads(small):
    from huggingface_hub import ModelCard

    row = {
        "features": "trained encoder",
        "evaluator": "k-NN",
        "metric": "accuracy",
        "value": 0.8125,
        "low": 0.8,
        "high": 0.825,
    }
    facts = {"name": "Tiles: a test", "license": "apache-2.0", "training images": 60000, "evaluation": [row]}
    encoder, directory = small
    huggingface.export(encoder, directory, preprocessing=facts_for(encoder.config), card=facts)
    card = ModelCard.load(directory / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert "# Tiles: a test" in card.text
    assert "| classes | trained encoder | k-NN | accuracy | 0.812 | 0.800 to 0.825 |" in card.text
    assert "to test on" not in card.text  # nobody said of what the row is
    assert "| training images | 60000 |" in card.text
    assert "| LayerNorm epsilon | 1e-06 |" in card.text


def test_the_card_says_of_which_data_each_task_is():
    own = {"data": "tiles|blue", "train_images": 1200, "test_images": 300, "classes": 4}
    scenes = {"data": "drawn scenes", "train_images": 200, "test_images": 100}
    measured = {"features": "trained encoder", "evaluator": "k-NN", "metric": "accuracy", "value": 0.5}
    rows = [
        {"task": "classes"} | measured | own,
        {"task": "scenes: count"} | measured | scenes,
        {"task": "scenes: position"} | measured | scenes,
    ]
    config = EncoderConfig(signal=(24, 40), patch=(8, 8))
    facts = {"size": (24, 40), "channels": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    text = model_card(config, facts, {"evaluation": rows}, "")
    lines, table = text.split("## Measured")[1].strip().split("\n\n")[:2]
    assert lines.splitlines() == [
        "- classes: tiles\\|blue, 1,200 images to learn on, 300 to test on, 4 classes",
        "- scenes: drawn scenes, 200 images to learn on, 100 to test on",
    ]
    head, rule, *body = table.splitlines()
    assert head.startswith("| task | features |")
    assert [line.split(" | ")[0] for line in body] == ["| classes", "| scenes: count", "| scenes: position"]
    columns = len(head.split(" | "))
    assert rule.count("---") == columns
    assert all(len(line.split(" | ")) == columns for line in body)


def test_the_card_claims_no_licence_nor_numbers_that_nobody_gave():
    config = EncoderConfig(signal=(24, 40), patch=(8, 8))
    facts = {"size": (24, 40), "channels": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3, "assumed": True}
    text = model_card(config, facts, {}, "")
    assert "license" not in text
    assert "Measured" not in text
    assert "an assumption" in text
    assert "stretches" in text


def test_what_somebody_has_put_beside_an_encoder_stays_where_that_is_asked_for(small):
    encoder, directory = small
    kind = {"preprocessing": facts_for(encoder.config)}
    huggingface.export(encoder, directory, **kind)
    (directory / ".DS_Store").write_bytes(b"mac")
    (directory / ".cache").mkdir()
    (directory / ".cache" / "upload").write_text("half way")
    left = directory.parent / f".{directory.name}.0123abcd.part"
    left.mkdir()
    (directory / ".#README.md").symlink_to("nowhere")  # as Emacs makes while one edits
    os.mkfifo(directory / "pipe")
    old = directory.parent / f".{directory.name}.01234567.old"  # of a writer that was killed between two renames
    old.mkdir()
    (old / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(InputError, match=r"no part of an encoder \(\.#README\.md, \.DS_Store, \.cache, pipe\)"):
        huggingface.export(encoder, directory, **kind)
    with torch.no_grad():
        encoder.stack.blocks[0].norm1.weight.add_(1)
    huggingface.export(encoder, directory, **kind, keep_others=True)
    assert (directory / ".DS_Store").read_bytes() == b"mac"
    assert (directory / ".cache" / "upload").read_text() == "half way"
    assert (directory / "model.onnx").read_bytes() == b"onnx"
    assert (directory / ".#README.md").is_symlink()
    assert (directory / "pipe").exists()
    assert not left.exists()
    assert not old.exists()
    again = huggingface.load(directory).encoder
    assert torch.equal(again.stack.blocks[0].norm1.weight, encoder.stack.blocks[0].norm1.weight)
    assert "Renewed" in huggingface.renew_card(directory, {"name": "Renewed"}).read_text()
    assert huggingface.export(encoder, directory, **kind, keep_others=True) == []
    (directory / "config.json").write_text("{}")  # not ours any more
    with pytest.raises(InputError, match="not an encoder that openjepa has written"):
        huggingface.export(encoder, directory, **kind, keep_others=True)


def test_a_card_that_was_edited_and_weights_that_were_tuned_are_not_lost(small):
    from transformers import AutoModel

    encoder, directory = small
    kind = {"preprocessing": facts_for(encoder.config)}
    card = directory / "README.md"
    for own in (card.read_text().replace("I-JEPA", "My"), "# My own card, from nothing\n"):
        card.write_text(own)
        assert huggingface.renew_card(directory, {}) is None
        with pytest.raises(InputError, match=r"README\.md has been edited"):
            huggingface.export(encoder, directory, **kind)
        assert "README.md has been edited" in huggingface.export(encoder, directory, **kind, keep_others=True)[0]
        assert card.read_text() == own
    model = AutoModel.from_pretrained(directory)
    with torch.no_grad():
        model.layernorm.weight.add_(1)
    model.save_pretrained(directory)
    tuned = (directory / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="weights file is another than openjepa wrote"):
        huggingface.export(encoder, directory, **kind)
    said = huggingface.export(encoder, directory, **kind, keep_others=True)
    aside = directory.with_name("encoder-yours-1")
    assert str(aside) in said[0]
    assert (aside / "model.safetensors").read_bytes() == tuned
    assert (aside / "README.md").read_text() == own
    assert torch.equal(huggingface.load(directory).encoder.stack.norm.weight, encoder.stack.norm.weight)
    # Exports of versions that kept no record are replaced as they were.
    content = json.loads((directory / "config.json").read_text())
    del content["openjepa"]["weights_sha256"]
    (directory / "config.json").write_text(json.dumps(content))
    card.write_text("of an older version")
    (directory / "model.safetensors").write_bytes(tuned)
    assert huggingface.export(encoder, directory, **kind) == []
    assert "I-JEPA" in card.read_text()


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_a_card_is_renewed_without_the_weights(tmp_path, positions):
    config = EncoderConfig(signal=(24, 40), patch=(8, 8), channels=3, width=24, depth=1, heads=2, positions=positions)
    encoder = Encoder(config, generator=torch.Generator().manual_seed(0))
    huggingface.export(encoder, tmp_path / "encoder", preprocessing=facts_for(config), card={"name": "Its name"})
    before = (tmp_path / "encoder" / "README.md").read_text()
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"large")
    assert huggingface.renew_card(tmp_path / "encoder", {"name": "Its name"}).read_text() == before
    assert "Another" in huggingface.renew_card(tmp_path / "encoder", {"name": "Another"}).read_text()


@pytest.mark.parametrize(
    ("name", "method", "tag"),
    [("MAE encoder", "mae", "mae"), ("Of a denoising autoencoder", "denoising", "denoising-autoencoder")],
)
def test_the_card_names_the_method_and_the_class_token(name, method, tag):
    facts = {"size": (24, 40), "channels": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    card = {"name": name, "method": method}
    text = model_card(EncoderConfig(signal=(24, 40), patch=(8, 8), class_token=True), facts, card, "")
    assert f"\n# {name}\n" in text
    assert f"- {tag}\n" in text
    assert "i-jepa" not in text
    assert "| method |" not in text
    assert "= 15, a class token before them |" in text
    assert "no class token" in model_card(EncoderConfig(signal=(24, 40), patch=(8, 8)), facts, {}, "")
