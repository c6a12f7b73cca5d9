"""How a teacher's targets are stored and read back: columns of an Arrow file, by `targets.mode`.

N tokens of W channels. `pooled` is (W,) float32 in each mode. `dense_float16` adds tokens, (N*W,) float16.
`dense_int8` adds them as (N*W,) int8, and a scale per token, (N,) float32: the largest magnitude of a token
becomes 127. The file's schema names the mode, so that a training never takes one for another.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dualtoken.pipelines.config.teacher import StoredTargets
from dualtoken.pipelines.errors import UserError

MODE = b"dualtoken.targets.mode"
"""Key of the mode in a schema's metadata."""
LEAST_COSINE = 0.999
"""Least cosine of a token read back with the token that was stored."""
_LARGEST = 127
"""Largest magnitude of an int8 that has a negative."""

Array = np.ndarray[Any, Any]


class StoredTarget(NamedTuple):
    """Targets of one sample, read back."""

    pooled: Array
    """(W,), float32"""
    dense: Array | None
    """(N*W,), float16; None where no tokens are stored."""


class DenseColumns(NamedTuple):
    """Tokens of a batch as columns."""

    columns: Mapping[str, Array]
    """(B, values of a sample), by the name of a column."""
    least_cosine: float
    """Least cosine of a token read back with the given one; 1 where none is stored."""


def dense_fields(mode: StoredTargets, num_tokens: int, width: int) -> list[pa.Field]:
    """Return the columns that hold tokens in a mode."""
    if mode == "dense_float16":
        return [_field("dense", pa.float16(), num_tokens * width)]
    if mode == "dense_int8":
        return [
            _field("dense", pa.int8(), num_tokens * width),
            _field("dense_scale", pa.float32(), num_tokens),
        ]
    return []


def _field(name: str, kind: pa.DataType, count: int) -> pa.Field:
    item = pa.field("item", kind, nullable=False)
    return pa.field(name, pa.list_(item, count), nullable=False)


def encode_dense(tokens: Array, mode: StoredTargets) -> DenseColumns:
    """Return the columns of tokens (B, N, W), float32."""
    if mode == "pooled":
        return DenseColumns({}, 1.0)
    if mode == "dense_float16":
        stored = tokens.astype(np.float16)
        return DenseColumns({"dense": stored.reshape(len(tokens), -1)}, _least_cosine(tokens, stored))
    scale = np.abs(tokens).max(axis=2).astype(np.float32) / _LARGEST
    # A token of zeros stays one, whatever it is divided by.
    divisor = np.where(scale > 0, scale, 1)[..., None]
    integers = np.rint(tokens / divisor).clip(-_LARGEST, _LARGEST).astype(np.int8)
    columns = {"dense": integers.reshape(len(tokens), -1), "dense_scale": scale}
    return DenseColumns(columns, _least_cosine(tokens, integers * scale[..., None]))


def _least_cosine(tokens: Array, stored: Array) -> float:
    """Return the least cosine between tokens (B, N, W); tokens of zeros agree with themselves."""
    tokens = tokens.astype(np.float64)
    stored = stored.astype(np.float64)
    lengths = np.linalg.norm(tokens, axis=2) * np.linalg.norm(stored, axis=2)
    products = (tokens * stored).sum(axis=2)
    cosines = np.divide(products, lengths, out=np.ones_like(products), where=lengths > 0)
    return float(cosines.min(initial=1.0))


def require_cosine(least: float, mode: StoredTargets) -> None:
    """Raise `UserError` where a mode stores tokens less well than they must be."""
    if least < LEAST_COSINE:
        raise UserError(
            f"targets.mode={mode} gives a token back at cosine {least:.4f}, under {LEAST_COSINE}, "
            "such as one with a channel far above all others: set targets.mode=dense_float16 or online"
        )


def stored_mode(schema: pa.Schema) -> str:
    """Return the mode that a file was stored in; files from before it was named are told by their columns."""
    named = (schema.metadata or {}).get(MODE)
    if named is not None:
        return named.decode()
    return "dense_float16" if "dense" in schema.names else "pooled"


def require_mode(schema: pa.Schema, wanted: StoredTargets, file: str) -> None:
    """Raise `UserError` where a file holds targets in another mode than the recipe's."""
    found = stored_mode(schema)
    if found != wanted:
        raise UserError(
            f"{file} holds targets.mode={found}, the recipe wants {wanted}: "
            "run `dualtoken targets` again, or set the recipe's to what is stored"
        )


def decode_target(table: pa.Table, row: int) -> StoredTarget:
    """Return a row's targets; `table` has the columns of a target file."""
    pooled = _values(table, "pooled", row).astype(np.float32, copy=False)
    if "dense" not in table.column_names:
        return StoredTarget(pooled, None)
    dense = _values(table, "dense", row)
    if dense.dtype == np.int8:
        scale = _values(table, "dense_scale", row)
        tokens = dense.reshape(len(scale), -1) * scale[:, None]
        dense = tokens.astype(np.float16).reshape(-1)
    return StoredTarget(pooled, dense)


def _values(table: pa.Table, name: str, row: int) -> Array:
    return table[name][row].values.to_numpy()
