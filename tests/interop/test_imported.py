"""An imported checkpoint keeps both encoders and the predictor, in a folder that is whole or not there."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.grid import TokenGrid
from openjepa.interop import huggingface, imported, meta
from openjepa.masking import MultiBlockMasking
from openjepa.masks import Masks
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[1][k], v) for k, v in states[0].items())


def test_import_keeps_all_three_networks(make, published, save, tmp_path):
    from transformers import AutoImageProcessor, AutoModel

    path = save(make(published(size=224, patch=14, width=1280, depth=1, hidden=5120, predictor_width=384)))
    facts = imported.import_checkpoint(path, tmp_path / "out")
    expected = meta.read(path).to_ijepa()
    ijepa = imported.load_objective(tmp_path / "out")
    assert same(ijepa, expected)
    assert not any(p.requires_grad for p in ijepa.target_encoder.parameters())
    assert (facts["encoder"]["heads"], facts["predictor"]["heads"], facts["grid"]) == (16, 16, [16, 16])
    assert facts["parameters"]["encoder"] == sum(p.numel() for p in ijepa.target_encoder.parameters())
    assert facts["training"]["epoch"] == 300
    images = torch.randn(1, 3, 224, 224)
    model = AutoModel.from_pretrained(tmp_path / "out" / "encoder")
    with torch.no_grad():
        assert (model(images).last_hidden_state - expected.representation(images)).abs().max() < 1e-5
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out" / "encoder")
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406)
    assert huggingface.load(tmp_path / "out" / "encoder").metadata["preprocessing_assumed"]


def test_the_imported_trace_gives_the_recorded_first_loss(trace, tmp_path):
    facts = imported.import_checkpoint(trace / "start.pth.tar", tmp_path / "out", heads=3)
    assert facts["heads"] == "given"
    ijepa = imported.load_objective(tmp_path / "out")
    batches = np.load(trace / "batches.npz")
    recorded = json.loads((trace / "trace.json").read_text())["steps"][0]["loss"]
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    images = (torch.from_numpy(batches["images_uint8"][0]).float() / 255 - mean) / std
    masks = Masks(
        torch.from_numpy(batches["context_0"]).long()[0], torch.from_numpy(batches["target_0"]).long().transpose(0, 1)
    )
    assert ijepa(images, masks).loss.item() == pytest.approx(recorded, rel=1e-6)


def test_an_objective_of_any_shape_is_kept(tmp_path):
    config = EncoderConfig(signal=(4, 16, 24), patch=(2, 8, 8), channels=2, width=24, depth=1, heads=2)
    ijepa = IJEPA(config, PredictorConfig(width=18, depth=1, heads=3, mlp_ratio=2.0, norm_eps=1e-5))
    facts = {"size": (4, 16, 24), "channels": 2, "mean": (0.5, 0.5), "std": (0.2, 0.2)}
    imported.save_objective(ijepa, tmp_path / "out", preprocessing=facts, card={"license": "mit"})
    back = imported.load_objective(tmp_path / "out", IJEPAConfig(loss="l2"))
    assert same(back, ijepa)
    assert back.config.loss == "l2"
    assert back.predictor.config == ijepa.predictor.config
    assert back.context_encoder.config == config


FACTS = {"size": (16, 16), "channels": 1, "mean": (0.5,), "std": (0.2,)}


def small(config: IJEPAConfig, depth: int = 3) -> IJEPA:
    encoder = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=8, depth=depth, heads=2)
    return IJEPA(encoder, PredictorConfig(width=8, depth=1, heads=2), config)


@pytest.mark.parametrize(
    "config",
    [
        IJEPAConfig(target_depths=(1, 2)),
        IJEPAConfig(loss="l1", target_norm="feature", momentum=(0.9, 1.0), variance_covariance=0.01),
    ],
)
def test_the_settings_of_an_objective_are_kept_and_used(config, tmp_path):
    ijepa = small(config)
    imported.save_objective(ijepa, tmp_path / "out", preprocessing=FACTS)
    back = imported.load_objective(tmp_path / "out")
    assert back.config == config
    x, masks = torch.randn(2, 1, 16, 16), MultiBlockMasking(TokenGrid((4, 4)))(np.arange(2), 0)
    assert torch.equal(back(x, masks).loss, ijepa(x, masks).loss)


def test_a_folder_without_settings_is_read_as_before_and_unusable_ones_are_named(tmp_path, as_in_use):
    imported.save_objective(small(IJEPAConfig(loss="l1")), tmp_path / "out", preprocessing=FACTS)
    file = tmp_path / "out" / "ijepa.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in content.items() if name != "ijepa"}))
    assert imported.load_objective(tmp_path / "out").config == IJEPAConfig()
    for wrong, said in (
        ({"momentum": [0.9]}, "momentum"),
        ({"temperature": 1}, "temperature"),
        ({"target_depths": [7]}, "the encoder's depth of 3, got 7"),
    ):
        file.write_text(json.dumps(content | {"ijepa": wrong}))
        with pytest.raises(InputError, match=rf"ijepa.json.*{said}"):
            imported.load_objective(tmp_path / "out")
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="tensors of another shape"):
        imported.load_objective(tmp_path / "out", IJEPAConfig(target_depths=(1, 2)))


def test_an_encoder_without_blocks_comes_back(tmp_path):
    ijepa = small(IJEPAConfig(), depth=0)
    imported.save_objective(ijepa, tmp_path / "out", preprocessing=FACTS)
    back = imported.load_objective(tmp_path / "out")
    assert same(back, ijepa)
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(back.representation(x), ijepa.representation(x))


def test_the_published_format_holds_no_predictor_of_several_layers(tmp_path):
    with pytest.raises(InputError, match=r"of one layer, and this one predicts 2 \(target_depths \(1, 2\)\)"):
        meta.write(small(IJEPAConfig(target_depths=(1, 2))), tmp_path / "out.pth.tar")


def test_a_learned_table_survives_the_folder(make, published, save, tmp_path):
    table = torch.randn(1, 16, 48)
    path = save(make(published(), table=table))
    imported.import_checkpoint(path, tmp_path / "out", heads=3)
    back = imported.load_objective(tmp_path / "out")
    assert torch.equal(back.target_encoder.table, table[0])
    assert back.target_encoder.config.positions == "learned"


def test_an_existing_folder_is_left_alone(make, published, save, tmp_path):
    path = save(make(published()))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="it exists already"):
        imported.import_checkpoint(path, tmp_path / "out", heads=3)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_refused_checkpoint_leaves_no_folder(make, published, save, tmp_path):
    path = save(make(published()) | {"predictor": {}})
    with pytest.raises(InputError, match="no `predictor`"):
        imported.import_checkpoint(path, tmp_path / "deep" / "out", heads=3)
    assert not list((tmp_path / "deep").iterdir())


def test_a_run_that_blew_up_can_be_imported(make, published, save, tmp_path):
    path = save(make(published()) | {"loss": float("nan")})
    facts = imported.import_checkpoint(path, tmp_path / "out", heads=3)
    assert facts["training"]["loss"] == "nan"


def test_a_folder_that_is_not_whole_is_refused(make, published, save, tmp_path):
    out = tmp_path / "out"
    imported.import_checkpoint(save(make(published())), out, heads=3)
    with pytest.raises(InputError, match=r"no ijepa\.json"):
        imported.load_objective(out / "encoder")
    configs = json.loads((out / "ijepa.json").read_text())
    for broken, message in (
        ({}, "should hold width"),
        (configs["predictor"] | {"depth": "1"}, "depth"),
        (configs["predictor"] | {"heads": 5}, "multiple of its number of heads"),
    ):
        (out / "ijepa.json").write_text(json.dumps(configs | {"predictor": broken}))
        with pytest.raises(InputError, match=message):
            imported.load_objective(out)
    (out / "ijepa.json").write_text(json.dumps(configs))
    tensors = load_file(out / "predictor.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "mask_token"}, out / "predictor.safetensors")
    with pytest.raises(InputError, match="missing: mask_token"):
        imported.load_objective(out)
    (out / "predictor.safetensors").unlink()
    with pytest.raises(InputError, match="is not there"):
        imported.load_objective(out)
