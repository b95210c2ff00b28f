"""Published checkpoints: every published shape is understood, round trips are exact, and nothing is taken on trust."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.grid import take
from openjepa.interop import meta
from openjepa.objectives.ijepa import IJEPA

SHAPES = ("size", "patch", "width", "depth", "hidden", "predictor_width", "predictor_depth")
# The published architectures at full depth, and their heads; g's MLP is 48/11 of its width, as in ViT-g (Zhai et al.
# 2022).
FULL = {
    "Ti/16": ((224, 16, 192, 12, 768, 384, 6), 3),
    "S/16": ((224, 16, 384, 12, 1536, 384, 6), 6),
    "B/16": ((224, 16, 768, 12, 3072, 384, 6), 12),
    "L/16": ((224, 16, 1024, 24, 4096, 384, 12), 16),
    "H/14": ((224, 14, 1280, 32, 5120, 384, 12), 16),
    "H/16-448": ((448, 16, 1280, 32, 5120, 384, 12), 16),
    "g/16": ((224, 16, 1408, 40, 6144, 384, 16), 16),
    "g/16, ratio 4": ((224, 16, 1408, 40, 5632, 384, 16), 16),
}


@pytest.mark.parametrize(("name", "prefix"), zip(FULL, ["module.", ""] * 4, strict=True))
def test_full_published_architectures_are_inferred_and_every_tensor_is_placed(name, prefix, make, published):
    shapes, heads = dict(zip(SHAPES, FULL[name][0], strict=True)), FULL[name][1]
    content = make(published(**shapes), prefix=prefix, device="meta")
    checkpoint = meta.parse(content)
    config, narrow = checkpoint.encoder_config, checkpoint.predictor_config
    assert config.signal == (shapes["size"],) * 2
    assert config.patch == (shapes["patch"],) * 2
    assert (config.width, config.depth, config.heads) == (shapes["width"], shapes["depth"], heads)
    assert int(config.width * config.mlp_ratio) == shapes["hidden"]
    assert (config.norm_eps, config.qkv_bias, config.positions, config.channels) == (1e-6, True, "sincos", 3)
    assert (narrow.width, narrow.depth, narrow.heads) == (shapes["predictor_width"], shapes["predictor_depth"], heads)
    ijepa = checkpoint.to_ijepa(copy=False)
    tables = {f"{prefix}pos_embed", f"{prefix}predictor_pos_embed"}
    for network, section in (
        (ijepa.context_encoder, "encoder"),
        (ijepa.target_encoder, "target_encoder"),
        (ijepa.predictor, "predictor"),
    ):
        there = sum(tensor.numel() for key, tensor in content[section].items() if key not in tables)
        assert sum(tensor.numel() for tensor in network.parameters()) == there
    assert checkpoint.epoch == 300
    assert set(checkpoint.ignored) == {"opt", "scaler"}


SHALLOW = {"H/14": (224, 14, 1280, 1, 5120, 384, 1), "g/16": (224, 16, 1408, 1, 6144, 384, 1)}


@pytest.mark.parametrize("name", SHALLOW)
def test_a_checkpoint_of_published_width_comes_back_bit_for_bit(name, make, published, save, tmp_path):
    content = make(published(**dict(zip(SHAPES, SHALLOW[name], strict=True))))
    ijepa = meta.read(save(content)).to_ijepa()
    meta.write(ijepa, tmp_path / "back.pth.tar", epoch=300)
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    assert back["epoch"] == 300
    for section in ("encoder", "target_encoder", "predictor"):
        assert list(back[section]) == list(content[section])
        for key, tensor in content[section].items():
            # The table is computed anew; it may differ in the last bit of float32.
            limit = 2e-7 if key.endswith("pos_embed") else 0.0
            assert (back[section][key] - tensor).abs().max() <= limit, key


def test_networks_do_not_share_memory_with_the_file_or_each_other(make, published, save):
    path = save(make(published()))
    ijepa = meta.read(path, heads=3).to_ijepa()
    before = ijepa.target_encoder.embed.weight.clone()
    with torch.no_grad():
        ijepa.context_encoder.embed.weight.zero_()
    os.truncate(path, 0)  # a mapped file would crash the process here
    assert torch.equal(ijepa.target_encoder.embed.weight, before)
    assert not any(p.requires_grad for p in ijepa.target_encoder.parameters())
    assert all(p.requires_grad for p in ijepa.context_encoder.parameters())


def test_a_checkpoint_saved_on_a_gpu_is_read_without_one(make, published, save, tmp_path):
    path = save(make(published()))
    with zipfile.ZipFile(path) as there, zipfile.ZipFile(tmp_path / "gpu.pth.tar", "w") as gpu:
        for record in there.namelist():
            # Where each tensor was, as the pickle spells it: a string of 3 letters becomes one of 6.
            content = there.read(record)
            if record.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            gpu.writestr(record, content)
    expected, found = (meta.read(file, heads=3).to_ijepa().state_dict() for file in (path, tmp_path / "gpu.pth.tar"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_learned_table_is_kept_as_it_is(make, published, save, tmp_path):
    table = torch.randn(1, 16, 48)
    content = make(published(), table=table)
    checkpoint = meta.read(save(content), heads=3)
    assert checkpoint.encoder_config.positions == "learned"
    ijepa = checkpoint.to_ijepa()
    assert torch.equal(ijepa.target_encoder.table, table[0])
    meta.write(ijepa, tmp_path / "back.pth.tar")
    assert torch.equal(torch.load(tmp_path / "back.pth.tar", weights_only=True)["encoder"]["module.pos_embed"], table)


def test_the_recorded_step_is_reproduced(trace):
    ijepa = meta.read(trace / "start.pth.tar", heads=3).to_ijepa().eval()
    batches, recorded = np.load(trace / "batches.npz"), np.load(trace / "step0.npz")
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    images = (torch.from_numpy(batches["images_uint8"][0]).float() / 255 - mean) / std
    context_at = torch.from_numpy(batches["context_0"]).long()[0]
    target_at = torch.from_numpy(batches["target_0"]).long().transpose(0, 1)
    with torch.no_grad():
        context = ijepa.context_encoder(images, context_at)
        found = {
            "context": context,
            "target_full": ijepa.target_encoder(images),
            "targets": take(ijepa.targets(images), target_at).transpose(0, 1).flatten(0, 1),
            "prediction": ijepa.predictor(context, context_at, target_at).transpose(0, 1).flatten(0, 1),
        }
    for name, values in found.items():
        assert np.abs(values.numpy() - recorded[name]).max() < 1e-5, name


@pytest.mark.parametrize("name", ["start.pth.tar", "end.pth.tar"])
def test_recorded_checkpoints_come_back_exactly(name, trace, tmp_path):
    content = torch.load(trace / name, weights_only=True)
    meta.write(meta.read(trace / name, heads=3).to_ijepa(), tmp_path / "back.pth.tar")
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    for section in ("encoder", "target_encoder", "predictor"):
        assert list(back[section]) == list(content[section])
        for key, tensor in content[section].items():
            # The target's table is an average of equal tables in the trace, and carries that rounding.
            limit = 5e-7 if key.endswith("pos_embed") else 0.0
            assert (back[section][key] - tensor).abs().max() <= limit, key


def test_tables_that_rounding_has_worn_are_kept_for_both_encoders(make, published, save):
    content = make(published())
    content["target_encoder"]["module.pos_embed"] += 3e-5
    checkpoint = meta.read(save(content), heads=3)
    assert checkpoint.encoder_config.positions == "learned"
    ijepa = checkpoint.to_ijepa()
    assert torch.equal(ijepa.target_encoder.table, content["target_encoder"]["module.pos_embed"][0])
    assert torch.equal(ijepa.context_encoder.table, content["encoder"]["module.pos_embed"][0])


def test_networks_without_qkv_bias_and_in_half_precision(make, published, save):
    content = make(published(qkv_bias=False))
    content["encoder"] = {key: tensor.half() for key, tensor in content["encoder"].items()}
    content["target_encoder"] = dict(content["encoder"])
    content["encoder"]["module.pos_embed"] = content["target_encoder"]["module.pos_embed"] = make(published())[
        "encoder"
    ]["module.pos_embed"]
    checkpoint = meta.read(save(content), heads=3)
    assert not checkpoint.encoder_config.qkv_bias
    assert checkpoint.to_ijepa().target_encoder.embed.weight.dtype == torch.float32


def test_heads_come_from_the_argument_where_no_published_width_tells(make, published, save):
    path = save(make(published()))
    with pytest.raises(InputError, match="--num-heads"):
        meta.read(path)
    checkpoint = meta.read(path, heads=6, predictor_heads=2)
    assert (checkpoint.encoder_config.heads, checkpoint.predictor_config.heads) == (6, 2)
    with pytest.raises(InputError, match="5 attention heads do not divide the width 48"):
        meta.read(path, heads=5)
    with pytest.raises(InputError, match=r"16 attention heads do not divide the width 24.*--predictor-heads"):
        meta.read(path, heads=16)


def _without(content, section, key):
    return content | {section: {name: tensor for name, tensor in content[section].items() if name != key}}


def _with(content, section, key, value):
    return content | {section: content[section] | {key: value}}


BROKEN = {
    "no predictor": (lambda c: {k: v for k, v in c.items() if k != "predictor"}, r"no `predictor` weights"),
    "a tensor is missing": (
        lambda c: _without(c, "encoder", "module.blocks.1.attn.qkv.bias"),
        r"missing: blocks\.1\.attn\.qkv\.bias",
    ),
    "a block is missing": (
        lambda c: c | {"encoder": {k: v for k, v in c["encoder"].items() if "blocks.1." not in k}},
        "two encoders of different shape",
    ),
    "a tensor too many": (
        lambda c: _with(c, "predictor", "module.cls_token", torch.zeros(1)),
        r"unexpected: cls_token",
    ),
    "a wrong shape": (
        lambda c: _with(c, "target_encoder", "module.norm.weight", torch.zeros(47)),
        r"stack\.norm\.weight is \(47,\) and should be \(48,\)",
    ),
    "not finite": (
        lambda c: _with(c, "encoder", "module.norm.bias", torch.full((48,), float("nan"))),
        r"not finite numbers: stack\.norm\.bias",
    ),
    "a class token": (
        lambda c: _with(c, "target_encoder", "module.pos_embed", torch.zeros(1, 17, 48)),
        "without class token",
    ),
    "a clip's patches": (
        lambda c: _with(c, "target_encoder", "module.patch_embed.proj.weight", torch.zeros(48, 3, 2, 8, 8)),
        "should have 4 axes",
    ),
    "another predictor table": (
        lambda c: _with(c, "predictor", "module.predictor_pos_embed", torch.zeros(1, 16, 24)),
        "not the fixed sine-cosine one",
    ),
    "not tensors": (lambda c: _with(c, "encoder", "module.norm.bias", [1.0]), "weights only"),
    "both prefixes": (lambda c: _with(c, "encoder", "norm.bias", torch.zeros(48)), "both with and without"),
    "a list": (lambda c: [1, 2], "should hold a mapping"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_a_whole_checkpoint_is_refused_by_name(name, make, published, save):
    change, message = BROKEN[name]
    path = save(change(make(published())))
    with pytest.raises(InputError, match=message) as refusal:
        meta.read(path, heads=3)
    assert str(path) in str(refusal.value)


def test_unreadable_files_are_refused(tmp_path, make, published, save):
    with pytest.raises(InputError, match="cannot read"):
        meta.read(tmp_path / "absent.pth.tar")
    (tmp_path / "text.pth.tar").write_text("not weights")
    with pytest.raises(InputError, match="no PyTorch file"):
        meta.read(tmp_path / "text.pth.tar")
    path = save(make(published()))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="cut short"):
        meta.read(path)
    torch.save(make(published()), tmp_path / "legacy.pth.tar", _use_new_zipfile_serialization=False)
    assert meta.read(tmp_path / "legacy.pth.tar", heads=3).epoch == 300
    os.truncate(tmp_path / "legacy.pth.tar", 5000)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        meta.read(tmp_path / "legacy.pth.tar", heads=3)


class _Runs:
    """What an attacker pickles: unpickling it makes a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_does_not_run(tmp_path, make, published, save):
    target = tmp_path / "it-ran"
    for legacy in (False, True):
        path = tmp_path / f"evil{legacy}.pth.tar"
        torch.save(
            make(published()) | {"opt": _Runs(target)},
            path,
            pickle_module=pickle,
            _use_new_zipfile_serialization=not legacy,
        )
        with pytest.raises(InputError, match="plain weights"):
            meta.read(path, heads=3)
    assert not target.exists()


