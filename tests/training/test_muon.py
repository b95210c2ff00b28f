"""Muon beside PyTorch's, its Newton-Schulz iterations beside a singular value decomposition, and who moves what."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.objectives.ijepa import IJEPA
from openjepa.training.muon import Muon, _exact_products, orthogonalised
from openjepa.training.optimizer import OptimizerConfig, build_optimizers
from openjepa.transformer import Block


@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (48, 48)])
def test_a_step_is_the_one_of_pytorch(shape):
    draws = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape, generator=draws))
    theirs = torch.nn.Parameter(ours.detach().clone())
    muon = Muon([ours], lr=1e-2, weight_decay=0.1, bf16=True)
    peer = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=draws)
        theirs.grad = ours.grad.clone()
        muon.step()
        peer.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)  # a tenth of a step's update, of 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (40, 40)])
def test_directions_stay_and_are_made_equally_large(shape, dtype):
    draws = torch.Generator().manual_seed(1)
    count = min(shape)
    left, right = (torch.linalg.qr(torch.randn(size, count, generator=draws))[0] for size in shape)
    matrix = left @ torch.diag(torch.linspace(0.05, 1, count) * 100) @ right.T
    within = left.T @ orthogonalised(matrix[None], 5, dtype)[0] @ right
    assert within.dtype == torch.float32
    assert 0.6 < within.diagonal().min() < within.diagonal().max() < 1.25
    assert (within - torch.diag(within.diagonal())).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)


def _with_values(shape, values):
    draws = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(size, len(values), generator=draws))[0] for size in shape)
    return left @ torch.diag(values) @ right.T


@pytest.mark.parametrize("iterations", [1, 2, 5, 6, 8])
@pytest.mark.parametrize("shape", [(200, 40), (40, 200), (64, 40)])
@pytest.mark.parametrize("values", [torch.ones(3), torch.logspace(0, -8, 40), torch.linspace(1, 0, 40)])
def test_in_float32_long_matrices_have_what_float64_has(shape, iterations, values):
    matrix = _with_values(shape, values)[None]
    exact = orthogonalised(matrix.double(), iterations, torch.float64)
    found = orthogonalised(matrix, iterations, torch.float32)
    assert (found - exact).norm() < 1e-3 * exact.norm()
    assert torch.linalg.matrix_norm(orthogonalised(matrix, 40, torch.float32), 2) < 1.25  # whose errors begin anew


def test_of_a_single_direction_the_error_is_small_beside_what_an_iteration_leaves_open():
    matrix = _with_values((192, 768), torch.ones(1))[None]  # float32 has 1e-7 of it in 191 others
    exact = orthogonalised(matrix.double(), 5, torch.float64)
    assert (orthogonalised(matrix, 5, torch.float32) - exact).norm() < 5e-3 * exact.norm()


@pytest.mark.parametrize(
    ("device", "backend"), [("cpu", torch.backends.mkldnn.matmul), ("cuda", torch.backends.cuda.matmul)]
)
def test_products_of_a_device_are_not_exact_where_it_was_told_to_take_less(device, backend, monkeypatch):
    device = torch.device(device)
    assert _exact_products(device)
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        assert not _exact_products(device)
    finally:
        backend.fp32_precision = before
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", "BF16")
    assert _exact_products(device) == (device.type == "cuda")
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", "strict")
    assert _exact_products(device)
    assert not _exact_products(torch.device("mps"))


def _flops(matrices):
    with FlopCounterMode(display=False) as counter:
        orthogonalised(matrices, 5, torch.float32)
    return counter.get_total_flops()


def test_long_matrices_cost_less_where_float32_is_float32():
    long, square = torch.randn(1, 32, 128), torch.randn(1, 32, 32)
    unit = 2 * 32**3
    assert _flops(square) == 3 * 5 * unit
    assert _flops(long) == _flops(long.mT) == (2 * 4 + 17) * unit
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert _flops(long) == (2 * 4 + 1) * 5 * unit
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert _flops(long) == (2 * 4 + 17) * unit


def test_parts_of_a_matrix_are_made_equally_large_apart():
    draws = torch.Generator().manual_seed(2)
    gradients = [torch.randn(16, 16, generator=draws) * size for size in (1, 100, 1e-3, 2, 1e-20, 7)]
    each = [torch.nn.Parameter(torch.zeros(16, 16)) for _ in gradients]
    joint = [torch.nn.Parameter(torch.zeros(48, 16)) for _ in range(2)]
    for place, whole in enumerate(joint):
        whole.grad = torch.cat(gradients[3 * place : 3 * place + 3])
    for part, gradient in zip(each, gradients, strict=True):
        part.grad = gradient
    for groups in ([{"params": each}], [{"params": joint, "parts": 3}]):
        Muon(groups, lr=1.0, weight_decay=0.0).step()
    torch.testing.assert_close(torch.cat(joint), torch.cat(each), rtol=0, atol=1e-6)
    for part in each[:4] + each[5:]:
        assert part.detach().norm() == pytest.approx(each[0].detach().norm().item(), rel=0.1)


def test_nothing_moves_nothing():
    assert torch.equal(orthogonalised(torch.zeros(2, 8, 4), 5, torch.bfloat16), torch.zeros(2, 8, 4))
    still = torch.nn.Parameter(torch.ones(8, 4))
    muon = Muon([still], lr=1.0, weight_decay=0.0)
    muon.step()  # no gradient
    still.grad = torch.zeros(8, 4)
    muon.step()
    assert torch.equal(still, torch.ones(8, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-12, 1e-22, 1e-24, 1e-30, 1e-38])
def test_gradients_that_fade_away_do_no_harm(size, dtype):
    faded = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(0)) * size
    assert orthogonalised(faded, 5, dtype).norm(dim=(1, 2)).max() < 1.25 * 8**0.5


def test_many_matrices_are_moved_some_at_a_time(monkeypatch):
    def moved():
        draws = torch.Generator().manual_seed(0)
        own = [torch.nn.Parameter(torch.randn(8, 4, generator=draws)) for _ in range(5)]
        for matrix in own:
            matrix.grad = torch.randn(8, 4, generator=draws)
        Muon(own, lr=0.1, weight_decay=0.1).step()
        return torch.stack(own)

    together = moved()
    stacks = []

    def noted(matrices, *rest):
        stacks.append(len(matrices))
        return orthogonalised(matrices, *rest)

    monkeypatch.setattr("openjepa.training.muon.orthogonalised", noted)
    for room, expected in ((64, [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr("openjepa.training.muon._TOGETHER", room)
        stacks.clear()
        torch.testing.assert_close(moved(), together, rtol=0, atol=1e-7)
        assert stacks == expected


def test_a_closure_is_called_with_gradients_and_its_loss_comes_back():
    moved = torch.nn.Parameter(torch.eye(4))

    def closure():
        loss = (moved * 3).sum()
        loss.backward()
        return loss

    assert Muon([moved], lr=0.1, weight_decay=0.0).step(closure).item() == 12
    assert (moved.detach() < torch.eye(4)).any()


def test_weights_decay_and_a_step_is_as_large_as_adamws():
    moved = torch.nn.Parameter(torch.zeros(64, 256))
    muon = Muon([moved], lr=0.5, weight_decay=0.1)
    moved.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    muon.step()
    assert moved.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.5, rel=0.2)
    before, moved.grad = moved.detach().clone(), torch.zeros(64, 256)
    muon.state.clear()
    muon.step()
    torch.testing.assert_close(moved.detach(), before * 0.95)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_else():
    encoder = EncoderConfig(signal=(8, 8), patch=(4, 4), width=16, depth=2, heads=2)
    objective = IJEPA(encoder, PredictorConfig(width=8, depth=1, heads=2))
    names = {id(parameter): name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    adamw, muon = build_optimizers(objective, OptimizerConfig(matrices="muon"))
    assert [len(group["params"]) for group in muon.param_groups if group["parts"] == 3] == [3]  # queries, keys, values
    own = [[names.pop(id(p)) for group in each.param_groups for p in group["params"]] for each in (adamw, muon)]
    assert not names  # each is moved by one of them, once
    assert len(own[1]) == 3 * 4
    assert all(".blocks." in name and name.endswith("weight") for name in own[1])
    assert {"context_encoder.embed.weight", "predictor.embed.weight", "predictor.mask_token"} <= {*own[0]}
    assert len(build_optimizers(objective, OptimizerConfig())) == 1
    assert len(build_optimizers(torch.nn.Linear(3, 3), OptimizerConfig(matrices="muon"))) == 1  # it has no block
    block = Block(8, 2, mlp_ratio=2.0, qkv_bias=True, norm_eps=1e-6)
    for bf16 in (False, True):
        muon = build_optimizers(block, OptimizerConfig(matrices="muon"), bf16=bf16)[1]
        assert [(group["bf16"], group["decayed"]) for group in muon.param_groups] == [(bf16, True)] * 2


@pytest.mark.parametrize(("name", "value", "message"), [
    ("muon_momentum", 1.0, r"Muon's momentum lies in \[0, 1\), got 1.0"),
    ("muon_iterations", 0, "muon_iterations must be at least 1, got 0"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(matrices="muon", **{name: value})


def test_settings_of_muon_without_muon_are_refused():
    with pytest.raises(ValueError, match="are for matrices='muon', and here it is 'adamw'"):
        OptimizerConfig(muon_iterations=3)
