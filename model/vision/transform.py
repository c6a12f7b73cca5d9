"""Pictures to tensors and back, by a transform that travels with a model; B images of S by S pixels.

The default crop is SigLIP's evaluation transform in the DualToken code: shortest side resized bicubically, then the centre.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from dualtoken.model.config.base import Config, PositiveInt
from dualtoken.model.vision.decode import opaque

_HALF = (0.5, 0.5, 0.5)
_RESIZED_WHOLE = 2**26
"""Pixels; of a long and narrow picture, resizing the shorter side up would make more, and then cut them away."""
_Positive = Annotated[float, Field(gt=0)]


class Transform(Config):
    """What is done to a picture before a network sees it, and undone to what the network draws."""

    image_size: PositiveInt
    """Side of the square that the network sees, pixels."""
    fit: Literal["crop", "squash"] = "crop"
    """`crop`: shortest side resized, centre kept; `squash`: both sides resized, whatever the shape."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "box"] = "bicubic"
    mean: tuple[float, float, float] = _HALF
    """Of red, green and blue, where levels are 0 to 1."""
    std: tuple[_Positive, _Positive, _Positive] = _HALF

    def __call__(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "B 3 S S"]:
        """Return pictures as a network takes them; -1 to 1 with the default mean and deviation."""
        return self.normalize(self.levels(pictures))

    def levels(self, pictures: Sequence[Image.Image]) -> UInt8[Tensor, "B 3 S S"]:
        """Return RGB levels 0 to 255, transparency over white; a picture of the right size keeps its levels.

        Raises ValueError for no pictures.
        """
        if not pictures:
            raise ValueError("images is empty: pass at least one")
        return torch.stack([_levels(self._square(opaque(picture))) for picture in pictures])

    def normalize(self, levels: UInt8[Tensor, "*B 3 S S"]) -> Float[Tensor, "*B 3 S S"]:
        """Return levels 0 to 255 as a network takes them."""
        scale, shift = self._scale(levels.device)
        return levels.float() / scale - shift

    def to_uint8(self, images: Float[Tensor, "*B 3 S S"]) -> UInt8[Tensor, "*B 3 S S"]:
        """Return what `normalize` made, or a network drew, as levels 0 to 255, rounded; what lies outside is clamped."""
        scale, shift = self._scale(images.device)
        return ((images.float() + shift) * scale).round().clamp(0, 255).to(torch.uint8)

    def __str__(self) -> str:
        """Say it in words, such as a data set's metadata needs."""
        size, method = self.image_size, self.interpolation
        fit = (
            f"shorter side to {size} {method}, centre crop"
            if self.fit == "crop"
            else f"both sides to {size} {method}"
        )
        is_plain = self.mean == self.std == _HALF
        return f"RGB over white, {fit}, " + (
            "[-1, 1]" if is_plain else f"mean {list(self.mean)}, deviation {list(self.std)}"
        )

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (self.mean, self.std))
        return 255 * std, mean / std

    def _square(self, image: Image.Image) -> Image.Image:
        size, method = self.image_size, Image.Resampling[self.interpolation.upper()]
        if self.fit == "squash":
            return image if image.size == (size, size) else image.resize((size, size), method)
        short = min(image.size)
        if short != size:
            # Truncation, and rounding of the offset below, are those of torchvision's Resize and CenterCrop.
            width, height = (max(size, int(size * side / short)) for side in image.size)
            if width * height > _RESIZED_WHOLE:
                return _resize_centre(image, (width, height), size, method)
            image = image.resize((width, height), method)
        left, top = (round((side - size) / 2) for side in image.size)
        return image.crop((left, top, left + size, top + size))


def _resize_centre(
    image: Image.Image, resized: tuple[int, int], size: int, method: Image.Resampling
) -> Image.Image:
    """Return the centre of what an image resized to `resized` would be, without making the rest of it."""
    scales = [side / new for side, new in zip(image.size, resized, strict=True)]
    left, top = (round((new - size) / 2) * scale for new, scale in zip(resized, scales, strict=True))
    return image.resize(
        (size, size), method, box=(left, top, left + size * scales[0], top + size * scales[1])
    )


def to_tensor(images: Sequence[Image.Image], size: int) -> UInt8[Tensor, "B 3 S S"]:
    """Return RGB levels 0 to 255 by the default transform."""
    return Transform(image_size=size).levels(images)


def normalize(levels: UInt8[Tensor, "*B 3 S S"]) -> Float[Tensor, "*B 3 S S"]:
    """Return levels 0 to 255 as -1 to 1 (mean and standard deviation one half)."""
    return levels.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "*B 3 S S"]) -> UInt8[Tensor, "*B 3 S S"]:
    """Return -1 to 1 as levels 0 to 255, rounded; what lies outside is clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _levels(image: Image.Image) -> UInt8[Tensor, "3 S S"]:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
