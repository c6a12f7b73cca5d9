"""How close reconstructions are to their images, by the metrics of a protocol. B images of S by S pixels."""

import io
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor, nn

from dualtoken.infra.digests import digest
from dualtoken.model.metrics.reconstruction import psnr_from, squared_errors
from dualtoken.model.metrics.structural_similarity import ms_ssim, structural_similarity
from dualtoken.model.training.dists import load_dists
from dualtoken.model.training.lpips import load_lpips
from dualtoken.model.training.vgg16 import MissingWeightsError
from dualtoken.model.vision.transform import normalize
from dualtoken.pipelines.config.evaluation import EvaluationProtocol, MetricName, PerceptualWeights
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.text_reading import TextReader, reader_digests

METRICS = ("psnr", "ssim", "ms_ssim", "lpips", "dists", "text_kept")
_WEIGHTS: dict[MetricName, str] = {"lpips": "lpips", "dists": "dists", "fd": "features"}
"""Key of a protocol that names the files with the weights of a metric's network."""
Levels = UInt8[Tensor, "B 3 S S"]


class Closeness:
    """The metrics that compare two images."""

    def __init__(self, protocol: EvaluationProtocol, device: torch.device) -> None:
        self._protocol = protocol
        self._device = device

    def compared(self, images: Levels) -> Levels:
        """Return images as they are compared: as they are, or through the protocol's JPEG."""
        if self._protocol.jpeg_quality is None:
            return images
        return through_jpeg(images, self._protocol.jpeg_quality)

    def values(self, metric: str, images: Levels, originals: Levels) -> np.ndarray[Any, Any]:
        """Return a metric of each image, float64; both are as `compared` returns them.

        NaN where an image has no value: `text_kept` of originals without text.
        """
        if metric == "psnr":
            return psnr_from(squared_errors(images, originals), images[0].numel()).numpy()
        if metric == "ssim":
            return structural_similarity(images, originals).numpy()
        if metric == "ms_ssim":
            return ms_ssim(images, originals).numpy()
        if metric == "text_kept":
            return self._text_kept(images, originals)
        distance = self._lpips.per_image if metric == "lpips" else self._dists
        found: list[float] = []
        # One by one, so that a distance does not depend on the images beside it.
        for image, original in zip(images.to(self._device), originals.to(self._device), strict=True):
            found.append(distance(normalize(image[None]), normalize(original[None])).item())
        return np.array(found, np.float64)

    def _text_kept(self, images: Levels, originals: Levels) -> np.ndarray[Any, Any]:
        shares: list[float] = []
        for image, original in zip(images, originals, strict=True):
            shares.append(self._texts.share_kept(as_picture(image), as_picture(original)))
        return np.array(shares, np.float64)

    @cached_property
    def _texts(self) -> TextReader:
        return TextReader()

    @cached_property
    def _lpips(self) -> Any:  # noqa: ANN401  (a module, with `per_image`)
        return self._opened("lpips", self._protocol.lpips)

    @cached_property
    def _dists(self) -> nn.Module:
        return self._opened("dists", self._protocol.dists)

    def _opened(self, metric: str, weights: PerceptualWeights | None) -> nn.Module:
        assert weights is not None, "the protocol requires weights"
        load = load_lpips if metric == "lpips" else load_dists
        try:
            return load(weights.backbone, weights.heads).to(self._device)
        except MissingWeightsError as error:
            raise UserError(f"protocols: {metric}: {error}") from None


def weight_digests(protocol: EvaluationProtocol) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the weight files that a protocol's metrics read, by the keys that name them.

    Those of `text_kept`, which come with a package, stand under `text_reader`. Raises `UserError` for a file
    that is missing, or has another digest than the protocol says.
    """
    found: dict[str, dict[str, str]] = {}
    if "text_kept" in protocol.metrics:
        found["text_reader"] = reader_digests()
    for metric, key in _WEIGHTS.items():
        weights = getattr(protocol, key)
        if metric not in protocol.metrics or weights is None:
            continue
        for name, file, expected in weights.files():
            try:
                sha256 = digest(file).sha256
            except (FileNotFoundError, IsADirectoryError):
                raise UserError(f"protocols: {key}.{name}={file} is no file: put it there") from None
            if expected is not None and expected != sha256:
                raise UserError(
                    f"protocols: {key}.{name}={file} has the SHA-256 {sha256}, not {expected}: "
                    "fetch it again, or set the digest"
                )
            found.setdefault(key, {})[name] = sha256
    return found


def through_jpeg(levels: Levels, quality: int) -> Levels:
    """Return images as they come back from JPEG."""
    decoded: list[Tensor] = []
    for image in levels:
        stream = io.BytesIO()
        as_picture(image).save(stream, "JPEG", quality=quality)
        with Image.open(stream) as picture:
            decoded.append(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1))
    return torch.stack(decoded)


def as_picture(levels: UInt8[Tensor, "3 S S"]) -> Image.Image:
    """Return an image as Pillow has it."""
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())