def test_writing_refuses_what_the_format_cannot_hold(make, published, save, tmp_path):
    narrow = PredictorConfig(width=12, depth=1, heads=3)
    oblong = EncoderConfig(signal=(16, 32), patch=(8, 8), width=24, depth=1, heads=3)
    with pytest.raises(InputError, match="square images"):
        meta.write(IJEPA(oblong, narrow), tmp_path / "a.pth.tar")
    other = EncoderConfig(signal=(16, 16), patch=(8, 8), width=24, depth=1, heads=3, norm_eps=1e-5)
    with pytest.raises(InputError, match="epsilon"):
        meta.write(IJEPA(other, narrow), tmp_path / "a.pth.tar")
    token = EncoderConfig(signal=(16, 16), patch=(8, 8), width=24, depth=1, heads=3, class_token=True)
    with pytest.raises(InputError, match="no place for a class token"):
        meta.write(IJEPA(token, narrow), tmp_path / "a.pth.tar")
    path = save(make(published()))
    with pytest.raises(InputError, match="will not overwrite"):
        meta.write(meta.read(path, heads=3).to_ijepa(), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pth.tar"]


def test_an_objective_of_ours_goes_out_and_comes_back(tmp_path):
    config = EncoderConfig(signal=(28, 28), patch=(4, 4), channels=1, width=24, depth=2, heads=2, mlp_ratio=3.7)
    ours = IJEPA(config, PredictorConfig(width=12, depth=1, heads=3))
    meta.write(ours, tmp_path / "ours.pth.tar", prefix="")
    back = meta.read(tmp_path / "ours.pth.tar", heads=2, predictor_heads=3).to_ijepa()
    assert back.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(back.representation(images), ours.representation(images))
