"""Features of images for Fréchet distances, by a network whose weights are a file; nothing is downloaded.

B images of S by S pixels, R by R of them as the network sees them, D channels, N tokens.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dualtoken.infra.scratch import scratch_folder
from dualtoken.model.training.vgg16 import MissingWeightsError, read_tensors
from dualtoken.model.vision.imports import vision_imports
from dualtoken.pipelines.config.evaluation import AnyFeatures, TimmFeatures
from dualtoken.pipelines.errors import UserError

with vision_imports():
    from timm.models import create_model, is_model, list_models

Levels = UInt8[Tensor, "B 3 S S"]
ORIGINALS = "rows_features_originals"
"""State with the features of a unit's images, float32."""
RECONSTRUCTIONS = "rows_features_reconstructions"
_FIDELITY = "torch_fidelity.feature_extractor_inceptionv3"
_FIDELITY_LAYER = "2048"
"""torch-fidelity's name of the features that FID is made from, those before the last layer."""


class FeatureNetwork:
    """A feature network on a device, in float32."""

    def __init__(self, features: AnyFeatures, device: torch.device) -> None:
        """Open the network; raises `UserError` where it is unknown, or the file does not fit it."""
        self._file = features.file
        self._device = device
        tensors = _tensors(features)
        network = (
            _Timm(features, tensors)
            if isinstance(features, TimmFeatures)
            else _inception(features.file, tensors)
        )
        self._network = network.eval().to(device)

    @torch.no_grad()
    def __call__(self, images: Levels) -> Float[Tensor, "B D"]:
        """Return the features of images, on the CPU."""
        (features,) = self._network(images.to(self._device))
        if not features.isfinite().all():
            raise UserError(f"protocols: features.file={self._file} gives no finite numbers: name another")
        return features.float().cpu()

    def states(self, originals: Levels, reconstructions: Levels, size: int) -> dict[str, Tensor]:
        """Return what a unit keeps of a batch of images as they are compared; the first `size` count."""
        return {ORIGINALS: self(originals)[:size], RECONSTRUCTIONS: self(reconstructions)[:size]}


def feature_width(features: AnyFeatures) -> int:
    """Return the number of channels of a network.

    It is opened on the CPU, and sees an image: so all that can be wrong with it raises `UserError` here.
    """
    network = FeatureNetwork(features, torch.device("cpu"))
    try:
        return network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[1]
    except (AssertionError, RuntimeError, TypeError) as error:
        assert isinstance(features, TimmFeatures), "torch-fidelity takes images of any size"
        raise UserError(
            f"protocols: features.image_size={features.image_size}: {features.model} takes no such images "
            f"({_first_line(error)}): set its own size"
        ) from None


def require_enough_images(protocol_name: str, set_name: str, num_images: int, width: int) -> None:
    """Raise `UserError` unless a set has more images than a network has channels."""
    if num_images <= width:
        raise UserError(
            f"protocols.{protocol_name}.metrics: fd needs more images than the {width} channels of its "
            f"network, and the set {set_name} has {num_images}: give more, or leave it out"
        )


