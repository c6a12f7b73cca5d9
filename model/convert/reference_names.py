"""Tables of state-dict keys: ours beside those of Hugging Face's SigLIP and of the released DualToken code.

The released code holds a SigLIP, so its table contains the other. A mapping works both ways: the tensors of
the two sides, stacked along the first axis, are the same.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

VISION = "siglip_model.vision_model."
"""Prefix of the image tower's keys in the released code."""


class KeyMapping(NamedTuple):
    """Keys on both sides that hold the same numbers, each with its share of the stacked rows."""

    internal: dict[str, int]  # keys of the model that this project builds
    external: dict[str, int]  # keys of the other code's model


def siglip_mappings(depth: int) -> list[KeyMapping]:
    """Return timm's keys of a SigLIP image tower with `depth` blocks beside Hugging Face's."""
    layers = {
        "patch_embed.proj": "embeddings.patch_embedding",
        "norm": "post_layernorm",
        "attn_pool.proj": "head.attention.out_proj",
        "attn_pool.norm": "head.layernorm",
        "attn_pool.mlp.fc1": "head.mlp.fc1",
        "attn_pool.mlp.fc2": "head.mlp.fc2",
    }
    mappings = [
        _one_to_one("pos_embed", "embeddings.position_embedding.weight"),
        _one_to_one("attn_pool.latent", "head.probe"),
    ]
    for kind in ("weight", "bias"):
        for internal, external in layers.items():
            mappings.append(_one_to_one(f"{internal}.{kind}", f"{external}.{kind}"))
        queries_and_keys_values = {f"attn_pool.q.{kind}": 1, f"attn_pool.kv.{kind}": 2}
        mappings.append(KeyMapping(queries_and_keys_values, {f"head.attention.in_proj_{kind}": 1}))
        for block in range(depth):
            mappings += _block_mappings(f"blocks.{block}.", f"encoder.layers.{block}.", kind)
    return mappings


def _block_mappings(internal_prefix: str, external_prefix: str, kind: str) -> list[KeyMapping]:
    layers = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    projections = {f"{external_prefix}self_attn.{part}_proj.{kind}": 1 for part in "qkv"}
    mappings = [KeyMapping({f"{internal_prefix}attn.qkv.{kind}": 1}, projections)]
    for internal, external in layers.items():
        mappings.append(
            _one_to_one(f"{internal_prefix}{internal}.{kind}", f"{external_prefix}{external}.{kind}")
        )
    return mappings


_MODULES = {
    "reduce_pixel.": "prequant_pix.",
    "reduce_shortcut.": "prequant_shortcut.",
    "reduce_semantic.": "prequant_sem.",
    "expand_pixel.": "postquant_pix.",
    "expand_semantic.": "postquant_sem.",
    "post_quant.": "post_quant_conv.",
    "decoder.": "decoder.",
    "quantize_pixel.": "quantizer_pix.codebooks.0.",
    "quantize_semantic.": "quantizer_sem.codebooks.0.",
}
"""Prefixes of a tokenizer's modules beside those of the released code."""
_BUFFERS = {"codes": "weight", "counts": "cluster_size_ema", "sums": "embed_ema"}
"""Names of a codebook's buffers beside those of the released code."""


def tokenizer_mappings(names: Iterable[str], depth: int) -> list[KeyMapping]:
    """Return a tokenizer's keys, `names`, beside the released code's; codebooks at depth 0 only.

    `depth` is the number of the image tower's blocks. Raises ValueError for weights that the released code
    has no place for.
    """
    mappings = []
    for mapping in siglip_mappings(depth):
        internal = {f"tower.{name}": share for name, share in mapping.internal.items()}
        external = {VISION + name: share for name, share in mapping.external.items()}
        mappings.append(KeyMapping(internal, external))
    for name in names:
        if name.startswith("tower."):
            continue
        mappings.append(_one_to_one(name, _released_name(name)))
    return mappings


def _released_name(name: str) -> str:
    """Return the released code's key of a tokenizer's weight outside its tower."""
    for prefix, released_prefix in _MODULES.items():
        if not name.startswith(prefix):
            continue
        rest = name.removeprefix(prefix)
        if prefix.startswith("quantize_"):
            rest = _BUFFERS[rest]
        return released_prefix + rest
    raise ValueError(
        f"{name} has no counterpart in the released code: only a tokenizer of its shape can be converted"
    )


def convert_state_dict(
    state: Mapping[str, Tensor], mappings: Iterable[KeyMapping], *, to_external: bool = False
) -> dict[str, Tensor]:
    """Return external tensors under internal keys, or with `to_external` the other way round.

    All keys that the mappings name must be there.
    """
    converted: dict[str, Tensor] = {}
    for mapping in mappings:
        if to_external:
            source = mapping.internal
            target = mapping.external
        else:
            source = mapping.external
            target = mapping.internal
        tensors = [state[name] for name in source]
        stacked = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if any(re.search(r"(^|\.)pos_embed$", name) for name in mapping.internal):
            # timm's positions have a batch axis.
            stacked = stacked[0] if to_external else stacked[None]
        converted |= _split_rows(stacked, target)
    return converted


def _split_rows(stacked: Tensor, shares: Mapping[str, int]) -> dict[str, Tensor]:
    """Return each name's share of the rows."""
    if len(shares) == 1:
        (name,) = shares
        return {name: stacked.contiguous()}
    total = sum(shares.values())
    sizes = [len(stacked) * share // total for share in shares.values()]
    parts = {}
    for name, rows in zip(shares, stacked.split(sizes), strict=True):
        parts[name] = rows.contiguous()
    return parts


def _one_to_one(internal: str, external: str) -> KeyMapping:
    return KeyMapping({internal: 1}, {external: 1})
