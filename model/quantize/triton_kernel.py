"""Triton kernel of the residual search: all streams and depths in one launch.

No distances are written to memory, and the residual stays on chip over all depths. S streams, M vectors each,
G codebooks (one, or one per depth), K codes, W channels, D depths. A program takes ROWS vectors of one stream
through all depths.

Filter, as in `candidates.py`: tensor cores only name candidates. They multiply halves: vectors and codes in
float16, scaled by powers of two, twice as fast as TF32 and as precise. To each product is added the most that
its rounding may have taken, by that code's own length. So the value is an upper bound of the code's true one.
COLUMNS lanes each keep their best and second value.

Refinement, as in `nearest.py`: the codes of the few lanes that reach the best of the values' lower bounds are
compared by differences in float64. Where those may not be all candidates (a lane's second value reaches it
too, or there are more than _RANKED such lanes), a second pass over the codes compares every candidate. Of
Gaussian vectors and 16,384 codes that is one vector in 1,500; more where a single channel of a code is 1,000
times as large as usual, since that decides the halves' scale. Ties go to the lowest index.

The logic is tested in Triton's interpreter, and by `make test-gpu` on a GPU; it has not run on one yet, so
neither its speed nor its tile sizes are measured.
"""

# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
from typing import Literal

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_RANKED = 4
"""Lanes whose candidates are compared exactly before a second pass."""
_COLUMNS = 128
"""Codes per step of the loop over codes, one per lane."""
_NO_CODE = tl.constexpr(2**31 - 1)
_ROUNDING = tl.constexpr(1.125 * 2.0**-10)
"""Error bound of a product, relative to both lengths.

2^-11 for each of the two halves, and 2^-13 for sums of up to 64 channels that tensor cores truncate.
"""
_SMALL_HALF = tl.constexpr(2.0**-20)
"""Error bound of up to 64 channels too small for a half's exponent, relative to all codes' largest one."""
_SINGLE = tl.constexpr(2.0**-21)
"""Error bound of a square, relative to it, where sums are rounded to float32."""
_DOUBLE = tl.constexpr(2.0**-45)
"""Error bound, relative to a vector's square, of the float64 distances that decide.

A code within it of the best may be the chosen one.
"""
_TINY = tl.constexpr(2.0**-118)
"""Magnitude of products that float32's exponent may lose."""
_HUGE = tl.constexpr(2.0**100)
"""Magnitude of products from which on every code is a candidate."""


def fused_residual_codes(
    vectors: Float[Tensor, "S M W"],
    codes: Float[Tensor, "S G K W"],
    depth: int,
    rows: Literal[16, 64] | None = None,
) -> Int[Tensor, "S M D"]:
    """Return the same ids as `residual_codes` with a beam of 1; W is at most 64.

    `rows` is how many vectors a program takes, by default by how many there are.
    """
    streams, num_vectors, width = vectors.shape
    assert width <= 64, f"{width} channels, of which rounding is bounded for 64"
    assert codes.shape[1] in (1, depth), f"{codes.shape[1]} codebooks for {depth} depths"
    for name, tensor in (("vectors", vectors), ("codes", codes)):
        assert tensor.dtype == torch.float32, f"{name} are {tensor.dtype}, and compared in float32"
    ids = torch.empty((streams, num_vectors, depth), dtype=torch.int64, device=vectors.device)
    if not ids.numel():
        return ids
    vectors, codes = vectors.contiguous(), codes.contiguous()
    books, num_codes = streams * codes.shape[1], codes.shape[2]
    steps, padded = triton.cdiv(num_codes, _COLUMNS), max(16, triton.next_power_of_2(width))
    halves = torch.empty((books, steps * _COLUMNS, padded), dtype=torch.float16, device=vectors.device)
    bias, rounding = torch.empty((2, books, steps * _COLUMNS), dtype=torch.float32, device=vectors.device)
    largest = torch.linalg.vector_norm(codes, ord=torch.inf, dim=(2, 3)).flatten()
    # With fewer programs than there are multiprocessors, smaller ones are used.
    if rows is None:
        rows = 64 if streams * triton.cdiv(num_vectors, 64) >= _num_processors(vectors.device) else 16
    shape = {"WIDTH": width, "PADDED": padded, "COLUMNS": _COLUMNS}
    with torch.cuda.device(vectors.device if vectors.is_cuda else -1):  # Triton launches on the current one
        _prepare_codes[(steps, books)](codes, largest, halves, bias, rounding, num_codes, **shape)
        _residual_codes[(triton.cdiv(num_vectors, rows), streams)](
            vectors, codes, largest, halves, bias, rounding, ids,
            num_vectors, codes.shape[1], num_codes, steps, depth,
            **shape, ROWS=rows, RANKED=_RANKED, num_warps=8 if rows == 64 else 4, enable_fp_fusion=False,
        )  # fmt: skip
    return ids


