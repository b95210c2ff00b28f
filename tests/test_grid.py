"""Token grids of one, two and three axes."""

import math

import pytest
import torch
import torch.nn.functional as F

from openjepa.grid import TokenGrid, patchify, resample_positions, sincos_positions, take, unpatchify

SIGNALS = [((12,), (3,)), ((8, 12), (4, 3)), ((4, 6, 8), (2, 3, 4))]


@pytest.mark.parametrize(("signal", "patch"), SIGNALS)
def test_patchify_is_the_strided_convolution_and_unpatchify_its_inverse(signal, patch):
    x = torch.randn(2, 3, *signal)
    patches = patchify(x, patch)
    grid = TokenGrid.of(signal, patch)
    assert patches.shape == (2, grid.size, 3 * math.prod(patch))
    assert torch.equal(unpatchify(patches, patch, grid), x)
    kernel = torch.randn(5, 3, *patch)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(signal)]
    expected = convolve(x, kernel, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches @ kernel.flatten(1).T, expected)


def test_coords_are_in_raster_order_and_take_gathers_rows():
    grid = TokenGrid((2, 3))
    assert grid.coords().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    tokens = torch.arange(24.0).view(2, 6, 2)
    index = torch.tensor([[[5, 0]], [[1, 1]]])
    assert take(tokens, index).tolist() == [[[[10, 11], [0, 1]]], [[[14, 15], [14, 15]]]]


def test_grid_refuses_with_the_numbers():
    with pytest.raises(ValueError, match=r"\(30, 32\).*\(4, 4\)"):
        TokenGrid.of((30, 32), (4, 4))
    with pytest.raises(ValueError, match="positive extents"):
        TokenGrid((0, 3))
    with pytest.raises(ValueError, match="2 axes"):
        TokenGrid.of((8, 8), (4,))
    with pytest.raises(ValueError, match="width of 2"):
        sincos_positions(TokenGrid((4, 4)), 2)


def test_positions_follow_the_published_layout():
    table = sincos_positions(TokenGrid((3, 5)), 16)
    row, column = 2, 4
    frequency = 10000 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.cat([f(p * frequency) for p in (column, row) for f in (torch.sin, torch.cos)]).float()
    torch.testing.assert_close(table[row * 5 + column], expected, rtol=0, atol=1e-7)


def test_one_position_on_an_axis_leaves_the_table_of_the_others():
    assert torch.equal(sincos_positions(TokenGrid((1, 6, 5)), 24), sincos_positions(TokenGrid((6, 5)), 24))
    assert torch.equal(sincos_positions(TokenGrid((7, 1)), 24), sincos_positions(TokenGrid((7,)), 24))


@pytest.mark.parametrize("shape", [(40,), (6, 7), (3, 4, 5), (2, 3, 2, 3)])
@pytest.mark.parametrize("width", [24, 32, 50])
def test_every_position_is_distinct_for_any_axes_and_width(shape, width):
    table = sincos_positions(TokenGrid(shape), width)
    assert table.shape == (math.prod(shape), width)
    distances = torch.cdist(table, table) + 9 * torch.eye(len(table))
    assert distances.min() > 1e-3


def test_positions_at_another_size_keep_the_place_in_the_picture():
    native = TokenGrid((4, 6))
    table = sincos_positions(native, 32)
    assert torch.equal(sincos_positions(native, 32, native), table)
    # Thrice as fine: the centre of each native token is the centre of the middle one of its three by three.
    fine = sincos_positions(native, 32, TokenGrid((12, 18))).view(12, 18, 32)
    torch.testing.assert_close(fine[1::3, 1::3].flatten(0, 1), table)
    # Another aspect ratio: only the columns move.
    wide = sincos_positions(native, 32, TokenGrid((4, 18))).view(4, 18, 32)
    torch.testing.assert_close(wide[:, 1::3].flatten(0, 1), table)
    torch.testing.assert_close(wide[..., 16:], table.view(4, 6, 32)[:, :1, 16:].expand(-1, 18, -1))


def test_learned_tables_are_resampled_and_close_to_the_formula_inside():
    native, finer = TokenGrid((12, 12)), TokenGrid((18, 18))
    table = sincos_positions(native, 16)
    assert torch.equal(resample_positions(table, native, native), table)
    smooth = slice(4, 8)  # the slowest frequencies of each part, which a cubic follows
    inner = resample_positions(table, native, finer).view(18, 18, 16)[3:-3, 3:-3, smooth]
    exact = sincos_positions(native, 16, finer).view(18, 18, 16)[3:-3, 3:-3, smooth]
    torch.testing.assert_close(inner[..., 2:], exact[..., 2:], rtol=0, atol=5e-3)
    assert resample_positions(torch.randn(5, 8), TokenGrid((5,)), TokenGrid((9,))).shape == (9, 8)
    assert resample_positions(torch.randn(8, 8), TokenGrid((2, 2, 2)), TokenGrid((1, 3, 4))).shape == (12, 8)
