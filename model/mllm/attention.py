"""Attention for packed sequences: documents never see each other, and turns that are apart their image alone.

Registered with transformers under the name `packed_sdpa`, for any of its trunks. With `segments` it isolates
these by their bounds; without, as in generation, it is transformers' own SDPA with transformers' masks.
transformers' own detection of packing is not relied on: it is switched off without a word by `use_cache`, by
a mask of ones and by batches of several rows.

B sequences of T positions, N of them in all, S segments, A attention heads, G heads of keys and values, C
channels of a head; R rows of L positions.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dualtoken.model.mllm.segments import Segments, key_positions
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

PACKED_SDPA = "packed_sdpa"
"""Name of the attention in a trunk's `_attn_implementation`."""


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
    if value.is_cuda and value.dtype in (torch.bfloat16, torch.float16):
        # Under autocast rotated queries and keys are float32.
        return _varlen(query.to(value.dtype), key.to(value.dtype), value, segments, scale), None
    return _by_length(query, key, value, segments, scale), None


def _varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Attend by torch's kernel for sequences of unlike length; bfloat16 or float16 on a GPU."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  (loads torch's compiler)

    rows, _, positions, _ = query.shape
    flat_query, flat_key, flat_value = (_flat(tensor) for tensor in (query, key, value))
    bounds = segments.cu_seqlens
    key_bounds = bounds
    if segments.prefixes is not None:
        of_keys, key_bounds = key_positions(segments)
        flat_key = flat_key.index_select(0, of_keys)
        flat_value = flat_value.index_select(0, of_keys)
    attended = varlen_attn(
        flat_query,
        flat_key,
        flat_value,
        bounds,
        key_bounds,
        segments.longest,
        segments.longest,
        scale=scale,
        # Up to the query's own position: the last ones of queries and of keys are the same.
        window_size=(-1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended.unflatten(0, (rows, positions))


def _flat(tensor: Float[Tensor, "B A T C"]) -> Float[Tensor, "B_times_T A C"]:
    return tensor.transpose(1, 2).flatten(0, 1)


def _by_length(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Attend with the segments side by side as rows, those with a prefix apart from the others."""
    rows, _, positions, _ = query.shape
    qkv = _Flat(_flat(query), _flat(key), _flat(value))
    lengths = segments.lengths().long()
    if segments.prefixes is None:
        return _without_prefixes(qkv, lengths, scale).unflatten(0, (rows, positions))
    has_prefix = segments.prefixes >= 0
    is_after = has_prefix.repeat_interleave(lengths)
    before = (~is_after).nonzero().squeeze(1)
    after = is_after.nonzero().squeeze(1)
    others = _Flat(*(tensor.index_select(0, before) for tensor in qkv))
    of_others = _without_prefixes(others, lengths[~has_prefix], scale)
    # Of the output's type: under autocast it is another than that of queries.
    attended = of_others.new_empty(qkv.query.shape).index_copy(0, before, of_others)
    attended = attended.index_copy(0, after, _with_prefixes(qkv, segments, scale))
    return attended.unflatten(0, (rows, positions))


class _Flat(NamedTuple):
    """Queries, keys and values of N positions."""

    query: Float[Tensor, "N A C"]
    key: Float[Tensor, "N G C"]
    value: Float[Tensor, "N G C"]


def _without_prefixes(qkv: _Flat, lengths: Int[Tensor, "S"], scale: float | None) -> Float[Tensor, "N A C"]:
    """Attend causally in segments without prefixes, one after the other; each is padded to the longest."""
    longest = int(lengths.max())
    # Where each position stands among rows that are padded to one length.
    device = lengths.device
    shift = torch.arange(len(lengths), device=device) * longest - (lengths.cumsum(0) - lengths)
    places = torch.arange(len(qkv.query), device=device) + shift.repeat_interleave(lengths)

    def in_rows(flat: Tensor) -> Tensor:
        padded = flat.new_zeros(len(lengths) * longest, *flat.shape[1:])
        padded = padded.index_copy(0, places, flat)
        return padded.unflatten(0, (len(lengths), longest)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        in_rows(qkv.query),
        in_rows(qkv.key),
        in_rows(qkv.value),
        is_causal=True,
        scale=scale,
        enable_gqa=qkv.key.shape[1] != qkv.query.shape[1],
    )
    return attended.transpose(1, 2).flatten(0, 1)[places]


def _with_prefixes(qkv: _Flat, segments: Segments, scale: float | None) -> Float[Tensor, "_ A C"]:
    """Attend from the segments with a prefix, to it and causally to themselves."""
    assert segments.prefixes is not None
    numbers = (segments.prefixes >= 0).nonzero().squeeze(1)
    starts = segments.cu_seqlens[:-1].long()
    lengths = segments.lengths().long()
    prefixes = segments.prefixes[numbers].long()
    own, is_own = _padded(starts[numbers], lengths[numbers])
    of_prefix, is_prefix = _padded(starts[prefixes], lengths[prefixes])
    read = torch.cat([of_prefix, own], dim=1)
    causal = torch.ones(own.shape[1], own.shape[1], dtype=torch.bool, device=own.device).tril()
    sees_prefix = is_prefix[:, None].expand(-1, own.shape[1], -1)
    mask = torch.cat([sees_prefix, causal & is_own[:, None]], dim=2)

    def in_rows(flat: Tensor, positions: Int[Tensor, "R L"]) -> Tensor:
        return flat.index_select(0, positions.flatten()).unflatten(0, positions.shape).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        in_rows(qkv.query, own),
        in_rows(qkv.key, read),
        in_rows(qkv.value, read),
        attn_mask=mask[:, None],
        scale=scale,
        enable_gqa=qkv.key.shape[1] != qkv.query.shape[1],
    )
    return attended.transpose(1, 2)[is_own]


def _padded(
    starts: Int[Tensor, "R"], lengths: Int[Tensor, "R"]
) -> tuple[Int[Tensor, "R L"], Bool[Tensor, "R L"]]:
    """Return the positions of segments as rows of one length, and which of them are no padding."""
    places = torch.arange(int(lengths.max()), device=starts.device)
    is_there = places < lengths[:, None]
    return torch.where(is_there, starts[:, None] + places, starts[:, None]), is_there


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
