"""Metrics of tokenizers: of reconstructions, of the use of codes, and of embeddings beside captions.

This room imports no other room of `model`. It computes on arrays and tensors alone: no network, no disk. The
names below are those of `arrays`, which works on numpy arrays and imports no torch; the other files work on
tensors.

Metrics of an evaluation give a value or a truth value for each sample, or sums that merge: squared errors and
counts are int64, the rest is float64. `reconstruction` has PSNR, `structural_similarity` SSIM and MS-SSIM,
`frechet` the Fréchet distance with its standard error, `classification` zero-shot classes and nearest
neighbours, `linear_probe` logistic regression, `retrieval` how images and texts find each other, `keywords`
what a description shares with the true caption, and `codebook` the use, the bits and the agreement of codes.
LPIPS and DISTS have weights: they are in `training`.
"""

from dualtoken.model.metrics.arrays import MAX_PSNR, perplexity, psnr

__all__ = ["MAX_PSNR", "perplexity", "psnr"]
