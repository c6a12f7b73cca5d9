"""Doubles a grid's side by nearest neighbours and a 3x3 convolution, without convolving numbers four times.

Of the nine positions under a kernel on the doubled grid, several hold the same number: only two by two
differ, and which ones depends on the position's parity alone. So each of the four parities (phases) is a 2x2
convolution on the small grid, with sums of the kernel's weights. That is 16 products for every small position
instead of 36, and the same result but for rounding. tests/model/tokenizer/test_upsample.py compares it with
the plain doubling and convolution.

B images, I input and O output channels, H by W positions, T by U = 2H by 2W.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def upsample_conv(
    grid: Float[Tensor, "B I H W"], weight: Float[Tensor, "O I 3 3"], bias: Float[Tensor, " O"]
) -> Float[Tensor, "B O T U"]:
    """Return the doubled grid's 3x3 convolution, with zeros around it."""
    height, width = grid.shape[2:]
    # A zero around the grid, as the 3x3 convolution has around the doubled one: there, a phase sees one row
    # of it.
    padded = F.pad(grid, (1, 1, 1, 1))
    rows = []
    for y in (0, 1):
        phases = []
        for x in (0, 1):
            window = padded[:, :, y : y + height + 1, x : x + width + 1]
            phases.append(F.conv2d(window, _folded(weight, y, x), bias))
        rows.append(_interleaved(phases, dim=3))
    return _interleaved(rows, dim=2)


def _interleaved(grids: list[Float[Tensor, "B O _ _"]], dim: int) -> Float[Tensor, "B O _ _"]:
    """Take positions along a dimension from each grid in turn; the result has the grids' memory format."""
    if grids[0].is_contiguous():
        return torch.stack(grids, dim=dim + 1).flatten(dim, dim + 1)
    # Channels stay last: the dimension has moved by one.
    channels_last = [grid.movedim(1, 3) for grid in grids]
    return torch.stack(channels_last, dim=dim).flatten(dim - 1, dim).movedim(3, 1)


def _folded(weight: Float[Tensor, "O I 3 3"], y: int, x: int) -> Float[Tensor, "O I 2 2"]:
    """Return the 2x2 kernel of a phase: weights that fall on one small position are added up."""
    return _fold_pair(_fold_pair(weight, dim=2, odd=y == 1), dim=3, odd=x == 1)


def _fold_pair(weight: Float[Tensor, "O I _ _"], *, dim: int, odd: bool) -> Float[Tensor, "O I _ _"]:
    """Add up two neighbours of three along a dimension: the first two if `odd`, else the last two."""
    first, middle, last = weight.unbind(dim)
    if odd:
        return torch.stack([first + middle, last], dim=dim)
    return torch.stack([first, middle + last], dim=dim)
