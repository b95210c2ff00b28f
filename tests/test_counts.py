"""What a step costs, counted instead of timed, so that it is the same on every machine: a guard against slowness."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from openjepa import kernels
from openjepa.costing import flops
from openjepa.experiment import Experiment
from openjepa.masks import Masks, MultiBlockConfig
from openjepa.recipes.baselines import baseline
from openjepa.recipes.small import small
from openjepa.training.distributed import Processes
from openjepa.training.step import Step


def experiment(shape="fixed") -> Experiment:
    """The small recipe on 32x32 colour images, 8x8 tokens."""
    made = small(signal=(32, 32), patch=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
    share = 0.25 if shape == "fixed" else 1.0
    return replace(made, masks=MultiBlockConfig(shape=shape, context_share=share))


def batch(of: Experiment, images: int, step: int = 0):
    return torch.randn(images, 3, 32, 32), of.masking()(torch.arange(images) + step, step)


def block_flops(width: int, asked: int, seen: int) -> int:
    """Multiplications and additions of a block: queries and all that follows for the tokens ``asked``, keys and values
    for those ``seen``."""
    projections = 2 * width * width * asked + 4 * width * width * seen + 2 * width * width * asked
    return projections + 4 * asked * seen * width + 16 * width * width * asked


def test_floating_point_operations_are_those_of_the_networks():
    made = experiment()
    width, depth, tokens, patch = 192, 6, 64, 48
    whole = depth * block_flops(width, tokens, tokens) + 2 * patch * width * tokens
    masking, narrow = made.masking(), made.predictor.width
    seen, blocks, asked = masking.context_tokens, made.masks.targets, masking.target_tokens
    context = depth * block_flops(width, seen, seen) + 2 * patch * width * seen
    predictor = blocks * (block_flops(narrow, asked, seen + asked) + 2 * narrow * width * asked)
    predictor += 2 * width * narrow * seen
    counted = flops(made.objective(), made, masking(torch.arange(2), 0))
    assert counted["forward"] == whole
    # Backward is twice the forward pass, but for the patches, which need no gradient. Whitening: under a percent more.
    least = whole + 3 * (context + predictor) - 2 * patch * width * seen
    assert least <= counted["step"] <= 1.01 * least


def test_an_image_has_its_share_of_what_muon_multiplies():
    made = experiment()
    masks = made.masking()(torch.arange(2), 0)
    muon = replace(made, optimizer=replace(made.optimizer, matrices="muon", muon_iterations=2))
    counted = [flops(each.objective(), each, masks)["step"] for each in (made, muon)]
    # An iteration on M by N, M the fewer: the Gram matrix, its square, and the product with the matrix itself.
    matrices = [
        (width, times * width)
        for width, depth in ((192, 6), (128, 1))
        for times in (1, 1, 1, 1, 4, 4)
        for _ in range(depth)
    ]
    iteration = sum(4 * few * few * many + 2 * few**3 for few, many in matrices)
    assert counted[1] - counted[0] == 2 * iteration // made.training.batch


@pytest.mark.parametrize("method", ["mae", "denoising"])
def test_floating_point_operations_of_the_baselines(method):
    made = baseline(experiment(), method)
    width, depth, tokens, patch, narrow = 192, 6, 64, 48, made.predictor.width
    masks = made.masking()(torch.arange(2), 0)
    seen, asked = masks.context.shape[1], masks.targets.shape[2]
    assert (seen, asked) == ((16, 48) if method == "mae" else (64, 64))
    embedding = 2 * patch * width * seen
    encoder = depth * block_flops(width, seen, seen) + embedding
    # The decoder has the features of what is seen and, in MAE, the places of what is hidden; its last block's answers
    # are of the tokens asked for alone.
    together = tokens
    decoder = 2 * width * narrow * seen + (made.predictor.depth - 1) * block_flops(narrow, together, together)
    decoder += block_flops(narrow, asked, together) + 2 * narrow * patch * asked
    counted = flops(made.objective(), made, masks)
    assert counted["step"] == 3 * (encoder + decoder) - embedding
    assert counted["forward"] == depth * block_flops(width, tokens, tokens) + 2 * patch * width * tokens


def test_padding_costs_no_layer_anything():
    made = experiment("packed")
    objective, images = made.objective().train(), 8
    masks = made.masking()(torch.arange(images), 0)
    assert masks.context_packed is not None
    # The same tokens, in rows that are twice as long.
    rows, places = masks.context_packed // masks.context.shape[1], masks.context_packed % masks.context.shape[1]
    wide = Masks(masks.context.repeat(1, 2), masks.targets, rows * 2 * masks.context.shape[1] + places)
    x, found = torch.randn(images, 3, 32, 32), []
    for these in (masks, wide):
        with FlopCounterMode(display=False) as counter:
            objective.predictor(objective.context_encoder(x, these.context, these.context_packed), *parts(these))
        found.append(counter.get_total_flops())  # attention is fused and not counted
    # Only patches and features on their way into a network are embedded before they are packed.
    padding = (wide.context.numel() - masks.context.numel()) * (2 * 48 * 192 + 2 * 192 * made.predictor.width)
    assert found[1] - found[0] == padding
    assert padding < 0.02 * found[0]


def parts(masks: Masks):
    return masks.context, masks.targets, masks.context_packed


# With a residual stream in float32 it was 1,046,016 an image of fixed masks. Packed ones show all that is visible.
@pytest.mark.parametrize(("shape", "most"), [("fixed", 940_000), ("packed", 1_712_000)])
def test_bytes_kept_for_the_backward_pass(shape, most):
    made = experiment(shape)
    objective = made.objective().train()
    own = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    kept = []
    for images in (8, 16):
        saved: dict[int, torch.Tensor] = {}

        def keep(tensor, saved=saved):
            if tensor.untyped_storage().data_ptr() not in own:
                saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            objective(*batch(made, images))
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
    assert (kept[1] - kept[0]) / 8 <= most


def test_each_weight_is_brought_to_bfloat16_once_a_step():
    made = experiment()
    objective = made.objective().train()
    own = {p.untyped_storage().data_ptr(): name for name, p in objective.named_parameters()}
    copies: Counter[str] = Counter()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default:
                copies[own.get(args[0].untyped_storage().data_ptr(), "")] += 1
            return function(*args, **(kwargs or {}))

    with Watch(), torch.autocast("cpu", torch.bfloat16):
        objective(*batch(made, 8))
    del copies[""]
    assert sum("weight" in name for name in copies) > 40
    # The predictor's last block asks with a part of its queries' weight and answers with the rest.
    assert all(count == (2 if name.startswith("predictor") and "qkv" in name else 1) for name, count in copies.items())


def step_of(made: Experiment, **training) -> Step:
    """What training takes, in bfloat16 on 8 images."""
    training = replace(made.training, batch=8, precision="bf16", **training)
    processes = Processes(0, 1, torch.device("cpu"))
    objective = made.objective().train()
    return Step(objective, schedule=made.schedule, optimizer=made.optimizer, training=training, processes=processes)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_whole_step_takes_the_operations_of_its_images_once(accumulate, monkeypatch):
    monkeypatch.setattr(kernels, "_has_onednn", lambda: False)  # PyTorch counts none of those products
    made = experiment()
    step, (x, masks) = step_of(made, accumulate=accumulate, replicas=1), batch(made, 8)
    # Of several micro-batches the context encoder sees all images first, for the covariance of its features.
    seen = made.masking().context_tokens
    context = 6 * block_flops(192, seen, seen) + 2 * 48 * 192 * seen
    once = 8 * (flops(made.objective(), made, masks)["step"] + (accumulate > 1) * context)
    with FlopCounterMode(display=False) as counter:
        step(x, masks, 0)
    assert 0.99 * once <= counter.get_total_flops() <= 1.01 * once


def test_a_step_of_replicas_renews_the_copy_of_each_weight_once(monkeypatch):
    made, copied, copy = experiment(), list[int](), torch._foreach_copy_

    def counted(into, *rest):
        copied.extend(tensor.data_ptr() for tensor in into)
        return copy(into, *rest)

    step = step_of(made, replicas=2)
    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    step(*batch(made, 8), 0)
    linears = [part for part in step.objective.modules() if isinstance(part, torch.nn.Linear)]
    weights = sum(parameter.dtype == torch.float32 for part in linears for parameter in part.parameters())
    assert weights > 60
    assert len(copied) == len(set(copied)) == weights


COMPILED = """
import sys
import torch
from openjepa.masks import MultiBlockConfig
from openjepa.recipes.small import small
from dataclasses import replace

