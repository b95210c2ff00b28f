"""Encoder and predictor: one code for every number of axes, and only what is kept is computed."""

import pytest
import torch
import torch.nn.functional as F

from openjepa import transformer
from openjepa.encoder import Encoder, EncoderConfig, Predictor, PredictorConfig
from openjepa.grid import TokenGrid
from openjepa.transformer import Stack, initialise

SMALL = {"width": 32, "depth": 2, "heads": 4}
SIGNALS = {1: ((24,), (4,)), 2: ((16, 24), (4, 8)), 3: ((4, 16, 16), (2, 8, 8))}


def encoder(axes: int, channels: int = 2, **changes) -> Encoder:
    signal, patch = SIGNALS[axes]
    config = EncoderConfig(signal=signal, patch=patch, channels=channels, **{**SMALL, **changes})
    return Encoder(config, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_code_for_every_number_of_axes(axes):
    model = encoder(axes)
    x = torch.randn(3, 2, *SIGNALS[axes][0], dtype=torch.float64)
    tokens = model.config.grid.size
    everything = model(x)
    assert everything.shape == (3, tokens, 32)
    keep = torch.arange(tokens).expand(3, -1).flip(1)
    torch.testing.assert_close(model(x, keep).flip(1), everything)


def test_hidden_tokens_have_no_influence():
    model = encoder(2)
    x = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    keep = torch.tensor([[0, 5, 7], [3, 4, 11]])
    before = model(x, keep)
    x[0, :, :4, 8:16] += 9  # token 1 of the first image
    torch.testing.assert_close(model(x, keep), before, rtol=0, atol=0)
    assert not torch.allclose(model(x)[0], model(x.flip(1))[0])


def packed(valid):
    return valid.flatten().nonzero()[:, 0]


LENGTHS = torch.tensor([4, 2, 1, 3])
VALID = torch.arange(4) < LENGTHS[:, None]
KEEP = torch.tensor([[0, 5, 7, 9], [3, 4, 0, 0], [8, 0, 0, 0], [2, 6, 11, 0]])


def each_alone(model, predictor, x, at):
    """Features and predictions of every image on its own, without any padding."""
    for row, length in enumerate(LENGTHS):
        keep = KEEP[row : row + 1, :length]
        features = model(x[row : row + 1], keep)
        yield features, predictor(features, keep, at[row : row + 1])


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_packed_rows_are_what_each_is_alone(dtype, class_token):
    model = encoder(2, class_token=class_token).to(dtype)
    predictor = Predictor(PredictorConfig(**SMALL), grid=model.config.grid, inputs=32, outputs=5).to(dtype)
    x = torch.randn(4, 2, 16, 24).to(dtype)
    at = torch.tensor([[[1, 2], [10, 8]]] * 4)
    features = model(x, KEEP, packed(VALID))
    predicted = predictor(features, KEEP, at, packed(VALID))
    assert not features[~VALID].any()
    rounding = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}
    for row, (alone, asked) in enumerate(each_alone(model, predictor, x, at)):
        torch.testing.assert_close(features[row : row + 1, : LENGTHS[row]], alone, **rounding)
        torch.testing.assert_close(predicted[row : row + 1], asked, **rounding)


def test_packed_gradients_are_the_sum_of_each_alone():
    model = encoder(2)
    predictor = Predictor(PredictorConfig(**SMALL), grid=model.config.grid, inputs=32, outputs=5).double()
    weights = [*model.parameters(), *predictor.parameters()]
    x, at = torch.randn(4, 2, 16, 24, dtype=torch.float64), torch.tensor([[[1, 2], [10, 8]]] * 4)
    together = predictor(model(x, KEEP, packed(VALID)), KEEP, at, packed(VALID)).square().sum()
    alone = torch.stack([asked.square().sum() for _, asked in each_alone(model, predictor, x, at)]).sum()
    for mine, theirs in zip(torch.autograd.grad(together, weights), torch.autograd.grad(alone, weights), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("asking", [None, 1])
def test_packed_attention_gives_a_gpu_kernel_the_right_rows(asking, monkeypatch):
    """What the kernel is documented to do, done row by row, gives what the padded rows give."""

    def kernel(q, k, v, starts_q, starts_k, most_q, most_k):
        assert starts_q.dtype == starts_k.dtype == torch.int32
        assert most_q >= starts_q.diff().max()
        assert most_k >= starts_k.diff().max()
        rows = []
        for row in range(len(starts_q) - 1):
            mine, theirs = (slice(starts[row], starts[row + 1]) for starts in (starts_q, starts_k))
            scores = torch.einsum("qhe,khe->hqk", q[mine], k[theirs]) / q.shape[-1] ** 0.5
            rows.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), v[theirs]))
        return torch.cat(rows)

    packing = transformer.Packing(packed(VALID), 4, 4)
    asked = None if asking is None else torch.randn(4 * asking, 16, dtype=torch.float64)
    projected = torch.randn(int(LENGTHS.sum()), 48 if asking is None else 32, dtype=torch.float64)
    expected = packing.attention(asked, projected, 2)
    monkeypatch.setattr(transformer, "_varlen", lambda *_: kernel)
    torch.testing.assert_close(packing.attention(asked, projected, 2), expected)


