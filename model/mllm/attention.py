"""Attention for packed sequences: the documents of a sequence never see each other.

Registered with transformers under the name `packed_sdpa`, for any of its trunks. With `segments` it isolates
documents by their bounds; without, as in generation, it is transformers' own SDPA with transformers' masks.
transformers' own detection of packing is not relied on: it is switched off without a word by `use_cache`, by
a mask of ones and by batches of several rows.

B sequences of T positions, S segments, A attention heads, G heads of keys and values, C channels of a head.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

PACKED_SDPA = "packed_sdpa"
"""Name of the attention in a trunk's `_attn_implementation`."""


class Segments(NamedTuple):
    """Bounds of the documents of a batch, and of the padding, among its B * T positions."""

    cu_seqlens: Int[Tensor, "S_and_1"]
    """First position of each segment, and the end; int32."""
    longest: int
    """Positions of the longest segment."""

    def lengths(self) -> Int[Tensor, "S"]:
        """Return the positions of each segment."""
        return self.cu_seqlens.diff()

    def places(self) -> Int[Tensor, "B_times_T"]:
        """Return the place of each position in its own segment, 0 the first."""
        lengths = self.lengths().long()
        total = int(self.cu_seqlens[-1])
        starts = self.cu_seqlens[:-1].long().repeat_interleave(lengths, output_size=total)
        return torch.arange(total, device=starts.device) - starts


def unmasked(like: Tensor) -> Tensor:
    """Return a mask of nothing, for where `segments` isolates: transformers makes none beside it."""
    return like.new_empty((0, 0, 0, 0), dtype=torch.bool)


def packed_sdpa(
    module: nn.Module,
    query: Float[Tensor, "B A T C"],
    key: Float[Tensor, "B G _ C"],
    value: Float[Tensor, "B G _ C"],
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    **options: Any,  # noqa: ANN401  (transformers' own)
) -> tuple[Float[Tensor, "B T A C"], None]:
    """Attend causally within segments, or, where there are none, as `attention_mask` says."""
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    assert not options.get("dropout"), "packed training has no attention dropout"
    scale = options.get("scaling")
    if query.is_cuda:
        return _varlen(query, key, value, segments, scale), None
    return _by_length(query, key, value, segments, scale), None


def _varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Attend by torch's kernel for sequences of unlike length; bfloat16 or float16 on a GPU."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  (loads torch's compiler)

    rows, _, positions, _ = query.shape
    flat_query, flat_key, flat_value = (
        tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)
    )
    bounds = segments.cu_seqlens
    longest = segments.longest
    attended = varlen_attn(
        flat_query,
        flat_key,
        flat_value,
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended.unflatten(0, (rows, positions))


def _by_length(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Attend with the documents side by side as rows, padded to the longest."""
    rows, _, positions, _ = query.shape
    lengths = segments.lengths().long()
    longest = segments.longest
    # Where each position stands among rows that are padded to one length.
    segment = torch.arange(len(lengths), device=query.device).repeat_interleave(lengths)
    places = segment * longest + segments.places()

    def in_rows(tensor: Tensor) -> Tensor:
        flat = tensor.transpose(1, 2).flatten(0, 1)
        padded = flat.new_zeros(len(lengths) * longest, *flat.shape[1:])
        padded = padded.index_copy(0, places, flat)
        return padded.unflatten(0, (len(lengths), longest)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        in_rows(query),
        in_rows(key),
        in_rows(value),
        is_causal=True,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return attended.transpose(1, 2).flatten(0, 1)[places].unflatten(0, (rows, positions))


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
