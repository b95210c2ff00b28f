"""Who takes part in ``step.py``: a training step, or an encoder's forward pass, of openjepa and of others.

All have the same sizes, images, masks and precision. A contender is built from a :class:`Task` and called for one step.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from openjepa.encoder import Encoder, EncoderConfig, PredictorConfig
from openjepa.grid import patchify, sincos_positions
from openjepa.masking import MultiBlockMasking
from openjepa.masks import Masks
from openjepa.objectives.ijepa import IJEPA
from openjepa.training.distributed import Processes
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import Step, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Size:
    """One thing to measure."""

    name: str
    encoder: EncoderConfig
    predictor: PredictorConfig
    batch: int


SIZES = {
    "small": Size(
        name="ViT 192x6, 8x8 tokens, batch 256",
        encoder=EncoderConfig(signal=(32, 32), patch=(4, 4), width=192, depth=6, heads=3),
        predictor=PredictorConfig(width=96, depth=4, heads=3),
        batch=256,
    ),
    "vit-s": Size(
        name="ViT-S/16, 224 px, batch 16",
        encoder=EncoderConfig(signal=(224, 224), patch=(16, 16), width=384, depth=12, heads=6),
        predictor=PredictorConfig(width=192, depth=6, heads=6),
        batch=16,
    ),
    "vit-b": Size(
        name="ViT-B/16, 224 px, batch 16",
        encoder=EncoderConfig(signal=(224, 224), patch=(16, 16), width=768, depth=12, heads=12),
        predictor=PredictorConfig(width=384, depth=6, heads=12),
        batch=16,
    ),
    "clip": Size(
        name="ViT-S, clips of 8x14x14 tokens, batch 2",
        encoder=EncoderConfig(signal=(16, 224, 224), patch=(2, 16, 16), width=384, depth=12, heads=6),
        predictor=PredictorConfig(width=192, depth=6, heads=6),
        batch=2,
    ),
}
# The same for a GPU, which small batches leave idle.
SIZES["vit-s-256"] = replace(SIZES["vit-s"], name="ViT-S/16, 224 px, batch 256", batch=256)
SIZES["vit-b-128"] = replace(SIZES["vit-b"], name="ViT-B/16, 224 px, batch 128", batch=128)


def sized(key: str, batch: int | None = None) -> Size:
    """The size of that name, with another batch where one is given."""
    size = SIZES[key]
    if batch is None:
        return size
    return replace(size, name=f"{size.name.rsplit(',', 1)[0]}, batch {batch}", batch=batch)


class Task:
    """Images and masks of one size, the same for all who are measured on it."""

    def __init__(self, size: Size, device: torch.device, dtype: str) -> None:
        self.size, self.device, self.dtype = size, device, dtype
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(size.batch, size.encoder.channels, *size.encoder.signal, generator=generator)
        self.x = x.to(device)
        self.masks: Masks = MultiBlockMasking(size.encoder.grid)(torch.arange(size.batch), 0).to(device)

    def autocast(self) -> torch.autocast:
        """The precision of everybody's products."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")


def flops(task: Task, *, training: bool) -> int:
    """Floating-point operations of one of our steps, or of a forward pass, counted without computing anything."""
    with torch.device("meta"):
        objective = IJEPA(task.size.encoder, task.size.predictor)
    x, masks = task.x.to("meta"), task.masks.to("meta")
    with FlopCounterMode(display=False) as counter:
        if training:
            objective(x, masks).loss.backward()
        else:
            with torch.no_grad():
                objective.representation(x)
    return counter.get_total_flops()


def ours(task: Task, replicas: int = 1) -> Callable[[], object]:
    """Our step, as the trainer takes it: it also takes the gradient norm and refuses numbers that are not finite."""
    step = trainers_step(task, replicas)
    return lambda: step(task.x, task.masks, 0)


def compiled(task: Task) -> Callable[[], object]:
    """The same, compiled."""
    step = trainers_step(task)
    step.call.compile()
    return lambda: step(task.x, task.masks, 0)


def trainers_step(task: Task, replicas: int = 1) -> Step:
    """What takes the step, for batches of any size."""
    objective = IJEPA(task.size.encoder, task.size.predictor).to(task.device)
    precision = "bf16" if task.dtype == "bfloat16" else "float32"
    return Step(
        objective,
        schedule=ScheduleConfig(),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(steps=100_000, batch=task.size.batch, precision=precision, replicas=replicas),
        processes=Processes(0, 1, task.device),
    )


