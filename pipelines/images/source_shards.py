"""Finds the shards of an existing dataset: tars with img2dataset's tables, or webdataset tars alone."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.storage import Store, StoredFile, join
from dualtoken.pipelines.config.corpora import JSON
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.shard_tables import FETCH_AGAIN, check_shard_columns
from dualtoken.pipelines.images.shards import FAILED_TO_DOWNLOAD, SUCCESS, ImageShard
from dualtoken.pipelines.images.source_store import open_source
from dualtoken.pipelines.images.table_checks import parquet_file
from dualtoken.pipelines.images.tar_index import TarIndex, TarMember, image_member, index_samples

_CAPTION_KEYS = ("txt", "text", "caption", f"{JSON}.caption")
"""Where captions usually are, in order of preference: in a member of that suffix, or in a key of the JSON."""
_COLUMNS = pa.schema([(name, pa.string()) for name in ("key", "url", "caption", "status", "error_message")])
"""Columns of the table that is made for a tar without one."""


class SourceShard(NamedTuple):
    """A shard of an existing dataset."""

    name: str
    first_row: int
    """Number of rows in all shards before it."""
    rows: int
    has_table: bool = True


def find_shards(folder: str, caption_keys: Sequence[str] = ()) -> list[SourceShard]:
    """List a folder's shards: by number, or by name where there are no tables.

    Raises `UserError` that names a file which is empty, damaged, or without its tar or table, and for
    `caption_keys` of tars that have tables.
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
    if caption_keys and tables:
        raise UserError(
            f"caption_key={', '.join(caption_keys)} is for tars without tables, and folder={folder!r} has "
            "tables, whose column 'caption' is read: leave caption_key out"
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


def write_table(tar: Path, parquet: Path, caption_keys: Sequence[str] = ()) -> None:
    """Write the table of a tar that has none: a row a sample, in its order, with caption and URL if it says.

    A sample without an image has failed. Raises `UserError` where no sample has one of the `caption_keys`.
    """
    rows: list[dict[str, Any]] = []
    with tar.open("rb") as stream:
        samples = _whole_index(stream, str(tar)).samples
        for key, members in samples.items():
            row = _row_of(key, members, _Contents(stream, str(tar)), caption_keys or _CAPTION_KEYS)
            if image_member(members, key, str(tar)) is None:
                suffixes = ", ".join(members)
                row |= {"status": FAILED_TO_DOWNLOAD, "error_message": f"no image among {suffixes}"}
            rows.append(row)
    if caption_keys and samples and all(row["caption"] is None for row in rows):
        present = sorted({suffix for members in samples.values() for suffix in members})
        raise UserError(
            f"caption_key={', '.join(caption_keys)}: no sample of {tar} has it; "
            f"the members have the suffixes {', '.join(present)}"
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS), parquet)


class _Contents(NamedTuple):
    """The bytes of a tar's members."""

    stream: Any
    place: str

    def read(self, member: TarMember) -> bytes:
        self.stream.seek(member.offset)
        return self.stream.read(member.size)


def _row_of(
    key: str, members: dict[str, TarMember], contents: _Contents, caption_keys: Sequence[str]
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if JSON in members:
        facts = _json_object(contents.read(members[JSON]))
    url = facts.get("url")
    return {
        "key": key,
        "url": url if isinstance(url, str) else None,
        "caption": _caption(key, members, contents, caption_keys, facts),
        "status": SUCCESS,
        "error_message": None,
    }


def _caption(
    key: str,
    members: dict[str, TarMember],
    contents: _Contents,
    caption_keys: Sequence[str],
    facts: dict[str, Any],
) -> str | None:
    """Return the caption from the first place that the sample has; None where it has none."""
    for caption_key in caption_keys:
        if caption_key in members:
            return contents.read(members[caption_key]).decode("utf-8", "backslashreplace").strip()
        suffix, _, name = caption_key.partition(".")
        if suffix != JSON or facts.get(name) is None:
            continue
        caption = facts[name]
        if not isinstance(caption, str):
            raise UserError(
                f"{contents.place} has a caption of type {type(caption).__name__} in {key}.json"
                f" ({name}): write it as text"
            )
        return caption
    return None


def _json_object(data: bytes) -> dict[str, Any]:
    """Return what a sample's JSON says (NaN too, which old datasets hold); nothing where it is none."""
    try:
        facts = json.loads(data.decode("utf-8", "backslashreplace"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return facts


def open_source_shard(
    store: Store, shard: SourceShard, corpus: str, scratch: Path, caption_keys: Sequence[str] = ()
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
        write_table(tar, parquet, caption_keys)
    return ImageShard(tar, parquet, corpus, shard.first_row), names
