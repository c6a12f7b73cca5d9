"""Finds the shards of an existing dataset: tars with img2dataset's tables, or webdataset tars alone."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.storage import Store, StoredFile, join
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.shard_tables import FETCH_AGAIN, check_shard_columns
from dualtoken.pipelines.images.shards import FAILED_TO_DOWNLOAD, SUCCESS, ImageShard
from dualtoken.pipelines.images.source_store import open_source
from dualtoken.pipelines.images.table_checks import parquet_file
from dualtoken.pipelines.images.tar_index import TarIndex, TarMember, image_member, index_samples

_CAPTION_SUFFIXES = ("txt", "text", "caption")
"""Suffixes of members that are a caption, in order of preference; behind them comes the JSON's `caption`."""
_COLUMNS = pa.schema([(name, pa.string()) for name in ("key", "url", "caption", "status", "error_message")])
"""Columns of the table that is made for a tar without one."""


class SourceShard(NamedTuple):
    """A shard of an existing dataset."""

    name: str
    first_row: int
    """Number of rows in all shards before it."""
    rows: int
    has_table: bool = True


def find_shards(folder: str) -> list[SourceShard]:
    """List a folder's shards: by number, or by name where there are no tables.

    Raises `UserError` that names a file which is empty, damaged, or without its tar or table.
    """
    store = open_source(folder, "folder")
    files = {file.name: file for file in store.entries() if not file.is_leftover}
    tars = {name.removesuffix(".tar") for name in files if name.endswith(".tar")}
    tables = {name.removesuffix(".parquet") for name in files if name.endswith(".parquet")}
    tables = {name for name in tables if name.isdecimal() or name in tars}
    if not tars | tables:
        raise UserError(
            f"folder={folder!r} has no .tar: set it to a folder of webdataset shards, such as img2dataset "
            "writes with output_format=webdataset"
        )
    shards: list[SourceShard] = []
    first_row = 0
    for name in _in_order(tars | tables):
        _require_both(folder, name, tars, tables)
        file = files[f"{name}.tar"]
        if not file.bytes:
            raise UserError(f"{join(folder, file.name)} is empty, 0 bytes: {FETCH_AGAIN}")
        rows = _table_rows(store, f"{name}.parquet") if tables else _tar_rows(store.url, file)
        shards.append(SourceShard(name, first_row, rows, bool(tables)))
        first_row += rows
    return shards


def _in_order(names: set[str]) -> list[str]:
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _require_both(folder: str, name: str, tars: set[str], tables: set[str]) -> None:
    """Require a tar, and a table if the dataset has any: what a run that was killed leaves has not both."""
    if name not in tars:
        raise UserError(
            f"folder={folder!r} has {name}.parquet but no {name}.tar: "
            "fetch it again, or take the parquet file away"
        )
    if tables and name not in tables:
        raise UserError(
            f"folder={folder!r} has {name}.tar but no {name}.parquet, as others have: "
            "let what wrote it finish, or take the tar away"
        )


def _table_rows(store: Store, name: str) -> int:
    place = join(store.url, name)
    with store.open(name) as stream, parquet_file(stream, place, FETCH_AGAIN) as table:
        check_shard_columns(table.schema_arrow, place)
        return table.metadata.num_rows


@lru_cache(maxsize=100_000)  # a run plans often
def _tar_rows(folder: str, file: StoredFile) -> int:
    store = Store(folder)
    place = join(store.url, file.name)
    with store.open(file.name) as stream:
        return len(_whole_index(stream, place).samples)


def _whole_index(stream: Any, place: str) -> TarIndex:  # noqa: ANN401
    """Index a tar that has no table to say what it should hold."""
    index = index_samples(stream, place)
    if not index.is_whole:
        raise UserError(f"{place} is cut short, or damaged behind its first members: {FETCH_AGAIN}")
    if index.scattered is not None:
        raise UserError(
            f"{place} has the members of {index.scattered} apart from each other: "
            "write it with the members in order of name, as `tar --sort=name` does"
        )
    for key, members in index.samples.items():
        image_member(members, key, place)
    return index


def write_table(tar: Path, parquet: Path) -> None:
    """Write the table of a tar that has none: a row a sample, in its order, with caption and URL if it says.

    A sample without an image has failed.
    """
    rows: list[dict[str, Any]] = []
    with tar.open("rb") as stream:
        for key, members in _whole_index(stream, str(tar)).samples.items():
            row = _row_of(key, members, stream, str(tar))
            if image_member(members, key, str(tar)) is None:
                suffixes = ", ".join(members)
                row |= {"status": FAILED_TO_DOWNLOAD, "error_message": f"no image among {suffixes}"}
            rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS), parquet)


def _row_of(key: str, members: dict[str, TarMember], stream: Any, place: str) -> dict[str, Any]:  # noqa: ANN401
    facts: dict[str, Any] = {}
    if "json" in members:
        facts = _json_object(_content(stream, members["json"]))
    caption = facts.get("caption")
    for suffix in _CAPTION_SUFFIXES:
        if suffix in members:
            caption = _content(stream, members[suffix]).decode("utf-8", "backslashreplace").strip()
            break
    if caption is not None and not isinstance(caption, str):
        raise UserError(
            f"{place} has a caption of type {type(caption).__name__} in {key}.json: write it as text"
        )
    url = facts.get("url")
    return {
        "key": key,
        "url": url if isinstance(url, str) else None,
        "caption": caption,
        "status": SUCCESS,
        "error_message": None,
    }


def _json_object(data: bytes) -> dict[str, Any]:
    """Return what a sample's JSON says (NaN too, which old datasets hold); nothing where it is none."""
    try:
        facts = json.loads(data.decode("utf-8", "backslashreplace"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return facts


def _content(stream: Any, member: TarMember) -> bytes:  # noqa: ANN401
    stream.seek(member.offset)
    return stream.read(member.size)


def open_source_shard(
    store: Store, shard: SourceShard, corpus: str, scratch: Path
) -> tuple[ImageShard, Sequence[str]]:
    """Open a shard, copied to scratch unless it is local; returns the names of its files too."""
    names = [f"{shard.name}.tar"]
    tar = store.local_copy(names[0], scratch)
    if shard.has_table:
        names.append(f"{shard.name}.parquet")
        parquet = store.local_copy(names[1], scratch)
    else:
        scratch.mkdir(parents=True, exist_ok=True)
        parquet = scratch / "made.parquet"
        write_table(tar, parquet)
    return ImageShard(tar, parquet, corpus, shard.first_row), names
