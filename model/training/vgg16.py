"""VGG16 and the weights of the perceptual networks on it, from local files: safetensors or torch's own.

torch's files are read as tensors alone, `weights_only`; the network is not used.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from torchvision.models import VGG16_Weights
    from torchvision.models.vgg import cfgs, make_layers


class MissingWeightsError(ValueError):
    """A file of weights is missing, or holds something else."""


def vgg16_layers(num_layers: int) -> list[nn.Module]:
    """Return the first of VGG16's convolutions, ReLUs and poolings, in torchvision's order."""
    return list(make_layers(cfgs["D"]))[:num_layers]


def read_tensors(network: str, file: Path, prefix: str) -> Mapping[str, Tensor]:
    """Return the tensors of a file that begin with a prefix, named without it.

    `network` names in errors whose weights they are. Raises MissingWeightsError if the file is missing, or no
    file of weights.
    """
    if not file.is_file():
        raise MissingWeightsError(
            f"{network} has no weights at {file}: put them there, or name the file that has them"
        )
    found: dict[str, Tensor] = {}
    for name, tensor in _tensors(file).items():
        if isinstance(name, str) and isinstance(tensor, Tensor) and name.startswith(prefix):
            found[name.removeprefix(prefix)] = tensor
    return found


def _tensors(file: Path) -> Mapping[Any, object]:
    """Return what a file of weights names; nothing where it names nothing."""
    try:
        # It reads safetensors, too, by the file's name.
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  (torch raises many kinds of errors here)
        raise MissingWeightsError(f"{file} cannot be read as weights alone: {type(error).__name__}") from None
    return state if isinstance(state, dict) else {}


def load_given(
    network: str, module: nn.Module, given: Mapping[str, Tensor], backbone: Path, heads: Path
) -> None:
    """Load weights by name: VGG16's begin with `features.`, all others are of the heads.

    Raises MissingWeightsError if one is missing or has another shape, and names the file that should have it.
    """
    for name, expected in module.state_dict().items():
        if name not in given or given[name].shape != expected.shape:
            file = backbone if name.startswith("features.") else heads
            raise MissingWeightsError(
                f"{file} holds no {name} of shape {tuple(expected.shape)}: "
                f"name a file of {network}' VGG16 weights"
            )
    module.load_state_dict({name: given[name] for name in module.state_dict()})


def cached_vgg16(network: str, elsewhere: str) -> Path:
    """Return torchvision's own file of VGG16, checked against the hash that its name carries.

    `elsewhere` says in errors what else can be done.
    """
    url = VGG16_Weights.IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise MissingWeightsError(
            f"{network} has no VGG16 weights at {file}: download {url} to there, or {elsewhere}"
        )
    expected = file.stem.rpartition("-")[2]
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(expected):
        raise MissingWeightsError(
            f"{file} is damaged, its SHA-256 does not begin with {expected}: download {url} again"
        )
    return file


def shipped_with_torchmetrics(name: str) -> Path:
    """Return a file of torchmetrics' image metrics; torchmetrics itself is not imported."""
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "functional" / "image" / name
