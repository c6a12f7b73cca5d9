"""Reads Parquet tables of any store; imports no torch."""

import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Store


def read_table(store: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file of a store: all of it, or those of some columns that it has."""
    with store.fs.open(store.path(name), "rb") as file:
        return pq.ParquetFile(file, pre_buffer=True).read(columns)
