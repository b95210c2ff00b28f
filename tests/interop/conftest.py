"""Synthetic checkpoints in the published format, made from its description and not with the library's own names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

TRACE = Path(__file__).parent.parent / "parity" / "trace"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Shapes of a published checkpoint."""

    size: int = 32
    patch: int = 8
    width: int = 48
    depth: int = 2
    hidden: int = 192
    predictor_width: int = 24
    predictor_depth: int = 1
    channels: int = 3
    qkv_bias: bool = True


def sincos(side: int, width: int) -> Tensor:
    """The published table: columns fill the first half, rows the second, each half sine then cosine."""
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    rows, columns = np.divmod(np.arange(side * side), side)
    halves = [np.concatenate([np.sin(at[:, None] * omega), np.cos(at[:, None] * omega)], 1) for at in (columns, rows)]
    return torch.from_numpy(np.concatenate(halves, 1)).float()[None]


def make_published(
    shapes: Published, *, prefix: str = "module.", device: str = "cpu", seed: int = 0, table: Tensor | None = None
) -> dict:
    """A checkpoint's content with random weights; on the meta device only the position tables are real."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        if device == "meta":
            return torch.empty(shape, device="meta")
        return torch.randn(shape, generator=generator) * 0.05

    def linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, Tensor]:
        weight = {f"{name}.weight": draw(out, into)}
        return weight | ({f"{name}.bias": draw(out)} if bias else {})

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}

    def blocks(name: str, depth: int, width: int, hidden: int) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for i in range(depth):
            state |= norm(f"{name}.{i}.norm1", width)
            state |= linear(f"{name}.{i}.attn.qkv", 3 * width, width, shapes.qkv_bias)
            state |= linear(f"{name}.{i}.attn.proj", width, width)
            state |= norm(f"{name}.{i}.norm2", width)
            state |= linear(f"{name}.{i}.mlp.fc1", hidden, width) | linear(f"{name}.{i}.mlp.fc2", width, hidden)
        return state

    def encoder() -> dict[str, Tensor]:
        p, width = shapes.patch, shapes.width
        return (
            {"pos_embed": sincos(shapes.size // p, width) if table is None else table.clone()}
            | {"patch_embed.proj.weight": draw(width, shapes.channels, p, p), "patch_embed.proj.bias": draw(width)}
            | blocks("blocks", shapes.depth, width, shapes.hidden)
            | norm("norm", width)
        )

    def predictor() -> dict[str, Tensor]:
        width = shapes.predictor_width
        return (
            {"mask_token": draw(1, 1, width), "predictor_pos_embed": sincos(shapes.size // shapes.patch, width)}
            | linear("predictor_embed", width, shapes.width)
            | blocks("predictor_blocks", shapes.predictor_depth, width, 4 * width)
            | norm("predictor_norm", width)
            | linear("predictor_proj", shapes.width, width)
        )

    sections = {"encoder": encoder(), "predictor": predictor(), "target_encoder": encoder()}
    content: dict = {name: {prefix + key: value for key, value in part.items()} for name, part in sections.items()}
    return content | {"opt": {"state": {}, "param_groups": []}, "scaler": None, "epoch": 300, "lr": 1e-6}


@pytest.fixture
def published() -> type[Published]:
    return Published


@pytest.fixture
def make() -> Callable[..., dict]:
    return make_published


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    def to_file(content: object, name: str = "checkpoint.pth.tar") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return to_file


@pytest.fixture
def trace() -> Path:
    return TRACE
