"""LPIPS, a learnt distance of pictures (arXiv 1801.03924): VGG16's features, weighed by linear heads.

Weights are read from local files: the heads come with torchmetrics, VGG16's are torchvision's. B images of S
by S pixels, C channels, H by W positions.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from torchvision.models import VGG16_Weights
    from torchvision.models.vgg import cfgs, make_layers

_TAPS = (3, 8, 15, 22, 29)
"""Layers of VGG16's features whose outputs are compared: the last ReLU before each pooling."""
_CHANNELS = (64, 128, 256, 512, 512)
"""Channels of these outputs."""
_SHIFT = (-0.030, -0.088, -0.188)
"""ImageNet's mean, for images of -1 to 1."""
_SCALE = (0.458, 0.448, 0.450)
"""ImageNet's standard deviation, for images of -1 to 1."""
_EPSILON = 1e-8
"""Constant that keeps the norm of features above 0."""


class MissingWeightsError(ValueError):
    """A file of weights is missing, or holds something else."""


class Lpips(nn.Module):
    """Mean distance of pairs of images of -1 to 1, at least 0.

    The network is frozen, and its gradient goes to the first images only.
    """

    shift: Float[Tensor, "3 1 1"]
    scale: Float[Tensor, "3 1 1"]

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(make_layers(cfgs["D"]))[: _TAPS[-1] + 1])
        self.heads = nn.ParameterList(torch.empty(1, channels, 1, 1) for channels in _CHANNELS)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(
        self, images: Float[Tensor, "B 3 S S"], originals: Float[Tensor, "B 3 S S"]
    ) -> Float[Tensor, ""]:
        """Return the distance, summed over layers, mean over images."""
        with torch.no_grad():
            original_features = self._features(originals)
        distances = []
        for head, features, expected in zip(
            self.heads, self._features(images), original_features, strict=True
        ):
            difference = (_unit(features) - _unit(expected)).square()
            distances.append((head * difference).sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(distances).sum(dim=0).mean()

    def _features(self, images: Float[Tensor, "B 3 S S"]) -> list[Float[Tensor, "B C H W"]]:
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
    backbone = Path(backbone) if backbone else _cached_backbone()
    heads = Path(heads) if heads else _shipped_heads()
    given: dict[str, Tensor] = {}
    for name, tensor in _read(backbone, "features.").items():
        given[f"features.{name}"] = tensor
    for index in range(len(_CHANNELS)):
        head = _read(heads, f"lin{index}.model.1.")
        if "weight" in head:
            given[f"heads.{index}"] = head["weight"]

    for name, expected in network.state_dict().items():
        if name not in given or given[name].shape != expected.shape:
            file = backbone if name.startswith("features.") else heads
            raise MissingWeightsError(
                f"{file} holds no {name} of shape {tuple(expected.shape)}: "
                "name a file of LPIPS' VGG16 weights"
            )
    network.load_state_dict({name: given[name] for name in network.state_dict()})
    return network


def _read(file: Path, prefix: str) -> Mapping[str, Tensor]:
    """Return the tensors of a checkpoint that begin with a prefix, named without it."""
    if not file.is_file():
        raise MissingWeightsError(
            f"LPIPS has no weights at {file}: put them there, or name the file that has them"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  (torch raises many kinds of errors here)
        raise MissingWeightsError(f"{file} cannot be read as weights alone: {type(error).__name__}") from None
    tensors = state if isinstance(state, dict) else {}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(name, str) and isinstance(tensor, Tensor) and name.startswith(prefix):
            found[name.removeprefix(prefix)] = tensor
    return found


def _cached_backbone() -> Path:
    """Return torchvision's own file, checked against the hash that its name carries."""
    url = VGG16_Weights.IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise MissingWeightsError(
            f"LPIPS has no VGG16 weights at {file}: download {url} to there, "
            "or name a copy in train.perceptual.backbone, or set train.perceptual=none"
        )
    expected = file.stem.rpartition("-")[2]
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(expected):
        raise MissingWeightsError(
            f"{file} is damaged, its SHA-256 does not begin with {expected}: download {url} again"
        )
    return file


def _shipped_heads() -> Path:
    """Return torchmetrics' own file; torchmetrics itself is not imported."""
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "vgg.pth"