def _num_processors(device: torch.device) -> int:
    """Return a GPU's streaming multiprocessors; in the interpreter those of an H200."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _prepare_codes(
    codes, largest, halves, bias, rounding, num_codes,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write codes as halves, and their upper bounds of minus half a square and of a product's error.

    The error is that of a product with a vector of length one.
    """
    book, steps = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    code, channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, PADDED)
    valid = code < num_codes
    mask = valid[:, None] & (channel < WIDTH)[None, :]
    value = tl.load(
        codes + (book * num_codes + code[:, None]) * WIDTH + channel[None, :], mask=mask, other=0.0
    )
    unit, inverse = _power_of_two(tl.load(largest + book))
    offset = book * steps * COLUMNS + code
    tl.store(halves + offset[:, None] * PADDED + channel[None, :], (value * inverse).to(tl.float16))
    square = tl.sum(value.to(tl.float64) * value.to(tl.float64), axis=1)
    upper = (square * (_SINGLE - 0.5) + _TINY).to(tl.float32)
    upper = tl.where(square < _HUGE, upper, float("inf"))
    tl.store(bias + offset, tl.where(valid, upper, -float("inf")))
    tl.store(
        rounding + offset,
        tl.where(valid, tl.sqrt(square).to(tl.float32) * _ROUNDING + unit * _SMALL_HALF, 0.0),
    )


