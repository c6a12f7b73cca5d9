"""The patch discriminator and its losses, as in the released DualToken code (from VQGAN, arXiv 2012.09841).

GroupNorm where VQGAN has BatchNorm: no running statistics, and a score depends on its own image only. B
images of S by S pixels, I input and O output channels, H by W positions, T by U after a stride, P by Q
patches.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.group_norm import GroupNorm

_GROUPS = 32
"""Groups of each GroupNorm."""
_SLOPE = 0.2
"""Slope of the leaky ReLU below 0."""


class PatchDiscriminator(nn.Module):
    """Scores each patch of an image: high for photographs, low for reconstructions.

    It has 1.73 M parameters at width 64.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(
            _Block(width, 2 * width, stride=2),
            _Block(2 * width, 4 * width, stride=2),
            _Block(4 * width, 8 * width, stride=1),
        )
        self.conv_out = nn.Conv2d(8 * width, 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 1 P Q"]:
        """Return a score per patch of 8 by 8 pixels, of images of -1 to 1."""
        return self.conv_out(self.blocks(F.leaky_relu(self.conv_in(images), _SLOPE)))


class _Block(nn.Module):
    """A convolution beside a skip, which is shrunk where the convolution has a stride."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.norm = GroupNorm(_GROUPS, in_channels, eps=1e-6)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O T U"]:
        hidden = self.conv(F.leaky_relu(self.norm(grid), _SLOPE))
        if hidden.shape[2:] != grid.shape[2:]:
            grid = F.interpolate(grid, size=hidden.shape[2:], mode="bilinear", align_corners=False)
        return self.skip(grid) + hidden


def generator_loss(fake: Float[Tensor, "B 1 P Q"]) -> Float[Tensor, ""]:
    """Return the loss that the tokenizer minimises: minus the mean score of reconstructions."""
    return -fake.float().mean()


def discriminator_loss(real: Float[Tensor, "B 1 P Q"], fake: Float[Tensor, "B 1 P Q"]) -> Float[Tensor, ""]:
    """Return the hinge loss, leaky beyond its margin: it never saturates, and so may fall below 0."""
    real_loss = F.leaky_relu(1 - real.float()).mean()
    fake_loss = F.leaky_relu(1 + fake.float()).mean()
    return 0.5 * (real_loss + fake_loss)
