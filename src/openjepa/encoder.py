"""The two networks that every objective is made of: an encoder of what is seen, a predictor of what is not."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openjepa.errors import InputError
from openjepa.grid import TokenGrid, patchify, resample_positions, sincos_positions, take
from openjepa.kernels import Linear
from openjepa.settings import check_settings
from openjepa.transformer import Stack, initialise


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Architecture of an encoder; the default is ViT-S/16 at 224 px.

    Attributes:
        signal: extents of the native input, without channels (pixels, samples).
        patch: extents of a patch, as many as ``signal`` has.
        channels: channels of the input.
        width: features of a token, D.
        depth: transformer blocks.
        heads: attention heads of a block; they must divide ``width``.
        mlp_ratio: hidden width of the MLP over ``width``.
        qkv_bias: whether the query, key and value projection has a bias.
        norm_eps: epsilon of every LayerNorm.
        positions: ``sincos`` (fixed) or ``learned`` (a table that came with imported weights, kept as it is).
        class_token: a learned token in front of the others, which all attend to and which is no part of the features;
            for imported weights that were trained with one (MAE's).
    """

    signal: tuple[int, ...] = (224, 224)
    patch: tuple[int, ...] = (16, 16)
    channels: int = 3
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    positions: Literal["sincos", "learned"] = "sincos"
    class_token: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        _check_network(self, "an encoder")
        if self.channels < 1:
            raise InputError(f"an encoder reads one channel or more, got channels={self.channels}")

    @property
    def grid(self) -> TokenGrid:
        """The native token grid."""
        return TokenGrid.of(self.signal, self.patch)


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Architecture of a predictor; the default is a small one for ViT-S (I-JEPA uses width 384 for all sizes).

    Attributes:
        width: features of a token inside the predictor.
        depth: transformer blocks.
        heads: attention heads of a block; they must divide ``width``.
        mlp_ratio: hidden width of the MLP over ``width``.
        qkv_bias: whether the query, key and value projection has a bias.
        norm_eps: epsilon of every LayerNorm.
    """

    width: int = 192
    depth: int = 6
    heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_network(self, "a predictor")


def _check_network(config: EncoderConfig | PredictorConfig, what: str) -> None:
    """Refuse a shape that no transformer has."""
    if config.heads < 1 or config.depth < 0 or config.width < 1 or config.width % config.heads:
        raise InputError(
            f"{what} needs a depth of 0 or more and a width that is a multiple of its number of heads, "
            f"got depth {config.depth}, width {config.width} and {config.heads} heads"
        )
    if int(config.width * config.mlp_ratio) < 1 or not config.norm_eps > 0:
        raise InputError(
            f"{what} needs an mlp_ratio and a norm_eps above 0, got mlp_ratio={config.mlp_ratio} (of a width of "
            f"{config.width}) and norm_eps={config.norm_eps}"
        )


class Encoder(nn.Module):
    """A vision transformer: a signal to the features of its tokens, or of those that are kept.

    Source: I-JEPA (Assran et al. 2023), app. A.1; ViT (Dosovitskiy et al. 2021).
    """

    table: Tensor

    def __init__(self, config: EncoderConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        values = config.channels * math.prod(config.patch)
        self.embed = Linear(values, config.width)
        self.stack = Stack(
            config.width,
            config.depth,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            norm_eps=config.norm_eps,
        )
        table = sincos_positions(config.grid, config.width)
        self.register_buffer("table", table, persistent=config.positions == "learned")
        initialise(self, generator)
        # The published 0.02 is for patches of 14x14x3 and more. Smaller ones get larger weights, so that content is as
        # strong beside the positions; with 0.02 a 4x4 grey patch is a sixth of its position, and little else is seen.
        std = 0.02 if values >= 14 * 14 * 3 else 0.02 * math.sqrt(768 / values)
        nn.init.trunc_normal_(self.embed.weight, std=std, generator=generator)
        self.class_token = None
        if config.class_token:
            self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
            nn.init.trunc_normal_(self.class_token, std=0.02, generator=generator)

    def positions(self, grid: TokenGrid) -> Float[Tensor, "N D"]:
        """The position table at ``grid``; other sizes and aspect ratios than the native one are interpolated."""
        native = self.config.grid
        if grid == native:
            return self.table
        if self.config.positions == "learned":
            return resample_positions(self.table, native, grid)
        return sincos_positions(native, self.config.width, grid).to(self.table.device)

    def forward(
        self,
        x: Float[Tensor, "B C *S"],
        keep: Int[Tensor, "B K"] | None = None,
        packed: Int[Tensor, "L"] | None = None,
    ) -> Float[Tensor, "B K D"]:
        """Features after the final norm, of the tokens ``keep`` (None: all, K = N).

        Where images keep different numbers of tokens, ``packed`` are the places of the flattened ``keep``, rising, that
        count: nothing is computed for the others, whose features are zero.

        Raises:
            ValueError: the signal has the wrong channels, its extents are no multiple of the patch, or ``keep`` is of
                another number of images.
        """
        rows, packed = self._rows(x, keep, packed)
        return self._own(self.stack(rows, packed))

    def depths(self, x: Float[Tensor, "B C *S"], until: int | None = None) -> list[Tensor]:
        """The residual stream "B N D" of all tokens before the first block and after each, without the final norm.

        No block is computed beyond number ``until`` (from 1), where given.
        """
        return [self._own(stream) for stream in self.stack.depths(self._rows(x, None, None)[0], until=until)]

    def last_blocks(self, x: Float[Tensor, "B C *S"], count: int) -> list[Float[Tensor, "B N D"]]:
        """The features of all tokens after each of the last ``count`` blocks (all, where there are fewer), each through
        the final norm; the last one is what :meth:`forward` gives. Source: I-JEPA, app. A.2.

        Raises:
            ValueError: a ``count`` below 1.
        """
        if count < 1:
            raise ValueError(f"the last blocks are one or more, got count={count}")
        if count == 1:
            return [self(x)]
        return [self.stack.norm(stream.to(self.stack.norm.weight.dtype)) for stream in self.depths(x)[1:][-count:]]

    def _rows(self, x: Tensor, keep: Tensor | None, packed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the transformer is given, the class token in front where there is one."""
        rows = self.tokens(x, keep)
        if self.class_token is None:
            return rows, packed
        rows = torch.cat([self.class_token.to(rows.dtype).expand(len(rows), -1, -1), rows], 1)
        if packed is not None:
            batch, tokens = rows.shape[:2]
            own = packed + packed // (tokens - 1) + 1
            packed = torch.cat([torch.arange(0, batch * tokens, tokens, device=own.device), own]).sort().values
        return rows, packed

    def _own(self, rows: Tensor) -> Tensor:
        return rows if self.class_token is None else rows[:, 1:]

    def tokens(self, x: Float[Tensor, "B C *S"], keep: Int[Tensor, "B K"] | None = None) -> Float[Tensor, "B K D"]:
        """Embedded patches plus positions, of the tokens ``keep``."""
        if x.ndim != 2 + len(self.config.signal) or x.shape[1] != self.config.channels:
            raise ValueError(
                f"this encoder reads (batch, {self.config.channels} channels, {len(self.config.signal)} axes), "
                f"got a tensor of shape {tuple(x.shape)}"
            )
        if keep is not None and len(keep) != len(x):
            raise ValueError(f"each of {len(x)} images needs its row of tokens to keep, got {len(keep)} rows")
        patches = patchify(x, self.config.patch)
        table = self.positions(TokenGrid.of(x.shape[2:], self.config.patch))
        embedded = self.embed(patches if keep is None else take(patches, keep))
        # In the products' precision: the residual stream of a transformer needs no more, and memory moves are its cost.
        positions = table.to(embedded.dtype).expand(len(x), -1, -1)
        return embedded + (positions if keep is None else take(positions, keep))


