"""LPIPS, a learnt distance of pictures (arXiv 1801.03924): VGG16's features, weighed by linear heads.

Weights are read from local files: the heads come with torchmetrics, VGG16's are torchvision's. B images of S
by S pixels, C channels, H by W positions.
"""

from pathlib import Path

import torch
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
_CHANNELS = (64, 128, 256, 512, 512)
"""Channels of these outputs."""
_SHIFT = (-0.030, -0.088, -0.188)
"""ImageNet's mean, for images of -1 to 1."""
_SCALE = (0.458, 0.448, 0.450)
"""ImageNet's standard deviation, for images of -1 to 1."""
_ELSEWHERE = "name a copy in train.perceptual.backbone, or set train.perceptual=none"
"""What to do without torchvision's own file."""
_EPSILON = 1e-8
"""Constant that keeps the norm of features above 0."""


class Lpips(nn.Module):
    """Mean distance of pairs of images of -1 to 1, at least 0.

    The network is frozen, and its gradient goes to the first images only.
    """

    shift: Float[Tensor, "3 1 1"]
    scale: Float[Tensor, "3 1 1"]

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*vgg16_layers(_TAPS[-1] + 1))
        self.heads = nn.ParameterList(torch.empty(1, channels, 1, 1) for channels in _CHANNELS)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(
        self, images: Float[Tensor, "B 3 S S"], originals: Float[Tensor, "B 3 S S"]
    ) -> Float[Tensor, ""]:
        """Return the distance, summed over layers, mean over images."""
        return self.per_image(images, originals).mean()

    def per_image(
        self, images: Float[Tensor, "B 3 S T"], originals: Float[Tensor, "B 3 S T"]
    ) -> Float[Tensor, " B"]:
        """Return the distance of each image of -1 to 1, summed over layers (arXiv 1801.03924, eq. 1)."""
        with torch.no_grad():
            original_features = self._features(originals)
        distances = []
        for head, features, expected in zip(
            self.heads, self._features(images), original_features, strict=True
        ):
            difference = (_unit(features) - _unit(expected)).square()
            distances.append((head * difference).sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(distances).sum(dim=0)

    def _features(self, images: Float[Tensor, "B 3 S T"]) -> list[Float[Tensor, "B C H W"]]:
        """Return the outputs of the layers of `_TAPS`."""
        hidden = (images - self.shift) / self.scale
        taps = []
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in _TAPS:
                taps.append(hidden)
        return taps


def _unit(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Scale the features of each position to length one, over channels."""
    features = features.float()
    return features / (features.square().sum(dim=1, keepdim=True) + _EPSILON).sqrt()


def load_lpips(backbone: str | Path | None = None, heads: str | Path | None = None) -> Lpips:
    """Read the weights; without paths, from torchvision's cache and from torchmetrics.

    Raises MissingWeightsError if a file is missing, or holds something else.
    """
    network = Lpips()
    backbone = Path(backbone) if backbone else cached_vgg16("LPIPS", _ELSEWHERE)
    heads = Path(heads) if heads else _shipped_heads()
    given: dict[str, Tensor] = {}
    for name, tensor in read_tensors("LPIPS", backbone, "features.").items():
        given[f"features.{name}"] = tensor
    for index in range(len(_CHANNELS)):
        head = read_tensors("LPIPS", heads, f"lin{index}.model.1.")
        if "weight" in head:
            given[f"heads.{index}"] = head["weight"]
    load_given("LPIPS", network, given, backbone, heads)
    return network


def _shipped_heads() -> Path:
    """Return torchmetrics' own file; torchmetrics itself is not imported."""
    return shipped_with_torchmetrics("lpips_models/vgg.pth")
