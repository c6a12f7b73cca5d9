"""Metrics of tokenizers: what reconstructions lose, how codes are used, whether embeddings still tell captions apart.

This room imports no other room of `model`. It computes on arrays and tensors alone: no network, no disk. The names
below are those of `arrays`, which works on numpy arrays and imports no torch; the other files work on tensors.
"""

from dualtoken.model.metrics.arrays import MAX_PSNR, perplexity, psnr

__all__ = ["MAX_PSNR", "perplexity", "psnr"]
