"""Masks: fair, batch-invariant, never hanging, and the published sampler where asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openjepa.grid import TokenGrid
from openjepa.masking import MultiBlockMasking
from openjepa.masks import Masks, MultiBlockConfig

GRIDS = [(8, 8), (14, 14), (7, 10), (4, 6, 5), (40,)]
SHAPES = ["fixed", "packed"]
STATISTICS = json.loads((Path(__file__).parent / "parity" / "mask_stats.json").read_text())


def cover(masks: Masks, size: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each position is context and target, per image."""
    valid = masks.context_valid
    context = torch.bincount(masks.context[valid], minlength=size).numpy() / len(masks.context)
    return context, torch.bincount(masks.targets.flatten(), minlength=size).numpy() / len(masks.context)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_position_is_reached_by_context_and_targets(grid, shape):
    tokens = TokenGrid(grid)
    context, targets = cover(MultiBlockMasking(tokens, MultiBlockConfig(shape=shape))(np.arange(4000), 0), tokens.size)
    assert context.min() > 0.01
    assert targets.min() > 0.005
    # Fair: a position and its mirror image on every axis are drawn equally often.
    for axis in range(len(grid)):
        for count in (context, targets):
            mirrored = np.flip(count.reshape(grid), axis).ravel()
            assert np.abs(count - mirrored).max() < 6 * np.sqrt(4 * count.max() / 4000)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grid", GRIDS)
def test_sets_are_sound(grid, shape):
    masking = MultiBlockMasking(TokenGrid(grid), MultiBlockConfig(shape=shape))
    masks = masking(np.arange(300), 5)
    assert masks.targets.shape == (300, 4, masking.target_tokens)
    valid = masks.context_valid
    if shape == "fixed":
        assert masks.context.shape == (300, masking.context_tokens)
    else:
        assert valid.sum(1).unique().numel() > 3
    for context, keep, blocks in zip(masks.context, valid, masks.targets, strict=True):
        seen = context[keep].tolist()
        assert len(set(seen)) == len(seen) > 0
        assert not set(seen) & set(blocks.flatten().tolist())
        assert all(len(set(block.tolist())) == masking.target_tokens for block in blocks)


def test_a_share_of_the_grid_bounds_the_context_and_every_position_is_still_seen():
    masking = MultiBlockMasking(TokenGrid((7, 7)), MultiBlockConfig(context_share=0.25))
    assert masking.context_tokens == 12
    assert MultiBlockMasking(TokenGrid((7, 7)), MultiBlockConfig(context_share=0.9)).context_tokens == 21
    counts = np.bincount(masking(np.arange(2000), 0).context.flatten(), minlength=49)
    assert counts.min() > 0.2 * counts.max()
    with pytest.raises(ValueError, match=r"context_share.*got 0\.0"):
        MultiBlockConfig(context_share=0.0)


def test_targets_lie_in_blocks_of_the_asked_size():
    masking = MultiBlockMasking(TokenGrid((14, 14)))
    masks = masking(np.arange(500), 0)
    rows, columns = masks.targets // 14, masks.targets % 14
    height = rows.amax(-1) - rows.amin(-1) + 1
    width = columns.amax(-1) - columns.amin(-1) + 1
    area = (height * width).float()
    assert area.max() <= 0.2 * 196 * 1.15  # rounding to whole tokens
    assert (height.float() / width).min() > 0.5
    assert (height.float() / width).max() < 2.2
    assert len({(int(h), int(w)) for h, w in zip(height.flatten(), width.flatten(), strict=True)}) > 6


@pytest.mark.parametrize("shape", SHAPES)
def test_a_samples_mask_is_its_own_whatever_the_batch(shape):
    masking = MultiBlockMasking(TokenGrid((7, 10)), MultiBlockConfig(shape=shape, contexts=2), seed=3)
    together = masking(np.arange(64), 9)
    for sample in (0, 17, 63):
        alone = masking(torch.tensor([sample]), 9)
        rows = together.rows(2 * sample, 2 * sample + 2)
        assert torch.equal(alone.targets, rows.targets)
        assert alone.keys is not None
        assert torch.equal(alone.keys, rows.keys)
        for row in range(2):
            keep = rows.context_valid[row]
            keep_alone = alone.context_valid[row]
            assert torch.equal(alone.context[row][keep_alone], rows.context[row][keep])
    other = [MultiBlockMasking(TokenGrid((7, 10)), MultiBlockConfig(shape=shape, contexts=2), seed=s) for s in (3, 4)]
    assert torch.equal(other[0](np.arange(64), 9).targets, together.targets)
    assert not torch.equal(other[1](np.arange(64), 9).targets, together.targets)
    assert not torch.equal(other[0](np.arange(64), 10).targets, together.targets)
    drawn = [together.keys, other[1](np.arange(64), 9).keys, other[0](np.arange(64), 10).keys]
    assert len(set(torch.cat(drawn).tolist())) == 3 * 2 * 64, "a number for each row, of every seed and step"


