"""The published I-JEPA training step once more, plainly and on its own, to record traces of any configuration.

    python tests/parity/independent.py CONFIG.json DIR [STEPS]

Written from the facts of the method alone (Assran et al. 2023, sec. 3 and app. A.1) and from what the recorded trace in
``tests/parity/trace`` fixes; it shares no code with the project and imports none of it. Tensors carry the names of the
published checkpoints, so that a state dict is a section of one. Everything is a loop where the project has a formula:
patches by convolution, attention by matrix products, one predictor run for each block and context, schedules drawn
step by step.
"""

import copy
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Config = Mapping[str, Any]
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # images uint8, contexts and targets (mask, image, token)

DEFAULTS: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "norm_eps": 1e-6,
    "predictor_dim": 12,
    "predictor_depth": 2,
    "num_context_masks": 1,
    "num_target_masks": 4,
    "allow_overlap": False,
    "min_keep": 1,
    "target_scale": [0.15, 0.2],
    "context_scale": [0.85, 1.0],
    "aspect_ratio": [0.75, 1.5],
    "batch_size": 3,
    "iterations_per_epoch": 4,
    "epochs": 2,
    "warmup_epochs": 1,
    "start_lr": 2e-4,
    "lr": 1e-3,
    "final_lr": 1e-6,
    "weight_decay": 0.04,
    "final_weight_decay": 0.4,
    "ema": [0.996, 1.0],
    "ipe_scale": 1.0,
    "optimizer": "AdamW betas (0.9, 0.999) eps 1e-8",
    "loss": "smooth_l1 beta 1, mean",
}
"""A configuration's values where it names none; a predictor has the encoder's heads, MLP ratio and biases."""


def complete(config: Config) -> dict[str, Any]:
    """The configuration with every value named."""
    full = DEFAULTS | dict(config)
    for ours, theirs in (("heads", "num_heads"), ("mlp_ratio", "mlp_ratio"), ("qkv_bias", "qkv_bias")):
        full.setdefault(f"predictor_{ours}", full[theirs])
    return full


# ---- networks


def position_table(side: int, width: int) -> Tensor:
    """Sine-cosine positions of a square grid: columns in the first half of the width, rows in the second."""
    table = torch.zeros(1, side * side, width, dtype=torch.float64)
    quarter = width // 4
    for row, column, i in itertools.product(range(side), range(side), range(quarter)):
        frequency = 10000 ** (-i / quarter)
        for half, place in ((0, column), (2, row)):
            table[0, row * side + column, half * quarter + i] = math.sin(place * frequency)
            table[0, row * side + column, (half + 1) * quarter + i] = math.cos(place * frequency)
    return table.float()


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        each = width // self.heads
        parts = self.qkv(x).view(rows, tokens, 3, self.heads, each)
        mixed = []
        for head in range(self.heads):
            query, key, value = parts[:, :, 0, head], parts[:, :, 1, head], parts[:, :, 2, head]
            weights = torch.softmax(torch.bmm(query, key.mT) / math.sqrt(each), dim=2)
            mixed.append(torch.bmm(weights, value))
        return self.proj(torch.cat(mixed, 2))