# Each batch size has its own number of vectors: a kernel for those that 16 divides would be built for each
# process that meets both kinds, at 9 to 13 s (one core of an AMD EPYC, Triton 3.7.1, 2026-11-28).
@triton.jit(do_not_specialize=["num_vectors"])
def _residual_codes(
    vectors, codes, largest, halves, bias, rounding, ids, num_vectors, num_books, num_codes, steps, depth,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    mask = (row < num_vectors)[:, None] & (channel < WIDTH)[None, :]
    residual = tl.load(
        vectors + (stream * num_vectors + row[:, None]) * WIDTH + channel[None, :], mask=mask, other=0.0
    )
    for level in range(depth):
        book = stream * num_books + tl.minimum(level, num_books - 1)
        first = book * steps * COLUMNS
        chosen = _nearest(
            residual, row < num_vectors, codes + book * num_codes * WIDTH, tl.load(largest + book),
            halves + first * PADDED, bias + first, rounding + first, num_codes, steps,
            WIDTH, PADDED, COLUMNS, ROWS, RANKED,
        )  # fmt: skip
        tl.store(
            ids + (stream * num_vectors + row) * depth + level, chosen.to(tl.int64), mask=row < num_vectors
        )
        pointers = codes + (book * num_codes + chosen[:, None]) * WIDTH + channel[None, :]
        residual -= tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _nearest(
    residual, valid, codes, largest, halves, bias, rounding, num_codes, steps,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, COLUMNS)
    unit, inverse = _power_of_two(tl.max(tl.abs(residual), axis=1))
    scaled = residual * inverse[:, None]
    half_residual = scaled.to(tl.float16)
    scale = unit * _power_of_two(largest)[0]
    length = tl.sqrt(tl.sum(scaled * scaled, axis=1)) * unit
    length = tl.where(scale < _HUGE, length, float("inf"))
    scale = tl.where(scale < _HUGE, scale, 1.0)
    best = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
    second = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
    code = tl.zeros((ROWS, COLUMNS), tl.int32)
    for step in range(steps):
        value = _upper_bounds(half_residual, scale, length, halves, bias, rounding, step, PADDED, COLUMNS)
        # Of equal values in a lane the earlier code stays, and `second` says that there is another.
        second = tl.maximum(second, tl.minimum(best, value))
        code = tl.where(value > best, step * COLUMNS + lane[None, :], code)
        best = tl.maximum(best, value)
    # A value is over the true one by at most twice what was added to it. `added * added` covers what was
    # added for the code's square, since _SINGLE is under half of _ROUNDING squared.
    added = tl.load(rounding + code)
    lower = best - (2 * length[:, None] + added) * added - 2 * _TINY
    threshold = (
        tl.max(tl.where(best < float("inf"), lower, -float("inf")), axis=1) - length * (length * _DOUBLE)
    )[:, None]
    # Not "at least": where a value is not a number, every code is a candidate.
    is_candidate = (best < threshold) == 0
    ambiguous = tl.max(((second < threshold) == 0).to(tl.int32), axis=1) | (
        tl.sum(is_candidate.to(tl.int32), axis=1) > RANKED
    ).to(tl.int32)
    finite = tl.sum((residual - residual != 0).to(tl.int32), axis=1) == 0
    ambiguous = ambiguous & (valid & finite).to(tl.int32)
    chosen = tl.full((ROWS,), _NO_CODE, tl.int32)
    distance = tl.full((ROWS,), float("inf"), tl.float64)
    for _ in tl.static_range(RANKED):
        chosen, distance, is_candidate = _refine_lowest(
            residual, codes, num_codes, is_candidate, code, chosen, distance, WIDTH, PADDED
        )
    if tl.max(ambiguous, axis=0) > 0:
        rescan = ambiguous > 0
        chosen = tl.where(rescan, _NO_CODE, chosen)
        distance = tl.where(rescan, float("inf"), distance)
        for step in range(steps):
            value = _upper_bounds(half_residual, scale, length, halves, bias, rounding, step, PADDED, COLUMNS)
            is_candidate = ((value < threshold) == 0) & rescan[:, None]
            # Ascending, so that of equal distances the lowest code stays.
            while tl.max(tl.max(is_candidate.to(tl.int32), axis=1), axis=0) > 0:
                number = tl.zeros((ROWS, COLUMNS), tl.int32) + step * COLUMNS + lane[None, :]
                chosen, distance, is_candidate = _refine_lowest(
                    residual, codes, num_codes, is_candidate, number, chosen, distance, WIDTH, PADDED
                )
    return tl.where(finite & (chosen < num_codes), chosen, 0)


@triton.jit
def _upper_bounds(
    half_residual, scale, length, halves, bias, rounding, step, PADDED: tl.constexpr, COLUMNS: tl.constexpr
):
    """Return (ROWS, COLUMNS): product minus half of the code's square, never under the true value."""
    column = step * COLUMNS + tl.arange(0, COLUMNS)
    block = tl.load(halves + column[None, :] * PADDED + tl.arange(0, PADDED)[:, None])
    offset = tl.fma(length[:, None], tl.load(rounding + column)[None, :], tl.load(bias + column)[None, :])
    return tl.fma(tl.dot(half_residual, block), scale[:, None], offset)


@triton.jit
def _refine_lowest(
    residual, codes, num_codes, is_candidate, code, chosen, distance,
    WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Compare each row's lowest candidate with the code chosen so far, by exact distance.

    Returns the code now chosen, its distance, and the candidates left.
    """
    lowest = tl.min(tl.where(is_candidate, code, _NO_CODE), axis=1)
    has_candidate = lowest < num_codes
    candidate = _squared_distance(residual, codes, tl.where(has_candidate, lowest, 0), WIDTH, PADDED)
    is_nearer = has_candidate & (candidate < distance)
    return (
        tl.where(is_nearer, lowest, chosen),
        tl.where(is_nearer, candidate, distance),
        is_candidate & (code != lowest[:, None]),
    )


@triton.jit
def _squared_distance(residual, codes, code, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    channel = tl.arange(0, PADDED)
    pointers = codes + code[:, None] * WIDTH + channel[None, :]
    vector = tl.load(pointers, mask=(channel < WIDTH)[None, :], other=0.0)
    difference = vector.to(tl.float64) - residual.to(tl.float64)
    return _row_sums(difference * difference)


@triton.jit
def _row_sums(values):
    """Sum each row by halves, in the order of `nearest.row_sums`.

    Each step adds two numbers, and a sum of two numbers has one result, whatever the layout.
    """
    for _ in tl.static_range(6):
        if values.shape[1] > 1:
            values = tl.sum(tl.reshape(values, (values.shape[0], 2, values.shape[1] // 2)), axis=1)
    return tl.reshape(values, (values.shape[0],))


@triton.jit
def _power_of_two(largest):
    """Return the power of two at or under a number, of 2^-126 to 2^126, and its inverse."""
    bits = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) & 0x7F800000, 1 << 23), 253 << 23)
    return bits.to(tl.float32, bitcast=True), ((254 << 23) - bits).to(tl.float32, bitcast=True)