class Predictor(nn.Module):
    """A narrow transformer that predicts values at target tokens from the features of context tokens.

    Every target block is predicted on its own: blocks do not see each other (I-JEPA, sec. 3 and app. A.1). With one
    block of all hidden tokens and pixel outputs it is MAE's decoder (He et al. 2022, sec. 3).

    Args:
        grid: the token grid.
        inputs: width of the context features, D.
        outputs: values predicted for a token, O.
    """

    table: Tensor

    def __init__(
        self,
        config: PredictorConfig,
        *,
        grid: TokenGrid,
        inputs: int,
        outputs: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.embed = Linear(inputs, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.stack = Stack(
            config.width,
            config.depth,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            norm_eps=config.norm_eps,
        )
        self.project = Linear(config.width, outputs)
        self.register_buffer("table", sincos_positions(grid, config.width), persistent=False)
        initialise(self, generator)
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)

    def forward(
        self,
        context: Float[Tensor, "B K D"],
        context_at: Int[Tensor, "B K"],
        target_at: Int[Tensor, "B M T"],
        packed: Int[Tensor, "L"] | None = None,
        noise: Float[Tensor, "B M T D"] | None = None,
    ) -> Float[Tensor, "B M T O"]:
        """Predictions for every token of every target block; ``packed`` as :meth:`Encoder.forward` has it.

        ``noise`` is added to the positions that are asked for, through the weights that embed the context.
        """
        batch, blocks, tokens = target_at.shape
        embedded = self.embed(context)
        table = self.table.to(embedded.dtype)
        seen = embedded + table[context_at]
        asked = self.mask_token.to(embedded.dtype) + table[target_at]
        if noise is not None:
            asked = asked + F.linear(noise.to(self.embed.weight.dtype), self.embed.weight)
        rows = torch.cat([seen[:, None].expand(-1, blocks, -1, -1), asked], 2).flatten(0, 1)
        if packed is not None:
            seen_at = packed // context.shape[1] * blocks * rows.shape[1] + packed % context.shape[1]
            each = torch.arange(0, rows.shape[0] * rows.shape[1], rows.shape[1], device=packed.device)
            asked_at = each[:, None] + torch.arange(context.shape[1], rows.shape[1], device=packed.device)
            packed = torch.cat([(seen_at[:, None] + each[:blocks]).flatten(), asked_at.flatten()]).sort().values
        features = self.stack(rows, packed, last=tokens)
        return self.project(features).view(batch, blocks, tokens, -1)

    def reconstruct(self, features: Float[Tensor, "B K D"], at: Int[Tensor, "B K"]) -> Float[Tensor, "B K O"]:
        """Values at the very tokens whose features are given, with no mask tokens: an autoencoder's decoder."""
        embedded = self.embed(features)
        return self.project(self.stack(embedded + self.table.to(embedded.dtype)[at]))