class Perceptron(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SelfAttention(width, heads, bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Perceptron(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _layers(full: Config, width: int, depth: int, prefix: str) -> nn.ModuleList:
    """Transformer layers; ``prefix`` names the configuration's keys for them."""
    hidden = int(width * full[f"{prefix}mlp_ratio"])
    heads = full["predictor_heads"] if prefix else full["num_heads"]
    return nn.ModuleList(Layer(width, heads, hidden, full[f"{prefix}qkv_bias"], full["norm_eps"]) for _ in range(depth))


def _gather(tokens: Tensor, mask: Tensor) -> Tensor:
    """The tokens of one mask: row b takes its own indices."""
    return torch.stack([row[indices] for row, indices in zip(tokens, mask, strict=True)])


class VisionTransformer(nn.Module):
    def __init__(self, full: Config) -> None:
        super().__init__()
        width, patch = full["embed_dim"], full["patch_size"]
        table = position_table(full["image_size"] // patch, width)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.blocks = _layers(full, width, full["depth"], "")
        self.norm = nn.LayerNorm(width, eps=full["norm_eps"])

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = self.patch_embed["proj"](images).flatten(2).mT + self.pos_embed
        if mask is not None:
            tokens = _gather(tokens, mask)
        for layer in self.blocks:
            tokens = layer(tokens)
        return self.norm(tokens)


class NarrowPredictor(nn.Module):
    def __init__(self, full: Config) -> None:
        super().__init__()
        inputs, width = full["embed_dim"], full["predictor_dim"]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        table = position_table(full["image_size"] // full["patch_size"], width)
        self.predictor_pos_embed = nn.Parameter(table, requires_grad=False)
        self.predictor_embed = nn.Linear(inputs, width)
        self.predictor_blocks = _layers(full, width, full["predictor_depth"], "predictor_")
        self.predictor_norm = nn.LayerNorm(width, eps=full["norm_eps"])
        self.predictor_proj = nn.Linear(width, inputs)

    def forward(self, context: Tensor, seen: Tensor, asked: Tensor) -> Tensor:
        """The tokens ``asked`` of one block, from the features ``context`` of the tokens ``seen``."""
        positions = self.predictor_pos_embed.expand(len(context), -1, -1)
        known = self.predictor_embed(context) + _gather(positions, seen)
        tokens = torch.cat([known, self.mask_token + _gather(positions, asked)], 1)
        for layer in self.predictor_blocks:
            tokens = layer(tokens)
        return self.predictor_proj(self.predictor_norm(tokens)[:, seen.shape[1] :])


class Networks:
    """Context encoder, predictor and target encoder, at random or from the sections of a checkpoint.

    A ``strength`` above 1, the published initialisation, multiplies the weights and moves biases and norms from where
    they begin. In tiny networks with the published one attention is as good as uniform, and little shows in the loss.
    """

    def __init__(self, full: Config, seed: int = 0, strength: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.encoder, self.predictor = VisionTransformer(full), NarrowPredictor(full)
        for name, weight in [*self.encoder.named_parameters(), *self.predictor.named_parameters()]:
            if weight.ndim > 1 and weight.requires_grad:
                nn.init.trunc_normal_(weight, std=0.02 * strength, generator=generator)
            elif name.endswith("bias"):
                nn.init.normal_(weight, std=0.01 * (strength - 1), generator=generator)
            elif weight.ndim == 1:
                nn.init.normal_(weight, 1.0, 0.01 * (strength - 1), generator=generator)
        self.target_encoder = copy.deepcopy(self.encoder)

    def sections(self) -> dict[str, dict[str, Tensor]]:
        """The three state dicts of a checkpoint."""
        return {
            name: {f"module.{key}": tensor.clone() for key, tensor in getattr(self, name).state_dict().items()}
            for name in ("encoder", "predictor", "target_encoder")
        }

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the weights of a checkpoint, position tables among them."""
        for name in ("encoder", "predictor", "target_encoder"):
            section = {key.removeprefix("module."): tensor for key, tensor in checkpoint[name].items()}
            getattr(self, name).load_state_dict(section)


# ---- schedules, one value a step


def learning_rates(full: Config) -> Iterator[float]:
    warm = int(full["warmup_epochs"] * full["iterations_per_epoch"])
    total = int(full["ipe_scale"] * full["epochs"] * full["iterations_per_epoch"])
    for place in itertools.count(1):
        if place < warm:
            yield full["start_lr"] + place / warm * (full["lr"] - full["start_lr"])
        else:
            turn = math.cos(math.pi * (place - warm) / max(1, total - warm))
            yield max(full["final_lr"], full["final_lr"] + (full["lr"] - full["final_lr"]) * (1 + turn) / 2)


def weight_decays(full: Config) -> Iterator[float]:
    first, last = full["weight_decay"], full["final_weight_decay"]
    total = int(full["ipe_scale"] * full["epochs"] * full["iterations_per_epoch"])
    for place in itertools.count(1):
        value = last + (first - last) * (1 + math.cos(math.pi * place / total)) / 2
        yield max(value, last) if last <= first else min(value, last)


def momenta(full: Config) -> Iterator[float]:
    """Linear over all steps; a total that is no whole number is not cut (the project's reading; no trace fixes it)."""
    first, last = full["ema"]
    total = full["iterations_per_epoch"] * full["epochs"] * full["ipe_scale"]
    for step in range(int(total) + 1):
        yield first + step * (last - first) / total


# ---- the step


def normalised(images: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(images).float() / 255
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        pixels[:, channel] = (pixels[:, channel] - mean) / std
    return pixels


def forward(networks: Networks, images: Tensor, contexts: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What a step computes, as ``step0.npz`` holds it.

    Rows of targets and predictions: block 0 from context 0, block 0 from context 1, then block 1 from context 0.
    """
    with torch.no_grad():
        whole = networks.target_encoder(images)
        features = (whole - whole.mean(2, keepdim=True)) / (whole.var(2, False, keepdim=True) + 1e-5).sqrt()
    encoded = [networks.encoder(images, context) for context in contexts]
    wanted, found = [], []
    for block in targets:
        for context, seen in zip(encoded, contexts, strict=True):
            wanted.append(_gather(features, block))
            found.append(networks.predictor(context, seen, block))
    rows = {"context": encoded, "targets": wanted, "prediction": found}
    return {"target_full": whole} | {name: torch.cat(parts) for name, parts in rows.items()}


def loss_of(computed: Mapping[str, Tensor]) -> Tensor:
    """Smooth L1 (beta 1), mean."""
    distance = (computed["prediction"] - computed["targets"]).abs()
    return torch.where(distance < 1, distance**2 / 2, distance - 0.5).mean()


def computed_for(networks: Networks, batch: Batch) -> dict[str, Tensor]:
    """:func:`forward` on a recorded batch."""
    images, *masks = batch
    contexts, targets = (torch.from_numpy(indices.astype(np.int64)) for indices in masks)
    return forward(networks, normalised(images), contexts, targets)


def optimizer_of(networks: Networks, full: Config) -> torch.optim.AdamW:
    """AdamW in four groups: weights of encoder and predictor, then biases and 1-D parameters of both, not decayed."""
    parts = [list(part.named_parameters()) for part in (networks.encoder, networks.predictor)]
    groups: list[dict[str, Any]] = []
    for plain in (False, True):
        for named in parts:
            chosen = [weight for name, weight in named if (weight.ndim == 1 or name.endswith("bias")) == plain]
            groups.append({"params": chosen} | ({"WD_exclude": True, "weight_decay": 0} if plain else {}))
    numbers = [float(number) for number in re.findall(r"\d[\d.e-]*", full["optimizer"])]
    return torch.optim.AdamW(groups, lr=full["lr"], betas=(numbers[0], numbers[1]), eps=numbers[2])


def train(networks: Networks, config: Config, batches: Sequence[Batch]) -> tuple[list[dict[str, float]], dict]:
    """Train on the batches; returns the numbers of each step and the optimiser's state at the end."""
    full = complete(config)
    optimizer = optimizer_of(networks, full)
    schedules = zip(learning_rates(full), weight_decays(full), momenta(full), strict=False)
    rows = []
    for step, (batch, (lr, decay, momentum)) in enumerate(zip(batches, schedules, strict=False)):
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = 0 if group.get("WD_exclude") else decay
        optimizer.zero_grad()
        loss = loss_of(computed_for(networks, batch))
        loss.backward()
        weights = [*networks.encoder.parameters(), *networks.predictor.parameters()]
        squares = [weight.grad.double().square().sum() for weight in weights if weight.grad is not None]
        optimizer.step()
        with torch.no_grad():  # the position table is a parameter too and is averaged along
            pairs = zip(networks.target_encoder.parameters(), networks.encoder.parameters(), strict=True)
            for slow, fast in pairs:
                slow.mul_(momentum).add_((1 - momentum) * fast)
        row = {"step": step, "loss": loss.item(), "lr": lr, "wd": decay, "momentum": momentum}
        rows.append(row | {"grad_norm": math.sqrt(sum(square.item() for square in squares))})
    if len(rows) < len(batches):
        raise ValueError(f"{len(batches)} batches, and the momentum schedule ends after {len(rows)} steps")
    return rows, optimizer.state_dict()


# ---- data and files


def _rectangle(rng: np.random.Generator, side: int, height: int, width: int) -> set[int]:
    top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
    return {row * side + column for row in range(top, top + height) for column in range(left, left + width)}


def _extents(rng: np.random.Generator, side: int, scale: Sequence[float], aspect: Sequence[float]) -> tuple[int, int]:
    area, ratio = (rng.uniform(low, high) for low, high in (scale, aspect))
    area *= side * side
    height, width = (min(side, max(1, round(math.sqrt(area * factor)))) for factor in (ratio, 1 / ratio))
    return height, width


def _masks(rng: np.random.Generator, full: Config) -> tuple[np.ndarray, np.ndarray]:
    """Multi-block masks, all contexts of a batch cut to the shortest; drawn again while one is too short."""
    side = full["image_size"] // full["patch_size"]
    while True:
        block = _extents(rng, side, full["target_scale"], full["aspect_ratio"])
        contexts: list[list[list[int]]] = [[] for _ in range(full["num_context_masks"])]
        targets: list[list[list[int]]] = [[] for _ in range(full["num_target_masks"])]
        for _ in range(full["batch_size"]):
            blocks = [_rectangle(rng, side, *block) for _ in targets]
            hidden = set() if full["allow_overlap"] else set().union(*blocks)
            for rows, tokens in zip(targets, blocks, strict=True):
                rows.append(sorted(tokens))
            for rows in contexts:
                extents = _extents(rng, side, full["context_scale"], (1.0, 1.0))
                rows.append(sorted(_rectangle(rng, side, *extents) - hidden))
        shortest = min(len(tokens) for rows in contexts for tokens in rows)
        if shortest >= full["min_keep"]:
            return np.array([[tokens[:shortest] for tokens in rows] for rows in contexts]), np.array(targets)


def draw_batches(config: Config, steps: int, seed: int = 0) -> list[Batch]:
    """Pictures of soft waves and noise, with masks."""
    full, rng = complete(config), np.random.default_rng(seed)
    size = full["image_size"]
    down, across = np.mgrid[:size, :size] / size
    batches = []
    for _ in range(steps):
        shape = (full["batch_size"], 3, 1, 1)
        wave = np.sin(rng.uniform(-9, 9, shape) * down + rng.uniform(-9, 9, shape) * across + rng.uniform(0, 6, shape))
        noise = rng.normal(0, 25, (full["batch_size"], 3, size, size))
        images = np.clip(128 + 90 * wave + noise, 0, 255).astype(np.uint8)
        batches.append((images, *_masks(rng, full)))
    return batches


def record(
    config: Config,
    folder: Path,
    steps: int = 6,
    *,
    seed: int = 0,
    strength: float = 1.0,
    written: Config | None = None,
    masks: str = "int64",
    scaler: dict[str, Any] | None = None,
) -> list[dict[str, float]]:
    """Train from random weights and write a trace folder; returns the recorded rows.

    Args:
        config: the values that differ from :data:`DEFAULTS`.
        strength: of the initial weights, see :class:`Networks`.
        written: what trace.json shows as the configuration; None writes all of it.
        masks: data type of the recorded indices.
        scaler: what the checkpoints hold under that name.
    """
    full = complete(config)
    networks, batches = Networks(full, seed, strength), draw_batches(full, steps, seed)
    beside = {"scaler": scaler, "batch_size": full["batch_size"], "world_size": 1, "lr": full["lr"]}
    fresh = optimizer_of(networks, full).state_dict()
    torch.save(networks.sections() | {"opt": fresh, "epoch": 0, "loss": 0.0} | beside, folder / "start.pth.tar")
    first: dict[str, Any] = {
        name: tensor.detach().numpy() for name, tensor in computed_for(networks, batches[0]).items()
    }
    np.savez_compressed(folder / "step0.npz", **first)
    rows, state = train(networks, full, batches)
    epoch = steps // full["iterations_per_epoch"]
    ended = {"opt": state, "epoch": epoch, "loss": rows[-1]["loss"]}
    torch.save(networks.sections() | ended | beside, folder / "end.pth.tar")
    arrays: dict[str, Any] = {"images_uint8": np.stack([images for images, _, _ in batches])}
    for step, (_, contexts, targets) in enumerate(batches):
        arrays |= {f"context_{step}": contexts.astype(masks), f"target_{step}": targets.astype(masks)}
    np.savez_compressed(folder / "batches.npz", **arrays)
    trace = {"config": dict(full if written is None else written), "steps": rows}
    (folder / "trace.json").write_text(json.dumps(trace, indent=1))
    return rows


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(str(__doc__).split("\n\n")[1].strip())
    _, source, folder, *count = sys.argv
    Path(folder).mkdir(parents=True, exist_ok=True)
    record(json.loads(Path(source).read_text()), Path(folder), int(count[0]) if count else 6)
