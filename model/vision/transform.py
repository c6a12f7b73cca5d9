"""Turns pictures into tensors and back, by a transform that is saved with a model; B images of S by S pixels.

The default is SigLIP's evaluation transform in the DualToken code: the shortest side is resized bicubically,
then the centre is cropped.
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
from dualtoken.model.device_constants import constant
from dualtoken.model.vision.pixels import opaque

_HALF = (0.5, 0.5, 0.5)
_RESIZED_WHOLE = 2**26
"""Pixel limit of a resized picture: a long and narrow one would be larger, and most of it cropped away."""
_Positive = Annotated[float, Field(gt=0)]


class Transform(Config):
    """Preprocessing of the pictures that a network sees, undone on those that it draws."""

    image_size: PositiveInt
    """Side of the square that the network sees, pixels."""
    fit: Literal["crop", "squash"] = "crop"
    """`crop`: shortest side resized, centre kept; `squash`: both sides resized, whatever the shape."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "box"] = "bicubic"
    mean: tuple[float, float, float] = _HALF
    """Mean of red, green and blue, where levels are 0 to 1."""
    std: tuple[_Positive, _Positive, _Positive] = _HALF
    """Standard deviation of red, green and blue, where levels are 0 to 1."""

    def __call__(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "B 3 S S"]:
        """Return pictures as a network takes them; -1 to 1 with the default mean and deviation.

        Raises ValueError for no pictures.
        """
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
        scale, shift = self._scale_and_shift(levels.device)
        return levels.float() / scale - shift

    @property
    def value_range(self) -> tuple[float, float]:
        """Least and largest value that `normalize` gives, over all colours."""
        lows = [(0 - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        highs = [(1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        return min(lows), max(highs)

    def to_uint8(self, images: Float[Tensor, "*B 3 S S"]) -> UInt8[Tensor, "*B 3 S S"]:
        """Return what `normalize` made, or a network drew, as levels 0 to 255, rounded and clamped."""
        return self.to_levels(images).round().clamp(0, 255).to(torch.uint8)

    def to_levels(self, images: Float[Tensor, "*B 3 S S"]) -> Float[Tensor, "*B 3 S S"]:
        """Return what `normalize` made, or a network drew, as levels that are not rounded, nor clamped."""
        scale, shift = self._scale_and_shift(images.device)
        return (images.float() + shift) * scale

    def __str__(self) -> str:
        """Describe the transform in words, as the metadata of a data set needs."""
        size = self.image_size
        method = self.interpolation
        if self.fit == "crop":
            fit = f"shorter side to {size} {method}, centre crop"
        else:
            fit = f"both sides to {size} {method}"
        if self.mean == self.std == _HALF:
            levels = "[-1, 1]"
        else:
            levels = f"mean {list(self.mean)}, deviation {list(self.std)}"
        return f"RGB over white, {fit}, {levels}"

    def _scale_and_shift(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean = constant(self.mean, device).view(3, 1, 1)
        std = constant(self.std, device).view(3, 1, 1)
        return 255 * std, mean / std

    def _square(self, image: Image.Image) -> Image.Image:
        """Return a picture as the square that the network sees."""
        size = self.image_size
        method = Image.Resampling[self.interpolation.upper()]
        if self.fit == "squash":
            if image.size == (size, size):
                return image
            return image.resize((size, size), method)
        shorter = min(image.size)
        if shorter != size:
            # Truncation here, and rounding of the offsets below, are torchvision's (Resize and CenterCrop).
            width = max(size, int(size * image.width / shorter))
            height = max(size, int(size * image.height / shorter))
            if width * height > _RESIZED_WHOLE:
                return _resize_centre(image, (width, height), size, method)
            image = image.resize((width, height), method)
        left = round((image.width - size) / 2)
        top = round((image.height - size) / 2)
        return image.crop((left, top, left + size, top + size))


def _resize_centre(
    image: Image.Image, resized: tuple[int, int], size: int, method: Image.Resampling
) -> Image.Image:
    """Return the centre of the image that resizing to `resized` would give, without making the rest of it."""
    resized_width, resized_height = resized
    scale_x = image.width / resized_width
    scale_y = image.height / resized_height
    left = round((resized_width - size) / 2) * scale_x
    top = round((resized_height - size) / 2) * scale_y
    box = (left, top, left + size * scale_x, top + size * scale_y)
    return image.resize((size, size), method, box=box)


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
    levels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(levels).permute(2, 0, 1).contiguous()
