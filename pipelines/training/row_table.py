"""Table of one image shard's training samples: where each lies in the tar, and its row of the targets.

An Arrow IPC file in the machine's cache. The first process that needs a shard writes it; all ranks map it,
so that no rank holds a shard's keys, offsets and captions in memory of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualtoken.pipelines.core.ledger import KEY_BYTES
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.shards import read_data_shard

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("target_row", pa.int32(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
    ]
)
"""`target_row` is 0 where there are no targets; `caption` is empty where they are not asked for."""


@dataclass(frozen=True, slots=True)
class RowTable:
    """The samples of a shard; arrays are views of a mapped file."""

    keys: pa.FixedSizeBinaryArray
    offsets: Rows
    """Offset of each image in the tar, bytes."""
    sizes: Rows
    """Length of each image, bytes."""
    target_rows: np.ndarray[Any, np.dtype[np.int32]]
    captions: pa.StringArray

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.offsets)


def write_row_table(
    path: Path,
    shard: ImageShard,
    keys: Sequence[bytes] | None,
    is_heldout: Callable[[bytes], bool],
    *,
    with_captions: bool,
) -> None:
    """Write the table of a shard's samples that have the given keys, or of all, and are not held out.

    Samples come in the order of the keys, which is that of their targets where they have some, or of the tar.
    Raises `UserError` where the shard lacks one of them.
    """
    image_rows = {key: row for row, key in enumerate(shard.keys)}
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    for target_row, key in enumerate(shard.keys if keys is None else keys):
        if is_heldout(key):
            continue
        if key not in image_rows:
            raise UserError(f"it lacks the sample {key.hex()} that later stages have")
        image_row = image_rows[key]
        member = shard.member(image_row)
        columns["key"].append(key)
        columns["offset"].append(member.offset)
        columns["bytes"].append(member.size)
        columns["target_row"].append(target_row)
        columns["caption"].append(shard.captions[image_row] if with_captions else "")
    batch = pa.RecordBatch.from_pydict(columns, schema=_SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_batch(batch)


def map_row_table(path: Path) -> RowTable:
    """Map a table; a cut one raises `pa.ArrowInvalid`."""
    table = read_data_shard(path)
    columns: dict[str, Any] = {}
    for name in _SCHEMA.names:
        columns[name] = table[name].combine_chunks()  # one batch, so nothing is copied
    return RowTable(
        columns["key"],
        columns["offset"].to_numpy(),
        columns["bytes"].to_numpy(),
        columns["target_row"].to_numpy(),
        columns["caption"],
    )