def lightly(task: Task) -> Callable[[], object]:
    """lightly's modules, put together as in its documentation."""
    from lightly_step import LightlyStep

    if len(task.size.encoder.signal) != 2:
        raise LookupError("lightly's I-JEPA takes images only")
    step = LightlyStep(
        task.size.encoder,
        task.size.predictor,
        device=task.device,
        autocast=task.dtype == "bfloat16",
        momentum=0.996,
    )
    return lambda: step(task.x, task.masks)


def encoder(task: Task) -> Callable[[], object]:
    """Our encoder's forward pass over whole images."""
    model = Encoder(task.size.encoder).to(task.device).eval()
    return _forward(task, lambda: model(task.x))


def transformers(task: Task) -> Callable[[], object]:
    """transformers' ``IJepaModel``, forward only: it has no predictor, no masks and no training."""
    from transformers import IJepaConfig, IJepaModel

    size = task.size.encoder
    if len(size.signal) != 2:
        raise LookupError("transformers' IJepaModel takes images only")
    config = IJepaConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        image_size=size.signal[0],
        patch_size=size.patch[0],
        num_channels=size.channels,
    )
    model = IJepaModel(config).eval()
    nn.Module.to(model, task.device)
    return _forward(task, lambda: model(task.x).last_hidden_state)


def _forward(task: Task, call: Callable[[], Tensor]) -> Callable[[], object]:
    def forward() -> Tensor:
        with torch.inference_mode(), task.autocast():
            return call()

    return forward


class _PlainBlock(nn.Module):
    """A pre-norm block with attention written out: scores, softmax and product, all in memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class _PlainEncoder(nn.Module):
    table: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patch = config.patch
        values = config.channels * torch.Size(config.patch).numel()
        self.embed = nn.Linear(values, config.width)
        self.register_buffer("table", sincos_positions(config.grid, config.width))
        self.blocks = nn.ModuleList(_PlainBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        tokens: Tensor = self.embed(patchify(x, self.patch)) + self.table
        if keep is not None:
            tokens = _gathered(tokens, keep)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class _PlainPredictor(nn.Module):
    table: Tensor

    def __init__(self, config: PredictorConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("table", sincos_positions(encoder.grid, config.width))
        self.blocks = nn.ModuleList(_PlainBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.project = nn.Linear(config.width, encoder.width)

    def forward(self, context: Tensor, keep: Tensor, targets: list[Tensor]) -> Tensor:
        places = self.table.expand(len(context), -1, -1)
        seen = self.embed(context) + _gathered(places, keep)
        asked = torch.cat([self.mask_token + _gathered(places, block) for block in targets])
        rows = torch.cat([seen.repeat(len(targets), 1, 1), asked], 1)
        for block in self.blocks:
            rows = block(rows)
        return self.project(self.norm(rows)[:, seen.shape[1] :])


def _gathered(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def plain(task: Task) -> Callable[[], object]:
    """An eager step in the published code's style, from the method's description: patches embedded before they are
    chosen, attention written out, one EMA update a parameter, AdamW as PyTorch has it by default; masks of equal
    lengths, as truncation to the batch's shortest gives."""
    size = task.size
    context_encoder = _PlainEncoder(size.encoder).to(task.device)
    predictor = _PlainPredictor(size.predictor, size.encoder).to(task.device)
    target_encoder = copy.deepcopy(context_encoder).requires_grad_(False)
    parameters = [*context_encoder.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.04)
    targets = list(task.masks.targets.unbind(1))

    def step() -> float:
        with task.autocast():
            with torch.no_grad():
                features = target_encoder(task.x)
                features = F.layer_norm(features, features.shape[-1:])
                wanted = torch.cat([_gathered(features, block) for block in targets])
            predicted = predictor(context_encoder(task.x, task.masks.context), task.masks.context, targets)
            loss = F.smooth_l1_loss(predicted, wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mine, theirs in zip(target_encoder.parameters(), context_encoder.parameters(), strict=True):
                mine.mul_(0.996).add_(theirs, alpha=1 - 0.996)
        return loss.item()

    return step
