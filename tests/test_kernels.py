"""bfloat16 products and softmax on a CPU: as exact as PyTorch's own, and taken where they are meant to be."""

import platform

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openjepa.encoder import Encoder, EncoderConfig
from openjepa.kernels import Linear, _has_onednn, padding, softmax
from openjepa.transformer import MLP, attention

BFLOAT16 = torch.autocast("cpu", torch.bfloat16)
ONEDNN = "mkldnn._linear_pointwise"


class Names(TorchDispatchMode):
    """The operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor) -> Tensor:
    """What bfloat16 leaves of it, in float64."""
    return x.to(torch.bfloat16).double()


def error(found: Tensor, exact: Tensor) -> float:
    """Of the largest number."""
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def inside_or_after() -> float:
    """The error of GELU inside a product, which is rounded once, or after it where the processor has no bfloat16."""
    return 2**-8 if _has_onednn() else 2**-7


@pytest.mark.parametrize("shape", [(70, 24), (5, 14, 24), (2, 5, 7, 24)])
@pytest.mark.parametrize(("outputs", "bias"), [(96, True), (8, True), (24, False)])
def test_a_layer_is_exact_to_bfloat16(shape: tuple[int, ...], outputs: int, bias: bool) -> None:
    layer, x = Linear(24, outputs, bias=bias).requires_grad_(False), drawn(*shape)
    exact = F.linear(rounded(x), rounded(layer.weight), None if layer.bias is None else rounded(layer.bias))
    with BFLOAT16, torch.no_grad():
        y, activated = layer(x), layer.gelu(x)
    assert y.dtype == activated.dtype == torch.bfloat16
    assert y.shape == exact.shape
    assert error(y, exact) < 2**-8
    assert error(activated, F.gelu(exact)) < inside_or_after()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN's bfloat16 is x86's")
def test_bfloat16_goes_to_onednn_and_nothing_else_does() -> None:
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("this processor has no bfloat16")
    layer, x = Linear(8, 8), drawn(4, 8)

    def called(x: Tensor, autocast: bool = True) -> bool:
        with torch.no_grad(), Names() as names, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            layer(x)
        return ONEDNN in names.called

    assert called(x)
    assert called(x.to(torch.bfloat16))
    assert not called(x, autocast=False)
    assert not called(x[:0])
    torch._C._set_mkldnn_enabled(False)  # as torch.backends.mkldnn.flags does, which warns of other things
    try:
        assert not called(x)
    finally:
        torch._C._set_mkldnn_enabled(True)
    for dtype, asked in ((torch.float16, False), (torch.bfloat16, True)):
        with torch.set_grad_enabled(asked), torch.autocast("cpu", dtype), Names() as names:
            layer(x)
        assert ONEDNN not in names.called
    encoder = Encoder(EncoderConfig(signal=(8, 8), patch=(4, 4), width=16, depth=1, heads=2))
    with torch.inference_mode(), BFLOAT16, Names() as names:
        encoder(drawn(2, 3, 8, 8))
    assert names.called.count(ONEDNN) == 5  # patches; queries, keys and values; out; two of the MLP
    assert "aten.gelu" not in names.called


def test_float32_is_pytorchs_own_to_the_bit() -> None:
    layer, x = Linear(24, 40), drawn(7, 24)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer.gelu(x), F.gelu(F.linear(x, layer.weight, layer.bias)))


def test_gelu_inside_the_product_is_gelu() -> None:
    mlp, x = MLP(24, 96), drawn(50, 24)
    wide, _, narrow = mlp
    assert isinstance(wide, Linear)
    assert isinstance(narrow, Linear)
    exact = F.gelu(F.linear(rounded(x), rounded(wide.weight.detach()), rounded(wide.bias.detach())))
    with BFLOAT16:
        asked = wide.gelu(x)
        assert torch.equal(mlp(x), narrow(asked))
        with torch.no_grad():
            inside = wide.gelu(x)
            assert torch.equal(mlp(x), narrow(inside))
    assert asked.requires_grad
    assert not inside.requires_grad
    assert error(inside, exact.detach()) < inside_or_after()
    assert error(inside, exact.detach()) <= error(asked.detach(), exact.detach())
    assert set(mlp.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("tokens", "more"), [(8, 0), (11, 0), (12, 20), (16, 0), (26, 6), (32, 0), (40, 0), (48, 0), (78, 18), (196, 0)]
)
def test_padded_attention_is_attention(tokens: int, more: int) -> None:
    q, k, v = (drawn(3, 2, tokens, 16, seed=seed).to(torch.bfloat16).requires_grad_() for seed in range(3))
    scores = torch.empty(3, tokens, tokens)
    assert padding(scores.to(torch.bfloat16)) == more
    assert padding(scores) == 0
    slope = drawn(3, 2, tokens, 16, seed=3)
    mixed = attention(q, k, v)
    mixed.backward(slope.to(torch.bfloat16))
    exact = [part.detach().double().requires_grad_() for part in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*exact)
    wanted.backward(rounded(slope))
    assert error(mixed, wanted) < 2**-6
    for mine, theirs in zip((q, k, v), exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert error(mine.grad, theirs.grad) < 2**-5


def test_what_pads_a_softmax_changes_nothing() -> None:
    scores, slope = drawn(2, 3, 20).to(torch.bfloat16).requires_grad_(), drawn(2, 3, 20, seed=1).to(torch.bfloat16)
    assert padding(scores) == 12
    weights = softmax(scores)
    weights.backward(slope)
    exact = scores.detach().double().requires_grad_()
    wanted = exact.softmax(-1)
    wanted.backward(slope.double())
    assert weights.shape == scores.shape
    assert error(weights.detach(), wanted.detach()) < 2**-8
    assert scores.grad is not None
    assert exact.grad is not None
    assert error(scores.grad, exact.grad) < 2**-6