def test_a_clip_of_one_frame_is_exactly_the_image():
    image = encoder(2, depth=3)
    config = EncoderConfig(signal=(1, 16, 24), patch=(1, 4, 8), channels=2, width=32, depth=3, heads=4)
    clip = Encoder(config).double()
    clip.load_state_dict(image.state_dict())
    x = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    assert torch.equal(clip(x[:, :, None]), image(x))


def test_blocks_are_predicted_on_their_own():
    predictor = Predictor(PredictorConfig(**SMALL), grid=TokenGrid((4, 4)), inputs=16, outputs=7).double()
    context, at = torch.randn(2, 3, 16, dtype=torch.float64), torch.tensor([[0, 1, 2], [4, 5, 6]])
    targets = torch.tensor([[[7, 8], [9, 10]], [[7, 8], [11, 12]]])
    both = predictor(context, at, targets)
    assert both.shape == (2, 2, 2, 7)
    for block in range(2):
        torch.testing.assert_close(both[:, block], predictor(context, at, targets[:, block : block + 1])[:, 0])


def test_other_sizes_and_aspect_ratios_are_taken():
    model = encoder(2)
    assert model(torch.randn(1, 2, 32, 24, dtype=torch.float64)).shape == (1, 24, 32)
    learned = encoder(2, positions="learned")
    assert "table" in learned.state_dict()
    assert learned(torch.randn(1, 2, 32, 72, dtype=torch.float64)).shape == (1, 72, 32)
    with pytest.raises(ValueError, match=r"multiples of the patch"):
        model(torch.randn(1, 2, 18, 24, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"2 channels.*\(1, 3, 16, 24\)"):
        model(torch.randn(1, 3, 16, 24, dtype=torch.float64))


@pytest.mark.parametrize("valid", [None, torch.tensor([[True] * 6, [True, True, True, False, False, False]])])
def test_attention_paths_agree(valid, monkeypatch):
    assert transformer.attention_path("cpu", torch.bfloat16, 64) == "plain"
    assert transformer.attention_path("cpu", torch.float32, 64) == "fused"
    assert transformer.attention_path("cpu", torch.bfloat16, 4096) == "parts"
    assert transformer.attention_path("cuda", torch.bfloat16, 64) == "fused"
    monkeypatch.setattr(transformer, "_ASKING", 4)
    q, k, v = torch.randn(3, 2, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    seen = valid[:, None, None] if valid is not None else torch.tensor(True)
    weights = (q @ k.transpose(-2, -1) / 8**0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    slope = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    expected = [weights @ v, *torch.autograd.grad(weights @ v, (q, k, v), slope)]
    for path in ("fused", "plain", "parts"):
        monkeypatch.setattr(transformer, "attention_path", lambda *_, path=path: path)
        mixed = transformer.attention(q, k, v, valid)
        found = [mixed, *torch.autograd.grad(mixed, (q, k, v), slope)]
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_attention_in_parts_keeps_no_weights():
    tokens, kept = 600, []
    q, k, v = torch.randn(3, 1, 2, tokens, 8).bfloat16().requires_grad_()
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tensor.numel()), tensor)[1], lambda t: t
    )
    with hooks:
        transformer.attention(q, k, v)
    assert max(kept) == q.numel()


@pytest.mark.parametrize("padded", [False, True])
def test_leaving_out_unused_tokens_at_the_end_changes_neither_features_nor_gradients(padded):
    stack = Stack(32, 2, 4).double()
    initialise(stack, torch.Generator().manual_seed(0))
    x = torch.randn(3, 9, 32, dtype=torch.float64)
    places = packed((torch.arange(9) != 2).expand(3, -1)) if padded else None
    found = []
    for features in (stack(x, places)[:, -4:], stack(x, places, last=4)):
        stack.zero_grad()
        features.square().sum().backward()
        found.append([features, *(p.grad.clone() for p in stack.parameters())])
    for whole, short in zip(*found, strict=True):
        torch.testing.assert_close(short, whole, rtol=1e-12, atol=1e-12)


def test_recomputing_activations_changes_no_gradient():
    model = encoder(2)
    x = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    gradients = []
    for recompute in (False, True):
        model.stack.recompute = recompute
        model.zero_grad()
        F.mse_loss(model(x), torch.ones(2, 12, 32, dtype=torch.float64)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_the_published_initialisation():
    model = Encoder(EncoderConfig(signal=(32, 32), patch=(8, 8), width=192, depth=4, heads=3))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            scale = 2 if name == "embed.weight" else 1  # 192 values in a patch, a quarter of 16x16x3
            assert abs(parameter.std().item() - scale * 0.02) < scale * 5e-4, name


def test_the_last_of_the_last_blocks_is_what_forward_gives_in_bfloat16_too():
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), width=24, depth=3, heads=2)
    encoder, x = Encoder(config).eval(), torch.randn(2, 3, 16, 16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.last_blocks(x, 2)[-1], encoder(x))
