"""DISTS, a learnt distance of pictures that forgives resampled texture (arXiv 2004.07728).

It compares means and variances of VGG16's features and of the pictures, over whole channels. Weights are read
from local files: the heads come with torchmetrics, VGG16's are torchvision's. B images of H by W pixels, C
channels, P by Q positions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.training.vgg16 import (
    cached_vgg16,
    load_given,
    read_tensors,
    shipped_with_torchmetrics,
    vgg16_layers,
)

_TAPS = (3, 8, 15, 22, 29)
"""Layers of VGG16's features whose outputs are compared: the last ReLU before each pooling."""
_CHANNELS = (3, 64, 128, 256, 512, 512)
"""Channels of the picture and of these outputs."""
_MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean, for images of 0 to 1."""
_DEVIATION = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation, for images of 0 to 1."""
_STABLE = 1e-6
"""Constant that keeps the comparisons of means and of variances finite (c1 and c2 of the paper)."""
_POOL_EPSILON = 1e-12
"""Constant that keeps the root of a pooled square from having an endless slope."""


class Dists(nn.Module):
    """Distance of each of some pairs of images of -1 to 1: 0 for equal ones, and about 1 at most.

    Its authors bring the shorter side of an image to 256 pixels beforehand. The network is frozen.
    """

    mean: Float[Tensor, "3 1 1"]
    deviation: Float[Tensor, "3 1 1"]

    def __init__(self) -> None:
        super().__init__()
        layers = vgg16_layers(_TAPS[-1] + 1)
        self.features = nn.Sequential(
            *(_L2Pool() if isinstance(layer, nn.MaxPool2d) else layer for layer in layers)
        )
        self.alpha = nn.Parameter(torch.empty(1, sum(_CHANNELS), 1, 1))
        self.beta = nn.Parameter(torch.empty(1, sum(_CHANNELS), 1, 1))
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(
        self, images: Float[Tensor, "B 3 H W"], originals: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Return 1 less the weighed similarities of texture and of structure (eq. 5 to 7 of the paper)."""
        texture_weights = self.alpha[0, :, 0, 0].split(_CHANNELS)
        structure_weights = self.beta[0, :, 0, 0].split(_CHANNELS)
        distance = images.new_zeros(len(images))
        levels = zip(self._features(images), self._features(originals), strict=True)
        for level, (features, expected) in enumerate(levels):
            texture, structure = _compare(features, expected)
            distance = distance + texture @ texture_weights[level] + structure @ structure_weights[level]
        return distance / (self.alpha.sum() + self.beta.sum())

    def _features(self, images: Float[Tensor, "B 3 H W"]) -> Sequence[Float[Tensor, "B C P Q"]]:
        """Return the images of 0 to 1, and the outputs of the layers of `_TAPS`."""
        levels = (images + 1) / 2
        hidden = (levels - self.mean) / self.deviation
        found = [levels]
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in _TAPS:
                found.append(hidden)
        return found


class _Unlikeness(NamedTuple):
    """How unlike each channel of two images is: 0 for equal ones, at most 2."""

    texture: Float[Tensor, "B C"]
    """Of the means."""
    structure: Float[Tensor, "B C"]
    """Of the variances and the covariance."""


def _compare(x: Float[Tensor, "B C P Q"], y: Float[Tensor, "B C P Q"]) -> _Unlikeness:
    """Compare the features of a layer."""
    mean_x = x.mean(dim=(2, 3))
    mean_y = y.mean(dim=(2, 3))
    # Centred first, so that equal images are at no distance: the authors subtract products of means.
    centred_x = x - mean_x[..., None, None]
    centred_y = y - mean_y[..., None, None]
    covariance = (centred_x * centred_y).mean(dim=(2, 3))
    variances = (centred_x.square() + centred_y.square()).mean(dim=(2, 3))
    return _Unlikeness(
        texture=_unlike(mean_x * mean_y, mean_x.square() + mean_y.square()),
        structure=_unlike(covariance, variances),
    )


def _unlike(product: Float[Tensor, "B C"], squares: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Return 1 less the similarity of two numbers, from their product and the sum of their squares."""
    return 1 - (2 * product + _STABLE) / (squares + _STABLE)


class _L2Pool(nn.Module):
    """Halves height and width by the root of the mean square, in a Hann window (eq. 4 of the paper)."""

    def forward(self, hidden: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C P Q"]:
        """Pool each channel."""
        bell = hidden.new_tensor((0.25, 0.5, 0.25))
        channels = hidden.shape[1]
        window = (bell[:, None] * bell).expand(channels, 1, -1, -1)
        squares = F.conv2d(hidden.square(), window, stride=2, padding=1, groups=channels)
        return (squares + _POOL_EPSILON).sqrt()


def load_dists(backbone: str | Path | None = None, heads: str | Path | None = None) -> Dists:
    """Read the weights; without paths, from torchvision's cache and from torchmetrics.

    Files are safetensors or torch's own. `heads` holds `alpha` and `beta`, 12 kB, as `DISTS-pytorch` ships
    them. Raises MissingWeightsError if a file is missing, or holds something else.
    """
    network = Dists()
    backbone = Path(backbone) if backbone else cached_vgg16("DISTS", "name a copy of it")
    heads = Path(heads) if heads else shipped_with_torchmetrics("dists_models/weights.pt")
    given: dict[str, Tensor] = {}
    for name, tensor in read_tensors("DISTS", backbone, "features.").items():
        given[f"features.{name}"] = tensor
    given |= read_tensors("DISTS", heads, "")
    load_given("DISTS", network, given, backbone, heads)
    return network
