"""Which of our tensors are which of others': Hugging Face's SigLIP, and the released DualToken code that holds one.

Tables work both ways: a match says that the tensors of the two sides, stacked along the first axis, are the same.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

VISION = "siglip_model.vision_model."
"""Before the image tower's names in the released code."""


class Match(NamedTuple):
    """Names on both sides, each with its share of the rows where several are stacked."""

    ours: dict[str, int]
    theirs: dict[str, int]


def siglip_matches(depth: int) -> list[Match]:
    """Return timm's names of a SigLIP image tower of so many blocks beside Hugging Face's."""
    pairs = {
        "patch_embed.proj": "embeddings.patch_embedding",
        "norm": "post_layernorm",
        "attn_pool.proj": "head.attention.out_proj",
        "attn_pool.norm": "head.layernorm",
        "attn_pool.mlp.fc1": "head.mlp.fc1",
        "attn_pool.mlp.fc2": "head.mlp.fc2",
    }
    matches = [
        _one("pos_embed", "embeddings.position_embedding.weight"),
        _one("attn_pool.latent", "head.probe"),
    ]
    for kind in ("weight", "bias"):
        matches += [_one(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in pairs.items()]
        matches.append(
            Match(
                {f"attn_pool.q.{kind}": 1, f"attn_pool.kv.{kind}": 2}, {f"head.attention.in_proj_{kind}": 1}
            )
        )
        for block in range(depth):
            matches += _block_matches(f"blocks.{block}.", f"encoder.layers.{block}.", kind)
    return matches


def _block_matches(ours: str, theirs: str, kind: str) -> list[Match]:
    pairs = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    parts = {f"{theirs}self_attn.{part}_proj.{kind}": 1 for part in "qkv"}
    return [
        Match({f"{ours}attn.qkv.{kind}": 1}, parts),
        *(_one(f"{ours}{one}.{kind}", f"{theirs}{other}.{kind}") for one, other in pairs.items()),
    ]


_PARTS = {
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
_BUFFERS = {"codes": "weight", "counts": "cluster_size_ema", "sums": "embed_ema"}


def tokenizer_matches(names: Iterable[str], depth: int) -> list[Match]:
    """Return a tokenizer's names, given those of its weights, beside those of the released code; codebooks at depth 0 only.

    Raises ValueError for weights that the released code has no place for.
    """
    matches = [
        Match(
            {f"tower.{name}": share for name, share in ours.items()},
            {VISION + name: share for name, share in theirs.items()},
        )
        for ours, theirs in siglip_matches(depth)
    ]
    for name in names:
        part = next((part for part in _PARTS if name.startswith(part)), None)
        if part is not None:
            rest = name.removeprefix(part)
            matches.append(
                _one(name, _PARTS[part] + (_BUFFERS[rest] if part.startswith("quantize_") else rest))
            )
        elif not name.startswith("tower."):
            raise ValueError(
                f"{name} has no counterpart in the released code: only a tokenizer of its shape can be converted"
            )
    return matches


def rearrange(
    state: Mapping[str, Tensor], matches: Iterable[Match], *, back: bool = False
) -> dict[str, Tensor]:
    """Return their tensors under our names, or with `back` ours under theirs; all that the matches name must be there."""
    arranged: dict[str, Tensor] = {}
    for match in matches:
        given, wanted = (match.ours, match.theirs) if back else (match.theirs, match.ours)
        tensors = [state[name] for name in given]
        stacked = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if any(re.search(r"(^|\.)pos_embed$", name) for name in match.ours):
            # timm's positions have a batch axis.
            stacked = stacked[0] if back else stacked[None]
        rows = (
            stacked.split([len(stacked) * share // sum(wanted.values()) for share in wanted.values()])
            if len(wanted) > 1
            else (stacked,)
        )
        arranged |= {name: part.contiguous() for name, part in zip(wanted, rows, strict=True)}
    return arranged


def _one(ours: str, theirs: str) -> Match:
    return Match({ours: 1}, {theirs: 1})
