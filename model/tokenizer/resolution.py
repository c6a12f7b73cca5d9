"""A trained tokenizer at another image size: the same weights, with learned positions resampled."""

from typing import Any, cast

import torch
from torch import Tensor

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.towers import num_prefix_tokens

with vision_imports():
    from timm.layers.pos_embed import resample_abs_pos_embed

_TOWER_POSITIONS = ("tower.pos_embed", "tower.positional_embedding")
_DECODER_POSITIONS = "decoder.pos_embed"


@torch.no_grad()
def at_resolution(trained: DualTokenizer, config: TokenizerConfig) -> DualTokenizer:
    """Return a tokenizer of `config` with the weights of a trained one.

    The two may differ in `image_size` and in the size that the decoder starts from. Positions are resampled
    bicubically, as in ViT (arXiv 2010.11929, 3.2); everything else is copied. Raises ValueError, naming the
    key or the weight, where they differ in more.
    """
    key = _first_difference(_without_sizes(trained.config), _without_sizes(config))
    if key:
        raise ValueError(f"tokenizer.{key} is another one than the trained tokenizer's: copy its config")
    resized = DualTokenizer(config)
    weights = trained.state_dict()
    num_prefix = num_prefix_tokens(resized.tower)
    for name, own in resized.state_dict().items():
        own.copy_(_fitted(name, weights[name], own.shape, num_prefix))
    return resized


def _fitted(name: str, weight: Tensor, shape: torch.Size, num_prefix: int) -> Tensor:
    """Return a weight in another tokenizer's shape."""
    if weight.shape == shape:
        return weight
    if name in _TOWER_POSITIONS:
        return _resampled(weight, shape, num_prefix)
    if name == _DECODER_POSITIONS:
        return _resampled(weight, shape, 0)
    raise ValueError(
        f"{name} has shape {tuple(weight.shape)} at the trained size and {tuple(shape)} at the new one: "
        "train such a part anew"
    )


def _resampled(positions: Tensor, shape: torch.Size, num_prefix: int) -> Tensor:
    """Resample the positions of a square grid, (tokens, width) with or without an axis before them."""
    side = round((shape[-2] - num_prefix) ** 0.5)
    batched = positions.reshape(1, *positions.shape[-2:])
    resampled = resample_abs_pos_embed(batched, [side, side], num_prefix_tokens=num_prefix)
    return resampled.reshape(shape)


def _without_sizes(config: TokenizerConfig) -> dict[str, Any]:
    values = config.model_dump()
    del values["image_size"]
    del cast("dict[str, Any]", values["decoder"])["latent_size"]
    return values


def _first_difference(trained: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Return the first key, dotted, at which two configurations differ."""
    for key, value in wanted.items():
        other = trained.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            inner = _first_difference(other, value)
            if inner:
                return f"{key}.{inner}"
        elif value != other:
            return key
    return None
