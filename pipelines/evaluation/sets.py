"""Evaluation sets, resolved: samples in order of key, in a Parquet file for each unit, and a hash of it all.

A source is read anew by every evaluation, and its content is hashed; only content that is not there yet is
written. So a changed image is another set, and never a silent change of one. A resolved set's folder holds
`data/<unit>.parquet` and, written last, `set.json`.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.config.evaluation import AnySet
from dualtoken.pipelines.core.ledger import KEY_BYTES, key_fraction
from dualtoken.pipelines.core.receipts import Record, Sha256, SingleName
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.set_rows import SetRow, set_rows
from dualtoken.pipelines.images.image_questions import read_questions

SET_FILE = "set.json"
SETS = "sets"
"""Folder below an evaluation's root with the resolved sets."""
SET_SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("cluster", pa.string()),
        pa.field("description", pa.string(), nullable=False),
    ]
)
"""Columns of a unit: `image` is encoded as its source has it, `label` a number of `class_names`."""
QUESTIONS = pa.field("questions", pa.string(), nullable=False)
"""Column of JSON that a set has beside them if any of its samples has questions."""


class ResolvedSet(Record):
    """A set as it was read: `set.json`."""

    name: SingleName
    set_hash: Sha256
    """Hash of every sample's key, image, captions, label, cluster, description and questions, and of the
    classes."""
    class_names: tuple[str, ...]
    units: dict[SingleName, int]
    """Samples by unit, in order."""
    has: tuple[str, ...]
    """Which of `captions`, `labels`, `clusters` and `scenes` every sample has, and which questions any has:
    `questions`, and by kind such as `colour questions`."""
    licence: str = ""

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return sum(self.units.values())


class _Entry(NamedTuple):
    """A sample of the spool: all of it but the image, which lies there at an offset."""

    row: SetRow
    offset: int
    size: int
    sha256: bytes


def data_file(unit: str) -> str:
    """Name a unit's file in a resolved set's folder."""
    return f"data/{unit}.parquet"


def resolve(name: str, config: AnySet, root: Store, unit_rows: int) -> tuple[ResolvedSet, str]:
    """Read a set, write what of it is not there, and return it with its folder's path or URL.

    Raises `UserError` for a source that cannot be read, a key that is there twice, an empty set, and a label
    that is no class.
    """
    with scratch_folder() as scratch:
        spool = Path(scratch) / "images"
        with spool.open("w+b") as stream:
            entries = sorted(_spooled(name, config, stream), key=lambda entry: entry.row.key)
            if not entries:
                raise UserError(f"sets.{name} has no image: set it to a source that has some")
            entries = entries[: config.max_images]
            resolved = _described(name, config, entries, unit_rows)
            folder = root.at(f"{SETS}/{name}/{resolved.set_hash[:12]}")
            if not folder.exists(SET_FILE):
                _write(folder, resolved, entries, stream, Path(scratch))
    return resolved, folder.url


def _spooled(name: str, config: AnySet, stream: IO[bytes]) -> Iterator[_Entry]:
    """Yield a set's samples, their images appended to a file: more than memory holds."""
    names: dict[bytes, str] = {}
    for row in set_rows(name, config):
        if config.key_below is not None and key_fraction(row.key) >= config.key_below:
            continue
        if row.key in names:
            raise UserError(
                f"sets.{name} has a key twice, of {names[row.key]} and {row.name}: take one of them out"
            )
        names[row.key] = row.name
        offset = stream.tell()
        stream.write(row.image)
        sha256 = hashlib.sha256(row.image).digest()
        yield _Entry(row._replace(image=b""), offset, len(row.image), sha256)


def _described(name: str, config: AnySet, entries: Sequence[_Entry], unit_rows: int) -> ResolvedSet:
    class_names = config.class_names or _class_names(entries)
    sha = hashlib.sha256(json.dumps(class_names).encode() + b"\n")
    for row, _, _, sha256 in entries:
        _class_number(name, row, class_names)
        texts: list[object] = [row.captions, row.label, row.cluster, row.description]
        if row.questions:
            texts.append(row.questions)
        sha.update(row.key + sha256 + json.dumps(texts).encode() + b"\n")
    units: dict[str, int] = {}
    for first in range(0, len(entries), unit_rows):
        units[f"{len(units):05d}"] = min(unit_rows, len(entries) - first)
    return ResolvedSet(
        name=name,
        set_hash=sha.hexdigest(),
        class_names=class_names,
        units=units,
        has=tuple(_has(entries)),
        licence=config.licence,
    )


def _class_names(entries: Sequence[_Entry]) -> tuple[str, ...]:
    """Return the classes that labels name, in order, where the set's configuration names none."""
    return tuple(sorted({entry.row.label for entry in entries if entry.row.label is not None}))


def _class_number(name: str, row: SetRow, class_names: Sequence[str]) -> int | None:
    """Return the number of a sample's class: labels are names of classes, or their numbers."""
    if row.label is None:
        return None
    if row.label in class_names:
        return class_names.index(row.label)
    if row.label.isdecimal() and int(row.label) < len(class_names):
        return int(row.label)
    raise UserError(
        f"sets.{name}: {row.name} has the label {row.label!r}, which is none of the {len(class_names)} "
        "classes: add it to class_names, or mend the label"
    )


def _has(entries: Sequence[_Entry]) -> Iterator[str]:
    rows = [entry.row for entry in entries]
    if all(row.captions for row in rows):
        yield "captions"
    if all(row.label is not None for row in rows):
        yield "labels"
    if all(row.cluster is not None for row in rows):
        yield "clusters"
    if all(row.description for row in rows):
        yield "scenes"
    if any(row.questions for row in rows):
        yield "questions"
        kinds: set[str] = set()
        for row in rows:
            kinds.update(asked.kind for asked in read_questions(row.questions))
        yield from (f"{kind} questions" for kind in sorted(kinds) if kind)


def _write(
    folder: Store, resolved: ResolvedSet, entries: Sequence[_Entry], stream: IO[bytes], scratch: Path
) -> None:
    first = 0
    schema = SET_SCHEMA.append(QUESTIONS) if "questions" in resolved.has else SET_SCHEMA
    for unit, count in resolved.units.items():
        rows: list[dict[str, object]] = []
        for entry in entries[first : first + count]:
            stream.seek(entry.offset)
            rows.append(_stored_row(resolved, entry, stream.read(entry.size)))
        file = scratch / "unit.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")
        folder.put(file, data_file(unit), move=True)
        first += count
    folder.put_if_absent(resolved.to_bytes(), SET_FILE)


def _stored_row(resolved: ResolvedSet, entry: _Entry, image: bytes) -> dict[str, object]:
    row = entry.row
    return {
        "key": row.key,
        "name": row.name,
        "sha256": entry.sha256,
        "image": image,
        "captions": list(row.captions),
        "label": _class_number(resolved.name, row, resolved.class_names),
        "cluster": row.cluster,
        "description": row.description,
        QUESTIONS.name: row.questions,
    }


def read_unit(folder: Store, unit: str, scratch: Path) -> pa.Table:
    """Return a unit's samples; raises `UserError` where an image is not the one that was resolved."""
    table = pq.read_table(folder.local_copy(data_file(unit), scratch))
    for image, sha256, name in zip(table["image"], table["sha256"], table["name"], strict=True):
        if hashlib.sha256(image.as_buffer()).digest() != sha256.as_py():
            raise UserError(
                f"{join(folder.url, data_file(unit))}: the image of {name.as_py()} was changed since it was "
                "resolved: remove the folder, and evaluate once more"
            )
    return table
