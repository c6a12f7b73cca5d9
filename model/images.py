"""Pictures to tensors and back; B images of S by S pixels.

The crop is SigLIP's evaluation transform in the DualToken code: shortest side resized bicubically, then the centre.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def to_tensor(images: Sequence[Image.Image], size: int) -> UInt8[Tensor, "B 3 S S"]:
    """Return RGB levels 0 to 255: transparency over white, shortest side resized to `size`, centre cropped.

    A picture of `size` by `size` keeps its levels. Raises ValueError for no pictures.
    """
    if not images:
        raise ValueError("images is empty: pass at least one")
    return torch.stack([_levels(_square(opaque(image), size)) for image in images])


def normalize(levels: UInt8[Tensor, "*B 3 S S"]) -> Float[Tensor, "*B 3 S S"]:
    """Return levels 0 to 255 as -1 to 1 (mean and standard deviation one half)."""
    return levels.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "*B 3 S S"]) -> UInt8[Tensor, "*B 3 S S"]:
    """Return -1 to 1 as levels 0 to 255, rounded; what lies outside is clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def opaque(image: Image.Image) -> Image.Image:
    """Return a picture as RGB, transparency over white."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    short = min(image.size)
    if short != size:
        # Truncation, and rounding of the offset below, are those of torchvision's Resize and CenterCrop.
        width, height = (max(size, int(size * side / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def _levels(image: Image.Image) -> UInt8[Tensor, "3 S S"]:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
