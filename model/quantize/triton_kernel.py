"""Residual codes on a GPU in one launch: no distances are written, and the residual stays on chip over all depths.

S streams, M vectors each, G codebooks (one, or one per depth), K codes, W channels, D depths. A program takes ROWS vectors of
one stream through all depths. As in `nearest.py`, tensor cores only name candidates: COLUMNS lanes each keep their best and
second product, the few lanes within the rounding bound of the best are weighed by differences in float64, and where that cannot be
known to be enough (a lane's second product is as near, or there are more than _RANKED such lanes) a second pass over the codes
weighs all candidates. Ties go to the lowest index.

Products are tf32x3: each input as a sum of two TF32 numbers, three products of them; full float32 runs without tensor cores. Its logic is
tested in Triton's interpreter; it has not run on a GPU yet, so neither its speed nor its tile sizes are measured.
"""

# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_RANKED = 4
"""Lanes whose candidates are weighed before a second pass."""
_NO_CODE = tl.constexpr(2**31 - 1)
_FEW_PROGRAMS = 132
"""Streaming multiprocessors of an H100 or H200: with fewer programs than these, smaller ones are used."""


def fused_residual_codes(vectors: Float[Tensor, "S M W"], codes: Float[Tensor, "S G K W"], depth: int) -> Int[Tensor, "S M D"]:
    """Return what `residual_codes` returns with a beam of 1."""
    streams, num_vectors, width = vectors.shape
    ids = torch.empty((streams, num_vectors, depth), dtype=torch.int64, device=vectors.device)
    if not ids.numel():
        return ids
    vectors, codes = vectors.contiguous(), codes.contiguous()
    squares = codes.square().sum(dim=3, dtype=torch.float64)
    bias, largest = (squares / -2).float(), squares.amax(dim=2).sqrt().float()
    rows = 64 if streams * triton.cdiv(num_vectors, 64) >= _FEW_PROGRAMS else 16
    with torch.cuda.device(vectors.device if vectors.is_cuda else -1):  # Triton launches on the current one
        _residual_codes[(triton.cdiv(num_vectors, rows), streams)](
            vectors, codes, bias, largest, ids, num_vectors, codes.shape[1], codes.shape[2], depth,
            WIDTH=width, PADDED=max(16, triton.next_power_of_2(width)), ROWS=rows, COLUMNS=64, RANKED=_RANKED,
            num_warps=8 if rows == 64 else 4, enable_fp_fusion=False,
        )  # fmt: skip
    return ids


@triton.jit
def _residual_codes(
    vectors, codes, bias, largest, ids, num_vectors, num_books, num_codes, depth,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    inside = (row < num_vectors)[:, None] & (channel < WIDTH)[None, :]
    residual = tl.load(vectors + (stream * num_vectors + row[:, None]) * WIDTH + channel[None, :], mask=inside, other=0.0)
    for level in range(depth):
        book = stream * num_books + tl.minimum(level, num_books - 1)
        chosen = _nearest(
            residual, row < num_vectors, codes + book * num_codes * WIDTH, bias + book * num_codes, tl.load(largest + book), num_codes,
            WIDTH, PADDED, ROWS, COLUMNS, RANKED,
        )  # fmt: skip
        tl.store(ids + (stream * num_vectors + row) * depth + level, chosen.to(tl.int64), mask=row < num_vectors)
        place = codes + (book * num_codes + chosen[:, None]) * WIDTH + channel[None, :]
        residual -= tl.load(place, mask=inside, other=0.0)


@triton.jit
def _nearest(
    residual, real, codes, bias, largest, num_codes,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, COLUMNS)
    best = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
    second = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
    code = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, num_codes, COLUMNS):
        product = _products(residual, codes, bias, start, num_codes, WIDTH, PADDED, COLUMNS)
        # Of equal products in a lane the earlier code stays, and `second` says that there is another.
        second = tl.maximum(second, tl.minimum(best, product))
        code = tl.where(product > best, start + lane[None, :], code)
        best = tl.maximum(best, product)
    # tf32x3 drops the product of both rests and rounds each rest: 3 * 2^-22. Sums of tensor cores may cut, not round: 2^-23 an
    # addition, of which there are three for each channel. Twice all that, since two products are compared.
    size = tl.sqrt(tl.sum(residual * residual, axis=1)) * largest + largest * largest / 2
    slack = 2 * (6 * PADDED + 32) * 1.1920929e-07 * size + PADDED * 1.1754944e-38
    least = (tl.max(best, axis=1) - slack)[:, None]
    # Not "at least": where a value is not a number, every code is a candidate.
    near = (best < least) == 0
    doubtful = tl.max(((second < least) == 0).to(tl.int32), axis=1) | (tl.sum(near.to(tl.int32), axis=1) > RANKED).to(tl.int32)
    doubtful = doubtful & real.to(tl.int32)
    chosen = tl.full((ROWS,), _NO_CODE, tl.int32)
    distance = tl.full((ROWS,), float("inf"), tl.float64)
    for _ in tl.static_range(RANKED):
        # The lowest code among the lanes left: 2^31 - 1 where none is.
        lowest = tl.min(tl.where(near, code, _NO_CODE), axis=1)
        there = lowest < num_codes
        candidate = _distance(residual, codes, tl.where(there, lowest, 0), WIDTH, PADDED)
        nearer = there & (candidate < distance)
        chosen = tl.where(nearer, lowest, chosen)
        distance = tl.where(nearer, candidate, distance)
        near = near & (code != lowest[:, None])
    if tl.max(doubtful, axis=0) > 0:
        again = doubtful > 0
        chosen = tl.where(again, 0, chosen)
        distance = tl.where(again, float("inf"), distance)
        for start in range(0, num_codes, COLUMNS):
            product = _products(residual, codes, bias, start, num_codes, WIDTH, PADDED, COLUMNS)
            near = ((product < least) == 0) & again[:, None]
            # Ascending, so that of equal distances the lowest code stays.
            while tl.max(tl.max(near.to(tl.int32), axis=1), axis=0) > 0:
                lowest = tl.min(tl.where(near, start + lane[None, :], _NO_CODE), axis=1)
                there = lowest < num_codes
                candidate = _distance(residual, codes, tl.where(there, lowest, 0), WIDTH, PADDED)
                nearer = there & (candidate < distance)
                chosen = tl.where(nearer, lowest, chosen)
                distance = tl.where(nearer, candidate, distance)
                near = near & (start + lane[None, :] != lowest[:, None])
    return chosen


@triton.jit
def _products(residual, codes, bias, start, num_codes, WIDTH: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr):
    column = start + tl.arange(0, COLUMNS)
    channel = tl.arange(0, PADDED)
    mask = (channel < WIDTH)[:, None] & (column < num_codes)[None, :]
    block = tl.load(codes + column[None, :] * WIDTH + channel[:, None], mask=mask, other=0.0)
    offset = tl.load(bias + column, mask=column < num_codes, other=-float("inf"))
    return tl.dot(residual, block, input_precision="tf32x3") + offset[None, :]


@triton.jit
def _distance(residual, codes, code, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    channel = tl.arange(0, PADDED)
    place = codes + code[:, None] * WIDTH + channel[None, :]
    vector = tl.load(place, mask=(channel < WIDTH)[None, :], other=0.0)
    difference = vector.to(tl.float64) - residual.to(tl.float64)
    return tl.sum(difference * difference, axis=1)