def test_a_clip_of_one_frame_has_the_masks_of_the_image():
    flat, clip = (MultiBlockMasking(TokenGrid(shape))(np.arange(50), 2) for shape in ((9, 8), (1, 9, 8)))
    assert torch.equal(flat.context, clip.context)
    assert torch.equal(flat.targets, clip.targets)


def test_overlap_is_allowed_on_request():
    masking = MultiBlockMasking(TokenGrid((8, 8)), MultiBlockConfig(allow_overlap=True))
    masks = masking(np.arange(100), 0)
    assert masking.context_tokens > 45
    shared = [
        len(set(c.tolist()) & set(t.flatten().tolist())) for c, t in zip(masks.context, masks.targets, strict=True)
    ]
    assert min(shared) > 0


@pytest.mark.parametrize("grid", [(2, 2), (1, 3), (3, 3), (5,), (2, 2, 2)])
def test_tiny_grids_work(grid):
    masks = MultiBlockMasking(TokenGrid(grid), MultiBlockConfig(targets=2))(np.arange(64), 0)
    assert masks.context.numel() > 0
    assert masks.targets.numel() > 0


def test_the_impossible_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"context_tokens=40.*\(8, 8\) \(64 tokens\).*at most \d+"):
        MultiBlockMasking(TokenGrid((8, 8)), MultiBlockConfig(context_tokens=40))
    with pytest.raises(ValueError, match=r"no context is left.*\(4, 4\).*scale \(1.0, 1.0\)"):
        MultiBlockMasking(TokenGrid((4, 4)), MultiBlockConfig(target_scale=(1.0, 1.0)))
    with pytest.raises(ValueError, match=r"loop for ever.*\(8, 8\).*9 tokens.*min_keep=10"):
        MultiBlockMasking(TokenGrid((8, 8)), MultiBlockConfig(shape="reference"))
    with pytest.raises(ValueError, match="2-D sampler"):
        MultiBlockMasking(TokenGrid((4, 8, 8)), MultiBlockConfig(shape="reference"))
    with pytest.raises(ValueError, match="target_scale"):
        MultiBlockConfig(target_scale=(0.3, 0.2))
    with pytest.raises(ValueError, match="at least one target"):
        MultiBlockConfig(targets=0)


@pytest.mark.parametrize("name", list(STATISTICS))
def test_reference_reproduces_the_recorded_statistics(name):
    expected = STATISTICS[name]
    side, draws = expected["grid"], 400
    config = MultiBlockConfig(shape="reference", min_keep=8 if side == 8 else 10)
    masking = MultiBlockMasking(TokenGrid((side, side)), config)
    context, targets = np.zeros(side * side), np.zeros(side * side)
    lengths, sizes = [], []
    for image in range(3 * draws):
        masks = masking(np.array([image]), 0)
        np.add.at(context, masks.context.numpy().ravel(), 1)
        np.add.at(targets, masks.targets.numpy().ravel(), 1)
        lengths.append(masks.context.shape[1])
        sizes.append(masks.targets.shape[2])
    for found, key in ((context, "context_cover"), (targets, "target_cover")):
        found, recorded = found / (3 * draws), np.asarray(expected[key])
        assert np.array_equal(found == 0, recorded == 0)
        spread = np.sqrt(np.maximum(recorded, 0.02) * (1 / draws + 1 / (3 * draws)))  # of a count, at most
        assert (np.abs(found - recorded) < 5 * spread).all()
    assert (min(sizes), max(sizes)) == (expected["min_target"], expected["max_target"])
    assert abs(np.mean(sizes) - expected["mean_target_tokens"]) < 5 * np.std(sizes) / np.sqrt(draws)
    assert abs(np.mean(lengths) - expected["mean_context_tokens_batch1"]) < 5 * np.std(lengths) / np.sqrt(draws)
    for batch, recorded in expected["mean_context_tokens_after_truncation"].items():
        cut = [masking(np.arange(int(batch)) + int(batch) * i, 1).context.shape[1] for i in range(40)]
        assert abs(np.mean(cut) - recorded) < 4 * np.std(cut) * np.sqrt(1 / 40 + 1 / 30)


def test_reference_shares_targets_between_contexts_and_keeps_its_promises():
    config = MultiBlockConfig(shape="reference", contexts=2, context_scale=(0.5, 0.6), min_keep=3)
    masks = MultiBlockMasking(TokenGrid((9, 9)), config)(np.arange(20), 0)
    assert len(masks.context) == 40
    assert torch.equal(masks.targets[0::2], masks.targets[1::2])
    assert not torch.equal(masks.context[0::2], masks.context[1::2])
    assert masks.context.shape[1] > 3
    overlapping = MultiBlockMasking(
        TokenGrid((6, 6)), MultiBlockConfig(shape="reference", min_keep=3, allow_overlap=True)
    )
    assert overlapping(np.arange(20), 0).context.shape[1] >= 25