class _Timm(nn.Module):
    """An architecture of timm's, from levels to pooled features."""

    def __init__(self, features: TimmFeatures, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._features = features
        self._network: Any = _created(features.model)
        _load(self._network, tensors, features)
        self._resize_positions()
        if features.pool == "cls" and getattr(self._network, "cls_token", None) is None:
            raise UserError(
                f"protocols: features.pool=cls: {features.model} has no class token: set it to avg"
            )

    def _resize_positions(self) -> None:
        """Make a network of a fixed size take images of ours; its weights are loaded before."""
        if not hasattr(self._network, "set_input_size"):
            return
        size = self._features.image_size
        try:
            self._network.set_input_size(img_size=(size, size))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"protocols: features.image_size={size}: {self._features.model} takes no such images "
                f"({_first_line(error)}): set its own size"
            ) from None

    def forward(self, images: Levels) -> tuple[Float[Tensor, "B D"]]:
        """Return pooled features."""
        return (self._pooled(self._network.forward_features(self._seen(images))),)

    def _seen(self, images: Levels) -> Float[Tensor, "B 3 R R"]:
        """Return images as the network sees them."""
        seen = resized(images, self._features)
        mean = seen.new_tensor(self._features.mean).view(3, 1, 1)
        std = seen.new_tensor(self._features.std).view(3, 1, 1)
        return (seen - mean) / std

    def _pooled(self, found: Tensor) -> Float[Tensor, "B D"]:
        """Return one vector an image of positions: channels first or last, or tokens."""
        if found.ndim == 4:
            is_last = getattr(self._network, "output_fmt", "NCHW") == "NHWC"
            return found.mean(dim=(1, 2) if is_last else (2, 3))
        if found.ndim != 3:
            raise UserError(
                f"protocols: features.model={self._features.model} gives neither tokens nor positions, but "
                f"{found.ndim} dimensions: set another"
            )
        if self._features.pool == "cls":
            return found[:, 0]
        has_class_token = getattr(self._network, "cls_token", None) is not None
        num_prefix_tokens = getattr(self._network, "num_prefix_tokens", int(has_class_token))
        return found[:, num_prefix_tokens:].mean(dim=1)


def resized(images: Levels, features: TimmFeatures) -> Float[Tensor, "B 3 R R"]:
    """Return images of 0 to 1 at a network's size, not rounded."""
    size = features.image_size
    values = images.float() / 255
    if images.shape[-1] == size:
        return values
    values = F.interpolate(
        values,
        (size, size),
        mode=features.interpolation,
        align_corners=False,
        antialias=features.antialias,
    )
    return values.clamp(0, 1) if features.clamp else values


def _created(model: str) -> nn.Module:
    """Return an architecture of timm's with weights of no meaning."""
    name = model.partition(".")[0]
    if not is_model(name):
        close = difflib.get_close_matches(name, list_models(), n=1)
        hint = f"did you mean {close[0]}?" if close else "set one of timm.list_models()"
        raise UserError(f"protocols: features.model={model} is unknown to timm: {hint}")
    try:
        return create_model(model, pretrained=False)
    except RuntimeError as error:  # an unknown tag
        raise UserError(f"protocols: features.model={model}: {_first_line(error)}") from None


def _tensors(features: AnyFeatures) -> Mapping[str, Tensor]:
    """Return the tensors of a network's file."""
    try:
        return read_tensors("features", Path(features.file), "")
    except MissingWeightsError as error:
        raise UserError(f"protocols: features.file: {error}") from None


def _load(network: nn.Module, tensors: Mapping[str, Tensor], features: TimmFeatures) -> None:
    """Load a network's weights, all of them and no others."""
    expected = network.state_dict()
    for name, value in expected.items():
        if name in tensors and tensors[name].shape != value.shape:
            raise UserError(
                f"protocols: features.file={features.file} has {name} of shape {tuple(tensors[name].shape)}, "
                f"and {features.model} {tuple(value.shape)}: name the file of that architecture"
            )
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    for problem, names in (("has no", missing), ("has, beside its weights,", unexpected)):
        if names:
            raise UserError(
                f"protocols: features.file={features.file} {problem} {names[0]}, unlike {features.model}: "
                "name the file of that architecture"
            )


def _inception(weights: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return torch-fidelity's Inception, from levels to a tuple of features."""
    if importlib.util.find_spec(_FIDELITY.partition(".")[0]) is None:
        raise UserError("protocols: features.kind=torch_fidelity needs it: pip install torch-fidelity")
    with vision_imports():
        module = importlib.import_module(_FIDELITY)
    with scratch_folder() as scratch:
        # torch-fidelity would run what a file of pickles says, so it gets a file with nothing but tensors.
        file = Path(scratch) / "inception.pth"
        torch.save(dict(tensors), file)
        try:
            return module.FeatureExtractorInceptionV3(
                "inception", [_FIDELITY_LAYER], feature_extractor_weights_path=str(file)
            )
        except RuntimeError:
            raise UserError(
                f"protocols: features.file={weights} holds no Inception as torch-fidelity saves it: name its "
                "weights-inception-2015-12-05-6726825d.pth"
            ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip(". ")
