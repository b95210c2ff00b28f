"""Published MAE checkpoints: the class token counts, the features are those of outside code, and files go both ways."""

import json

import pytest
import torch

import openjepa
from openjepa.cli import main
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.interop import mae

WIDTH, DEPTH, SIDE, PATCH = 48, 2, 4, 8


def sincos() -> torch.Tensor:
    """The published table: columns fill the first half, rows the second, each half sine then cosine."""
    omega = 10000.0 ** (-torch.arange(WIDTH // 4, dtype=torch.float64) / (WIDTH / 4))
    at = torch.arange(SIDE * SIDE)
    halves = [places[:, None] * omega for places in (at % SIDE, at // SIDE)]
    return torch.cat([wave for half in halves for wave in (half.sin(), half.cos())], 1).float()[None]


def published(*, class_token: bool = True, decoder: bool = True) -> dict:
    """A checkpoint's content with random weights, from the format's description."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=random)

    state = {"patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": draw(WIDTH)}
    table = sincos()
    if class_token:
        state["cls_token"] = draw(1, 1, WIDTH)
        table = torch.cat([torch.zeros(1, 1, WIDTH), table], 1)
    state["pos_embed"] = table
    for i in range(DEPTH):
        for name, shape in (
            ("norm1", (WIDTH,)), ("attn.qkv", (3 * WIDTH, WIDTH)), ("attn.proj", (WIDTH, WIDTH)),
            ("norm2", (WIDTH,)), ("mlp.fc1", (4 * WIDTH, WIDTH)), ("mlp.fc2", (WIDTH, 4 * WIDTH)),
        ):  # fmt: skip
            state[f"blocks.{i}.{name}.weight"] = draw(*shape) + (1 if len(shape) == 1 else 0)
            state[f"blocks.{i}.{name}.bias"] = draw(shape[0])
    state |= {"norm.weight": 1 + draw(WIDTH), "norm.bias": draw(WIDTH)}
    if decoder:
        state |= {"mask_token": draw(1, 1, 16), "decoder_embed.weight": draw(16, WIDTH), "decoder_embed.bias": draw(16)}
    return {"model": state}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_transformers(images):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=SIDE * PATCH, patch_size=PATCH, hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4,
        intermediate_size=4 * WIDTH, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    content = published()["model"]
    own = dict(theirs.named_parameters())
    taken = set()

    def put(name: str, value: torch.Tensor) -> None:
        (found,) = [key for key in own if key == name or key.endswith("." + name)]
        own[found].data.copy_(value)
        taken.add(found)

    newer = any(".q_proj." in name for name in own)
    put("embeddings.cls_token", content["cls_token"])
    put("embeddings.position_embeddings", content["pos_embed"])
    for kind in ("weight", "bias"):
        put(f"embeddings.patch_embeddings.projection.{kind}", content[f"patch_embed.proj.{kind}"])
        put(f"layernorm.{kind}", content[f"norm.{kind}"])
        for i in range(DEPTH):
            block, layer = f"blocks.{i}", f"layers.{i}" if newer else f"encoder.layer.{i}"
            q, k, v = content[f"{block}.attn.qkv.{kind}"].chunk(3)
            names = (
                (("attention.q_proj", q), ("attention.k_proj", k), ("attention.v_proj", v), ("attention.o_proj", None),
                 ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"))
                if newer else
                (("attention.attention.query", q), ("attention.attention.key", k), ("attention.attention.value", v),
                 ("attention.output.dense", None), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"))
            )  # fmt: skip
            for name, value in names:
                value = "attn.proj" if value is None else value
                tensor = content[f"{block}.{value}.{kind}"] if isinstance(value, str) else value
                (full,) = [key for key in own if key.endswith(f"{layer}.{name}.{kind}")]
                own[full].data.copy_(tensor)
                taken.add(full)
            put(f"{layer}.layernorm_before.{kind}", content[f"{block}.norm1.{kind}"])
            put(f"{layer}.layernorm_after.{kind}", content[f"{block}.norm2.{kind}"])
    assert taken == set(own)
    encoder, left = mae.parse({"model": content}, heads=4)
    assert set(left) == {"mask_token", "decoder_embed.weight", "decoder_embed.bias"}
    with torch.no_grad():
        wanted = theirs(images).last_hidden_state[:, 1:]
        torch.testing.assert_close(encoder(images), wanted, rtol=1e-5, atol=1e-5)
        kept = encoder(images, torch.tensor([[3, 9]] * 3))
    assert kept.shape == (3, 2, WIDTH)


def test_features_and_files_are_those_of_timm(images, tmp_path):
    timm = pytest.importorskip("timm")
    for class_token in (True, False):
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=SIDE * PATCH, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=4, num_classes=0,
            class_token=class_token, global_pool="avg" if not class_token else "token", fc_norm=False,
        ).eval()  # fmt: skip
        encoder, _ = mae.parse(published(class_token=class_token), heads=4)
        path = tmp_path / f"{class_token}.pth"
        mae.write(encoder, path)
        model.load_state_dict(torch.load(path, weights_only=True)["model"], strict=True)
        with torch.no_grad():
            wanted = model.forward_features(images)[:, int(class_token) :]
            torch.testing.assert_close(encoder(images), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("class_token", [True, False])
def test_a_file_written_is_the_file_read(class_token, images, tmp_path):
    content = published(class_token=class_token, decoder=False)
    first, left = mae.parse(content, heads=4)
    assert left == ()
    assert first.config.class_token is class_token
    assert first.config.positions == "sincos"
    mae.write(first, tmp_path / "out.pth")
    written = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert set(written) == set(content["model"])
    for name, tensor in content["model"].items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=1e-5)
    again, _ = mae.read(tmp_path / "out.pth", heads=4)
    assert torch.equal(again(images), first(images))
    with pytest.raises(InputError, match="will not overwrite"):
        mae.write(first, tmp_path / "out.pth")


def test_import_writes_an_encoder_that_loads_with_its_class_token(images, tmp_path, capsys):
    torch.save(published(), tmp_path / "mae.pth")
    with pytest.raises(SystemExit) as end:
        main(["import", str(tmp_path / "mae.pth"), "--out", str(tmp_path / "mae"), "--num-heads", "4"])
    assert end.value.code == 0
    assert "class token: kept" in capsys.readouterr().out
    wanted, _ = mae.read(tmp_path / "mae.pth", heads=4)
    found = openjepa.load(tmp_path / "mae").encoder
    assert torch.equal(found(images), wanted(images))
    config = json.loads((tmp_path / "mae" / "encoder" / "config.json").read_text())
    assert config["architectures"] == ["Encoder"]  # no IJepaModel, which has no class token
    assert "class token" in (tmp_path / "mae" / "encoder" / "README.md").read_text()


def test_what_is_no_mae_is_told(tmp_path):
    content = published()
    del content["model"]["norm.weight"]
    with pytest.raises(InputError, match=r"missing: norm\.weight"):
        mae.parse(content, heads=4)
    with pytest.raises(InputError, match="--num-heads"):
        mae.parse(published())
    oblong = Encoder(EncoderConfig(signal=(32, 16), patch=(8, 8), width=48, depth=1, heads=4))
    with pytest.raises(InputError, match="square images"):
        mae.write(oblong, tmp_path / "oblong.pth")


def test_a_class_token_is_seen_by_all_and_is_no_feature(images):
    config = EncoderConfig(signal=(32, 32), patch=(8, 8), width=48, depth=2, heads=4, class_token=True)
    encoder = Encoder(config, generator=torch.Generator().manual_seed(0)).eval()
    before = encoder(images)
    assert before.shape == (3, 16, 48)
    torch.testing.assert_close(encoder.stack.norm(encoder.depths(images)[-1]), before)
    packed = torch.tensor([0, 1, 3, 4, 6, 7])
    padded = encoder(images, torch.tensor([[1, 2, 0]] * 3), packed)[:, :2]
    torch.testing.assert_close(padded, encoder(images, torch.tensor([[1, 2]] * 3)))
    with torch.no_grad():
        encoder.class_token[..., 0] += 1  # the same for all would be taken out by every LayerNorm
    assert not torch.allclose(encoder(images), before)
