"""Writes the generated corpus, and serves it: a Parquet file per unit is both URL table and image store."""

import io
import json
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import ScenesSource
from dualtoken.pipelines.core.ledger import OK_VERDICT, ledger_table, sample_key
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.images.scene_generator import Scene, caption, describe, questions, render, scene

SCENES_SCHEMA = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("description", pa.string(), nullable=False),
        pa.field("questions", pa.string(), nullable=False),
    ]
)
"""Columns of a unit: `url` is relative to the server, `image` is PNG, `description` and `questions` JSON."""
CACHED_UNITS = 8
"""Units whose images the server keeps in memory."""


def scene_url(unit: str, row: int) -> str:
    """Return the relative URL of a unit's row."""
    return f"{unit}/{row:04d}.png"


class Worker:
    """Draws and describes the scenes of a unit."""

    def __init__(self, job: StageJob) -> None:
        assert job.corpus is not None, "scenes need a corpus"
        source = job.recipe.corpora[job.corpus].source
        assert isinstance(source, ScenesSource), f"{job.corpus} is no scenes corpus"
        self._source = source
        self._corpus = job.corpus
        self._rows_per_shard = job.recipe.download.rows_per_shard

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `<unit>.parquet`."""
        first = int(unit.id) * self._rows_per_shard
        scenes: list[Scene] = []
        keys: list[bytes] = []
        for index in range(first, first + unit.rows):
            scenes.append(scene(self._source.split, self._source.seed, index))
            keys.append(sample_key(self._corpus, index))
        file = f"{unit.id}.parquet"
        pq.write_table(_table(unit.id, scenes), scratch / file)
        return UnitOutput((file,), ledger_table(keys, [OK_VERDICT] * unit.rows))


def _table(unit: str, scenes: Sequence[Scene]) -> pa.Table:
    rows: list[dict[str, str | bytes]] = []
    for number, drawn in enumerate(scenes):
        rows.append(
            {
                "url": scene_url(unit, number),
                "caption": caption(drawn),
                "image": _png(drawn),
                "description": json.dumps(describe(drawn)),
                "questions": json.dumps(questions(drawn)),
            }
        )
    return pa.Table.from_pylist(rows, schema=SCENES_SCHEMA)


def _png(drawn: Scene) -> bytes:
    stream = io.BytesIO()
    render(drawn).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


class SceneImages:
    """Finds a generated image by its relative URL, for `serve_images`; the last few units stay in memory."""

    def __init__(self, folder: str) -> None:
        """Read from a scenes stage's output folder, a path or URL."""
        self._store = Store(folder)
        self._lock = threading.Lock()
        self._images = lru_cache(maxsize=CACHED_UNITS)(self._read_images)

    def __call__(self, path: str) -> bytes | None:
        """Return the PNG at a path such as `00000/0000.png`, or None."""
        name = PurePosixPath(path)
        unit = str(name.parent)
        row = name.stem
        if not (unit.isdecimal() and row.isdecimal() and name.suffix == ".png"):
            return None
        # The lock keeps a burst of first requests from reading one unit many times.
        with self._lock:
            images = self._images(unit)
        if images is None or int(row) >= len(images):
            return None
        return images[int(row)].as_py()

    def _read_images(self, unit: str) -> pa.ChunkedArray | None:
        file = f"{unit}.parquet"
        if not self._store.exists(file):
            return None
        with self._store.open(file) as stream:
            return pq.read_table(stream, columns=["image"])["image"]
