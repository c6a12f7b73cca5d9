"""Reads Parquet tables of any store; imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.damage import naming_damage
from dualtoken.pipelines.errors import UserError


def read_table(store: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file of a store: the whole table, or those of `columns` that it has."""
    with store.open(name) as file:
        return pq.ParquetFile(file, pre_buffer=True).read(columns)


def read_input(store: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a table of a finished stage; raises `UserError` where it is gone or damaged."""
    advice = f"run `dualtoken verify {store.url} --repair`"
    with finished_files(store, name), naming_damage(join(store.url, name), advice):
        return read_table(store, name, columns)


@contextmanager
def finished_files(store: Store, *names: str) -> Iterator[None]:
    """Raise `UserError` if one of a finished stage's files is gone: trying again does not bring it back."""
    try:
        yield
    except FileNotFoundError as error:
        name = _first_missing(store, names)
        raise UserError(
            f"{join(store.url, name)} is gone, its stage is finished: "
            f"run `dualtoken verify {store.url} --repair`"
        ) from error


def _first_missing(store: Store, names: tuple[str, ...]) -> str:
    for name in names:
        if not store.exists(name):
            return name
    return names[0]  # it is there again by now
