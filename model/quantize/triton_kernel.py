"""Residual codes on a GPU, both streams in one launch: no distances are written, and the residual stays on chip over all depths.

S streams, M vectors each, G codebooks (one, or one per depth), K codes, W channels, D depths. A program takes ROWS vectors of
one stream through all depths. As in `nearest.py`, tensor cores only name candidates. They multiply halves: vectors and codes in
float16, scaled by powers of two, twice as fast as TF32 and as precise. To each product comes what its rounding may have taken,
by that code's own length, so that no code's value is under its true one; COLUMNS lanes each keep their best and second value.
The codes of the few lanes that reach the best of the values' lower bounds are weighed by differences in float64. Where those may
not be all (a lane's second value reaches it too, or there are more than _RANKED such lanes), a second pass over the codes weighs
every candidate: of Gaussian vectors and 16,384 codes one vector in 1,500; more where a single channel of a code is 1,000 times as large
as usual, since that decides the halves' scale. Ties go to the lowest index.

The logic is tested in Triton's interpreter; it has not run on a GPU yet, so neither its speed nor its tile sizes are measured.
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
_COLUMNS = 128
"""Codes that a step takes, and lanes."""
_FEW_PROGRAMS = 132
"""Streaming multiprocessors of an H100 or H200: with fewer programs than these, smaller ones are used."""
_NO_CODE = tl.constexpr(2**31 - 1)
_ROUNDING = tl.constexpr(1.125 * 2.0**-10)
"""Of a product, over both lengths: 2^-11 for each of the two halves, and 2^-13 for sums of up to 64 channels that tensor cores cut."""
_SMALL_HALF = tl.constexpr(2.0**-20)
"""Over the largest channel of any code: what is lost of channels too small for a half's exponent, over 64 channels."""
_SINGLE = tl.constexpr(2.0**-21)
"""Of a square, where sums are rounded to float32."""
_DOUBLE = tl.constexpr(2.0**-45)
"""Of a vector's square, where the distances that decide are rounded to float64: a code within it may be the chosen one."""
_TINY = tl.constexpr(2.0**-118)
"""Products under this may be lost to float32's exponent."""
_HUGE = tl.constexpr(2.0**100)
"""Where products reach this, every code is a candidate."""


def fused_residual_codes(
    vectors: Float[Tensor, "S M W"], codes: Float[Tensor, "S G K W"], depth: int
) -> Int[Tensor, "S M D"]:
    """Return what `residual_codes` returns with a beam of 1; W is at most 64."""
    streams, num_vectors, width = vectors.shape
    assert width <= 64, f"{width} channels, of which rounding is bounded for 64"
    assert codes.shape[1] in (1, depth), f"{codes.shape[1]} codebooks for {depth} depths"
    ids = torch.empty((streams, num_vectors, depth), dtype=torch.int64, device=vectors.device)
    if not ids.numel():
        return ids
    vectors, codes = vectors.contiguous(), codes.contiguous()
    books, num_codes = streams * codes.shape[1], codes.shape[2]
    steps, padded = triton.cdiv(num_codes, _COLUMNS), max(16, triton.next_power_of_2(width))
    halves = torch.empty((books, steps * _COLUMNS, padded), dtype=torch.float16, device=vectors.device)
    bias, rounding = torch.empty((2, books, steps * _COLUMNS), dtype=torch.float32, device=vectors.device)
    largest = torch.linalg.vector_norm(codes, ord=torch.inf, dim=(2, 3)).flatten()
    rows = 64 if streams * triton.cdiv(num_vectors, 64) >= _FEW_PROGRAMS else 16
    shape = {"WIDTH": width, "PADDED": padded, "COLUMNS": _COLUMNS}
    with torch.cuda.device(vectors.device if vectors.is_cuda else -1):  # Triton launches on the current one
        _halve[(steps, books)](codes, largest, halves, bias, rounding, num_codes, **shape)
        _residual_codes[(triton.cdiv(num_vectors, rows), streams)](
            vectors, codes, largest, halves, bias, rounding, ids, num_vectors, codes.shape[1], num_codes, steps, depth,
            **shape, ROWS=rows, RANKED=_RANKED, num_warps=8 if rows == 64 else 4, enable_fp_fusion=False,
        )  # fmt: skip
    return ids


