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
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

PACKED_SDPA = "packed_sdpa"
"""Name of the attention in a trunk's `_attn_implementation`."""


class Segments(NamedTuple):
    """Bounds of what is isolated in a batch: documents, parts of documents, and padding, of B * T positions.

    A segment sees itself and, where it has a prefix, the whole of that other segment before it: questions
    about one image share its positions, and each is as if it were asked alone.
    """

    cu_seqlens: Int[Tensor, "S_and_1"]
    """First position of each segment, and the end; int32."""
    longest: int
    """Positions of the longest segment, its prefix included."""
    prefixes: Int[Tensor, "S"] | None = None
    """Number of each segment's prefix, which has none itself; -1 for none. None where no segment has one."""

    def to(self, device: torch.device) -> "Segments":
        """Return the segments with their tensors on a device."""
        prefixes = None if self.prefixes is None else self.prefixes.to(device, non_blocking=True)
        return Segments(self.cu_seqlens.to(device, non_blocking=True), self.longest, prefixes)

    def lengths(self) -> Int[Tensor, "S"]:
        """Return the positions of each segment, without its prefix."""
        return self.cu_seqlens.diff()

    def prefix_lengths(self) -> Int[Tensor, "S"]:
        """Return the positions of each segment's prefix, 0 where it has none."""
        lengths = self.lengths()
        if self.prefixes is None:
            return torch.zeros_like(lengths)
        return torch.where(self.prefixes < 0, 0, lengths[self.prefixes.clamp(min=0).long()])

    def between(self, begin: int, end: int) -> "Segments":
        """Return the segments between two positions, which are bounds of documents."""
        is_bound = (self.cu_seqlens >= begin) & (self.cu_seqlens <= end)
        bounds = self.cu_seqlens[is_bound] - begin
        if self.prefixes is None:
            return Segments(bounds, self.longest)
        first = int(is_bound.nonzero()[0])
        of_part = self.prefixes[first : first + len(bounds) - 1]
        return Segments(bounds, self.longest, torch.where(of_part < 0, of_part, of_part - first))

    def places(self) -> Int[Tensor, "B_times_T"]:
        """Return the place of each position in its own document: after its prefix, 0 the first."""
        lengths = self.lengths().long()
        total = int(self.cu_seqlens[-1])
        firsts = self.cu_seqlens[:-1].long() - self.prefix_lengths().long()
        return torch.arange(total, device=lengths.device) - firsts.repeat_interleave(
            lengths, output_size=total
        )


def apart(cu_seqlens: Int[Tensor, "D_and_1"], turns: Int[Tensor, "M"]) -> Segments:
    """Return the segments of documents whose turns see the image before them and not each other.

    `turns` are the first positions of the turns; the first one of a document ends what they all see.
    """
    bounds = torch.cat([cu_seqlens.long(), turns]).unique()
    firsts = bounds[:-1]
    documents = torch.searchsorted(cu_seqlens.long(), firsts, right=True) - 1
    number_of_first = torch.searchsorted(firsts, cu_seqlens.long()[documents])
    prefixes = torch.where(torch.isin(firsts, turns), number_of_first, -1)
    segments = Segments(bounds.int(), 0, prefixes)
    longest = int((segments.lengths() + segments.prefix_lengths()).max())
    return segments._replace(longest=longest)


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
    flat_query, flat_key, flat_value = (_flat(tensor) for tensor in (query, key, value))
    bounds = segments.cu_seqlens
    read_bounds = bounds
    if segments.prefixes is not None:
        read, read_bounds = read_positions(segments)
        flat_key = flat_key.index_select(0, read)
        flat_value = flat_value.index_select(0, read)
    attended = varlen_attn(
        flat_query,
        flat_key,
        flat_value,
        bounds,
        read_bounds,
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


def read_positions(segments: Segments) -> tuple[Int[Tensor, "K"], Int[Tensor, "S_and_1"]]:
    """Return the positions that each segment reads, its prefix's and its own, and the bounds among them."""
    assert segments.prefixes is not None
    starts = segments.cu_seqlens[:-1].long()
    own_lengths = segments.lengths().long()
    prefix_lengths = segments.prefix_lengths().long()
    prefix_starts = starts[segments.prefixes.clamp(min=0).long()]
    lengths = own_lengths + prefix_lengths
    bounds = F.pad(lengths.cumsum(0), (1, 0))
    # The place of each position that is read among those of its segment.
    places = torch.arange(int(bounds[-1]), device=starts.device) - bounds[:-1].repeat_interleave(lengths)
    after_prefix = places - prefix_lengths.repeat_interleave(lengths)
    own = starts.repeat_interleave(lengths) + after_prefix
    of_prefix = prefix_starts.repeat_interleave(lengths) + places
    return torch.where(after_prefix < 0, of_prefix, own), bounds.int()


def _by_length(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Attend with the segments side by side as rows, those with a prefix apart from the others."""
    rows, _, positions, _ = query.shape
    qkv = _Flat(_flat(query), _flat(key), _flat(value))
    lengths = segments.lengths().long()
    if segments.prefixes is None or not bool((segments.prefixes >= 0).any()):
        return _whole(qkv, lengths, scale).unflatten(0, (rows, positions))
    has_prefix = segments.prefixes >= 0
    is_after = has_prefix.repeat_interleave(lengths)
    before = (~is_after).nonzero().squeeze(1)
    after = is_after.nonzero().squeeze(1)
    whole = _Flat(*(tensor.index_select(0, before) for tensor in qkv))
    attended = torch.empty_like(qkv.query)
    attended = attended.index_copy(0, before, _whole(whole, lengths[~has_prefix], scale))
    attended = attended.index_copy(0, after, _after_prefixes(qkv, segments, scale))
    return attended.unflatten(0, (rows, positions))


class _Flat(NamedTuple):
    """Queries, keys and values of N positions."""

    query: Float[Tensor, "N A C"]
    key: Float[Tensor, "N G C"]
    value: Float[Tensor, "N G C"]


def _whole(qkv: _Flat, lengths: Int[Tensor, "S"], scale: float | None) -> Float[Tensor, "N A C"]:
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


def _after_prefixes(qkv: _Flat, segments: Segments, scale: float | None) -> Float[Tensor, "_ A C"]:
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