made = small(signal=(32, 32), patch=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
share = 0.25 if sys.argv[1] == "fixed" else 1.0
made = replace(made, masks=MultiBlockConfig(shape=sys.argv[1], context_share=share))
objective, graphs, lengths = made.objective().train(), [], set()

def count(graph, _):
    graphs.append(graph)
    return graph.forward

objective.compile(backend=count)
for step in range(6):
    masks = made.masking()(torch.arange(8) + step, step)
    lengths.add(masks.context.shape[1])
    with torch.autocast("cpu", torch.bfloat16, enabled=sys.argv[2] == "bfloat16"):
        loss = objective(torch.randn(8, 3, 32, 32), masks).loss
    loss.backward()
print(len(graphs), len(lengths))
"""


@pytest.mark.parametrize(
    ("shape", "precision", "most"), [("fixed", "float32", 1), ("fixed", "bfloat16", 1), ("packed", "bfloat16", 2)]
)
def test_compiled_once_whatever_the_masks(shape, precision, most):
    # In a process of its own: the checks of shapes that tests switch on cannot be traced.
    command = [sys.executable, "-c", COMPILED, shape, precision]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    graphs, lengths = map(int, told.split())
    assert 1 <= graphs <= most
    assert (lengths == 1) == (shape == "fixed")