@triton.jit
def _halve(
    codes, largest, halves, bias, rounding, num_codes,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write codes as halves, minus half of their squares, and what a product with a vector of length one may lack."""
    book, steps = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    code, channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, PADDED)
    real = code < num_codes
    inside = real[:, None] & (channel < WIDTH)[None, :]
    value = tl.load(
        codes + (book * num_codes + code[:, None]) * WIDTH + channel[None, :], mask=inside, other=0.0
    )
    unit, inverse = _unit(tl.load(largest + book))
    place = book * steps * COLUMNS + code
    tl.store(halves + place[:, None] * PADDED + channel[None, :], (value * inverse).to(tl.float16))
    square = tl.sum(value.to(tl.float64) * value.to(tl.float64), axis=1)
    upper = (square * (_SINGLE - 0.5) + _TINY).to(tl.float32)
    upper = tl.where(square < _HUGE, upper, float("inf"))
    tl.store(bias + place, tl.where(real, upper, -float("inf")))
    tl.store(
        rounding + place, tl.where(real, tl.sqrt(square).to(tl.float32) * _ROUNDING + unit * _SMALL_HALF, 0.0)
    )


@triton.jit
def _residual_codes(
    vectors, codes, largest, halves, bias, rounding, ids, num_vectors, num_books, num_codes, steps, depth,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    inside = (row < num_vectors)[:, None] & (channel < WIDTH)[None, :]
    residual = tl.load(
        vectors + (stream * num_vectors + row[:, None]) * WIDTH + channel[None, :], mask=inside, other=0.0
    )
    for level in range(depth):
        book = stream * num_books + tl.minimum(level, num_books - 1)
        first = book * steps * COLUMNS
        chosen = _nearest(
            residual, row < num_vectors, codes + book * num_codes * WIDTH, tl.load(largest + book),
            halves + first * PADDED, bias + first, rounding + first, num_codes, steps, WIDTH, PADDED, COLUMNS, ROWS, RANKED,
        )  # fmt: skip
        tl.store(
            ids + (stream * num_vectors + row) * depth + level, chosen.to(tl.int64), mask=row < num_vectors
        )
        place = codes + (book * num_codes + chosen[:, None]) * WIDTH + channel[None, :]
        residual -= tl.load(place, mask=inside, other=0.0)


@triton.jit
def _nearest(
    residual, real, codes, largest, halves, bias, rounding, num_codes, steps,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, COLUMNS)
    unit, inverse = _unit(tl.max(tl.abs(residual), axis=1))
    scaled = residual * inverse[:, None]
    half = scaled.to(tl.float16)
    scale = unit * _unit(largest)[0]
    length = tl.sqrt(tl.sum(scaled * scaled, axis=1)) * unit
    length = tl.where(scale < _HUGE, length, float("inf"))
    scale = tl.where(scale < _HUGE, scale, 1.0)
    best = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
    second = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
    code = tl.zeros((ROWS, COLUMNS), tl.int32)
    for step in range(steps):
        value = _upper(half, scale, length, halves, bias, rounding, step, PADDED, COLUMNS)
        # Of equal values in a lane the earlier code stays, and `second` says that there is another.
        second = tl.maximum(second, tl.minimum(best, value))
        code = tl.where(value > best, step * COLUMNS + lane[None, :], code)
        best = tl.maximum(best, value)
    # A value is over the true one by at most twice what was added to it; of a square, _SINGLE is under half of the rounding's.
    added = tl.load(rounding + code)
    lower = best - (2 * length[:, None] + added) * added - 2 * _TINY
    least = (
        tl.max(tl.where(best < float("inf"), lower, -float("inf")), axis=1) - length * (length * _DOUBLE)
    )[:, None]
    # Not "at least": where a value is not a number, every code is a candidate.
    near = (best < least) == 0
    doubtful = tl.max(((second < least) == 0).to(tl.int32), axis=1) | (
        tl.sum(near.to(tl.int32), axis=1) > RANKED
    ).to(tl.int32)
    finite = tl.sum((residual - residual != 0).to(tl.int32), axis=1) == 0
    doubtful = doubtful & (real & finite).to(tl.int32)
    chosen = tl.full((ROWS,), _NO_CODE, tl.int32)
    distance = tl.full((ROWS,), float("inf"), tl.float64)
    for _ in tl.static_range(RANKED):
        chosen, distance, near = _weigh(
            residual, codes, num_codes, near, code, chosen, distance, WIDTH, PADDED
        )
    if tl.max(doubtful, axis=0) > 0:
        again = doubtful > 0
        chosen = tl.where(again, _NO_CODE, chosen)
        distance = tl.where(again, float("inf"), distance)
        for step in range(steps):
            value = _upper(half, scale, length, halves, bias, rounding, step, PADDED, COLUMNS)
            near = ((value < least) == 0) & again[:, None]
            # Ascending, so that of equal distances the lowest code stays.
            while tl.max(tl.max(near.to(tl.int32), axis=1), axis=0) > 0:
                number = tl.zeros((ROWS, COLUMNS), tl.int32) + step * COLUMNS + lane[None, :]
                chosen, distance, near = _weigh(
                    residual, codes, num_codes, near, number, chosen, distance, WIDTH, PADDED
                )
    return tl.where(finite & (chosen < num_codes), chosen, 0)


@triton.jit
def _upper(half, scale, length, halves, bias, rounding, step, PADDED: tl.constexpr, COLUMNS: tl.constexpr):
    """Return (ROWS, COLUMNS): product minus half of the code's square, never under the true value."""
    column = step * COLUMNS + tl.arange(0, COLUMNS)
    block = tl.load(halves + column[None, :] * PADDED + tl.arange(0, PADDED)[:, None])
    offset = tl.fma(length[:, None], tl.load(rounding + column)[None, :], tl.load(bias + column)[None, :])
    return tl.fma(tl.dot(half, block), scale[:, None], offset)


@triton.jit
def _weigh(
    residual, codes, num_codes, near, code, chosen, distance, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    """Take each row's lowest code of those that are near, and return what is then chosen, its distance, and what is left."""
    lowest = tl.min(tl.where(near, code, _NO_CODE), axis=1)
    there = lowest < num_codes
    candidate = _distance(residual, codes, tl.where(there, lowest, 0), WIDTH, PADDED)
    nearer = there & (candidate < distance)
    return (
        tl.where(nearer, lowest, chosen),
        tl.where(nearer, candidate, distance),
        near & (code != lowest[:, None]),
    )


@triton.jit
def _distance(residual, codes, code, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    channel = tl.arange(0, PADDED)
    place = codes + code[:, None] * WIDTH + channel[None, :]
    vector = tl.load(place, mask=(channel < WIDTH)[None, :], other=0.0)
    difference = vector.to(tl.float64) - residual.to(tl.float64)
    return _row_sums(difference * difference)


@triton.jit
def _row_sums(values):
    """Add halves to each other, in the order of `nearest.row_sums`: a sum of two numbers has one result, whatever the layout."""
    for _ in tl.static_range(6):
        if values.shape[1] > 1:
            values = tl.sum(tl.reshape(values, (values.shape[0], 2, values.shape[1] // 2)), axis=1)
    return tl.reshape(values, (values.shape[0],))


@triton.jit
def _unit(largest):
    """Return the power of two at or under a number, of 2^-126 to 2^126, and its inverse."""
    bits = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) & 0x7F800000, 1 << 23), 253 << 23)
    return bits.to(tl.float32, bitcast=True), ((254 << 23) - bits).to(tl.float32, bitcast=True)
