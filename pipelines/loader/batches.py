"""What the loaders yield: batches of single samples, and of packed sequences."""

from typing import NamedTuple

import torch
from torch import Tensor


class CodeIds(NamedTuple):
    """The codes of both streams as ids of int32, which `torch.nn.Embedding` takes; shapes as in the batch."""

    semantic: Tensor | None
    pixel: Tensor | None


class TokenBatch(NamedTuple):
    """A step's samples on one rank: B of them, H by W positions, D depths."""

    keys: Tensor
    """(B, 16), uint8."""
    source: Tensor
    """(B,), int64: number of each sample's dataset."""
    semantic: Tensor | None
    """(B, H, W, D), uint16; None where no dataset reads the stream."""
    pixel: Tensor | None
    captions: list[str] | None
    lost: int
    """Samples missing from this step and rank, since their shards are in quarantine."""
    samples: int
    """Samples of the whole run, over all ranks, when this step is done: a resumed run starts there."""

    def ids(self, device: torch.device | str | None = None) -> CodeIds:
        """Return the codes as ids for embeddings, on a device: 16 bits a code travel there."""
        return _code_ids(self.semantic, self.pixel, device)

    def __repr__(self) -> str:
        """Describe the batch in one line."""
        parts = [
            f"{len(self.keys)} samples",
            f"semantic {_shape_and_type(self.semantic)}",
            f"pixel {_shape_and_type(self.pixel)}",
            "no captions" if self.captions is None else "captions",
            f"{self.lost} lost",
            f"{self.samples} samples done",
        ]
        return f"TokenBatch({', '.join(parts)})"


class TargetCounts(NamedTuple):
    """Targets of a batch: what a loss is a sum over."""

    text: int
    """Positions whose text id is predicted."""
    visual: int
    """Positions of images whose codes are predicted."""


class PackedBatch(NamedTuple):
    """A step's sequences on one rank.

    B sequences of T positions, V of these with codes of D depths, N documents in S segments.
    """

    text: Tensor
    """(B, T), int64: ids of text and markers; padding elsewhere."""
    visual: Tensor
    """(B, T), bool: positions of images, in the order of `semantic` and `pixel`.

    Use it as `hidden[batch.visual] = embed(batch.ids().semantic)`.
    """
    semantic: Tensor | None
    """(V, D), uint16; None where no dataset reads the stream."""
    pixel: Tensor | None
    cu_seqlens: Tensor
    """(S + 1,), int32: first position of each segment, and the end, in B * T positions, as variable-length
    attention takes them."""
    segments: Tensor
    """(S,), int64: index of the segment's sample in its run; -1 for the padding of a sequence."""
    keys: Tensor
    """(N, 16), uint8: keys of the documents in order."""
    source: Tensor
    """(N,), int64: number of each document's dataset."""
    image_first: Tensor
    """(N,), bool: whether the image comes before the text; documents without an image count as others."""
    lost: int
    """Samples missing from this step and rank, since their shards are in quarantine."""
    position: int
    """Samples of the whole run that are in sequences, or wait for one, when this step is done."""
    waiting: bytes
    """Documents that wait: (sample, length) of each, int64."""
    targets: Tensor
    """(B, T), bool: positions whose text id is predicted, from what comes before them in their document."""
    visual_targets: Tensor
    """(V,), bool: positions of images whose codes are predicted, in the order of `semantic` and `pixel`."""
    kinds: Tensor
    """(N,), int8: numbers of the documents' kinds, places in `KINDS`."""
    turns: Tensor
    """(M,), int64: first position of each of the M turns of documents that answer, in B * T positions. The
    last turn of a document reaches to its end."""
    longest: int
    """Positions of the longest segment."""
    num_targets: TargetCounts

    def ids(self, device: torch.device | str | None = None) -> CodeIds:
        """Return the codes as ids for embeddings, on a device: 16 bits a code travel there."""
        return _code_ids(self.semantic, self.pixel, device)

    def __repr__(self) -> str:
        """Describe the batch in one line."""
        lengths = self.cu_seqlens.diff()
        num_used = int(lengths[self.segments >= 0].sum())
        fill = num_used / max(1, self.text.numel())
        parts = [
            f"{len(self.keys)} documents in {len(self.text)} sequences of {self.text.shape[1]}",
            f"{fill:.1%} filled",
            f"text {_shape_and_type(self.text)}",
            f"{int(self.visual.sum())} visual positions",
            f"semantic {_shape_and_type(self.semantic)}",
            f"pixel {_shape_and_type(self.pixel)}",
            f"{self.lost} lost",
            f"position {self.position}",
        ]
        return f"PackedBatch({', '.join(parts)})"


def _code_ids(semantic: Tensor | None, pixel: Tensor | None, device: torch.device | str | None) -> CodeIds:
    return CodeIds(_as_int32(semantic, device), _as_int32(pixel, device))


def _as_int32(codes: Tensor | None, device: torch.device | str | None) -> Tensor | None:
    """Return codes as int32; they are widened where they are used, so that half the bytes are moved."""
    if codes is None:
        return None
    if device is not None:
        codes = codes.to(device, non_blocking=True)
    return codes.int()


def _shape_and_type(tensor: Tensor | None) -> str:
    """Describe a tensor as `(64, 27, 27, 8) uint16`."""
    if tensor is None:
        return "None"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
