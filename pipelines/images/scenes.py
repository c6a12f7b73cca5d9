"""Write the generated corpus: a parquet file per unit that is both URL table and image store; and serve it."""

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
"""`url` is relative to the server's base; `image` is PNG; `description` and `questions` are JSON."""
CACHED_UNITS = 8


def scene_url(unit: str, row: int) -> str:
    """Return the relative URL of a unit's row."""
    return f"{unit}/{row:04d}.png"


class Worker:
    """Draws and describes the scenes of a unit."""

    def __init__(self, job: StageJob) -> None:
        assert job.corpus is not None, "scenes need a corpus"
        source = job.recipe.corpora[job.corpus].source
        assert isinstance(source, ScenesSource), f"{job.corpus} is no scenes corpus"
        self._source, self._corpus = source, job.corpus
        self._rows_per_shard = job.recipe.download.rows_per_shard

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `<unit>.parquet`."""
        first = int(unit.id) * self._rows_per_shard
        scenes = [scene(self._source.split, self._source.seed, first + row) for row in range(unit.rows)]
        name = f"{unit.id}.parquet"
        pq.write_table(_table(unit.id, scenes), scratch / name)
        keys = [sample_key(self._corpus, first + row) for row in range(unit.rows)]
        return UnitOutput((name,), ledger_table(keys, [OK_VERDICT] * unit.rows))


def _table(unit: str, scenes: Sequence[Scene]) -> pa.Table:
    columns = {
        "url": [scene_url(unit, row) for row in range(len(scenes))],
        "caption": [caption(one) for one in scenes],
        "image": [_png(one) for one in scenes],
        "description": [json.dumps(describe(one)) for one in scenes],
        "questions": [json.dumps(questions(one)) for one in scenes],
    }
    return pa.table(columns, schema=SCENES_SCHEMA)


def _png(one: Scene) -> bytes:
    stream = io.BytesIO()
    render(one).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


class SceneImages:
    """Finds a generated image by its relative URL, for `serve_images`; the last few units stay in memory."""

    def __init__(self, folder: str) -> None:
        """Read from a scenes stage's output folder, a path or URL."""
        self._store = Store(folder)
        self._lock = threading.Lock()
        self._column = lru_cache(maxsize=CACHED_UNITS)(self._load)

    def __call__(self, path: str) -> bytes | None:
        """Return the PNG at a path such as `00000/0000.png`, or None."""
        name = PurePosixPath(path)
        unit, row = str(name.parent), name.stem
        if not (unit.isdecimal() and row.isdecimal() and name.suffix == ".png"):
            return None
        # The lock keeps a burst of first requests from reading one unit many times.
        with self._lock:
            images = self._column(unit)
        return images[int(row)].as_py() if images is not None and int(row) < len(images) else None

    def _load(self, unit: str) -> pa.ChunkedArray | None:
        if not self._store.exists(f"{unit}.parquet"):
            return None
        with self._store.fs.open(self._store.path(f"{unit}.parquet"), "rb") as file:
            return pq.read_table(file, columns=["image"])["image"]
