"""What a billion images cost the commands that plan.

Run: python -m benchmarks.plan [--images 1000000000] [--store local|s3]. A run is pretended: a table of that
many rows, finished stages' manifests, and a receipt per unit of the stage under way, as the real writers lay
them out. `dualtoken plan` and `status` are then run as a user runs them, in processes of their own, and a
resume is: planning, handing out the open units, indexing and the manifest, all but the units' work. Printed
are seconds of the clock and of the process, and its peak memory. `s3` needs the extra `dev`: rclone's server
over the same folder.
"""

import argparse
import datetime as dt
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.commit import write_stage_record
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, FileRecord, Manifest, Receipt, receipt_name
from dualtoken.pipelines.core.stage import AnyJob, StageJob, UnitOutcome, Work
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner
from dualtoken.pipelines.runtime.run import run_planned

CORPUS = "web"
ROWS_PER_SHARD = 4096
GROUP_ROWS = 1_000_000
"""Rows of a row group of the URL table."""
BEFORE_TOKENS = (
    ("download", CORPUS),
    ("teacher", None),
    ("score", CORPUS),
    ("filter", CORPUS),
    ("targets", CORPUS),
    ("train", None),
)
"""Stages before pretokenize, with their corpora."""
MOMENT = "2026-01-01T00:00:00.000+00:00"
FILES = {
    "download": ("{}.tar", "{}.parquet", "{}_stats.json", "ledger/{}.parquet"),
    "pretokenize": ("data/{}.arrow", "meta/{}.parquet", "ledger/{}.parquet"),
}
"""Files of a unit by stage."""
AUDIT = {
    "rows": ROWS_PER_SHARD,
    "looked_at": [0, 900, 2048, 4095],
    "psnr": [22.31, 21.87, 23.05, 22.64],
    "semantic_perplexity": [401.123] * 4,
    "pixel_perplexity": [398.456] * 4,
}
FACTS = {
    "download": {"bytes_fetched": 1},
    "pretokenize": {
        "semantic_usage": [0.953125] * 4,
        "pixel_usage": [0.953125] * 4,
        "audit": AUDIT,
        "seconds": {"wait": 1.234, "encode": 7.654, "write": 0.321, "audit": 0.123},
    },
}
"""Facts of a receipt by stage, as long as real ones."""


def write_table(path: Path, rows: int) -> None:
    """Write a URL table of that many equal rows, which takes a few megabytes."""
    indices = pa.repeat(pa.scalar(0, pa.int8()), GROUP_ROWS)
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["https://example.org/0.jpg"]))
    table = pa.table({"url": texts, "caption": texts})
    with pq.ParquetWriter(path, table.schema) as writer:
        for first in range(0, rows, GROUP_ROWS):
            writer.write_table(table.slice(0, min(GROUP_ROWS, rows - first)))


def receipt(job: AnyJob, unit: str, rows: int) -> Receipt:
    """Return a unit's receipt, as long as a real one."""
    sha256 = f"{unit:0>64}"
    xxh3_128 = f"{unit:0>32}"
    names = [name.format(unit) for name in FILES[job.stage]]
    files = [FileRecord(name=name, bytes=90_000_000, sha256=sha256, xxh3_128=xxh3_128) for name in names]
    return Receipt(
        stage=job.stage,
        corpus=job.corpus,
        unit=unit,
        fingerprint=job.fingerprint,
        attempt="0" * 32,
        rows=rows,
        counts={"ok": rows},
        files=tuple(files),
        facts=FACTS[job.stage] | {"rows_out_by_shard": {unit: rows}},
        finished_at=MOMENT,
        seconds=9.5,
    )


def pretend_finished(planned: PlannedStage) -> None:
    """Write a stage's manifest, and the one receipt that later stages read."""
    job = planned.job
    assert job is not None
    write_stage_record(job, planned.identity)
    units = {unit.id: unit.rows for unit in job.units}
    if job.stage == "filter":
        num_shards = -(-planned.num_rows // ROWS_PER_SHARD)
        units = {f"{shard:05d}": ROWS_PER_SHARD for shard in range(num_shards)}
    manifest = Manifest(
        stage=job.stage,
        corpus=job.corpus,
        fingerprint=job.fingerprint,
        root_hash="0" * 64,
        rows_in=planned.num_rows,
        counts={"ok": planned.num_rows},
        units=units,
        bytes=10**12,
        seconds=1e6,
        first_started_at=MOMENT,
        last_finished_at=MOMENT,
        files=(),
        details={},
    )
    job.store().put_bytes(manifest.to_bytes(), MANIFEST_FILE)
    if job.stage == "train":
        job.store().put_bytes(_model_receipt(job).to_bytes(), receipt_name("model"))


def _model_receipt(job: StageJob) -> Receipt:
    weights = FileRecord(name="model.safetensors", bytes=1, sha256="0" * 64, xxh3_128="0" * 32)
    return Receipt(
        stage="train",
        corpus=None,
        unit="model",
        fingerprint=job.fingerprint,
        attempt="0",
        rows=0,
        counts={},
        files=(weights,),
        facts={},
        finished_at=MOMENT,
        seconds=1.0,
    )


def pretend_begun(planned: PlannedStage, num_open: int) -> None:
    """Write the receipts of all units but some, which are evenly spread."""
    job = planned.job
    assert job is not None
    write_stage_record(job, planned.identity)
    open_units = {number * len(job.units) // num_open for number in range(num_open)}
    template = receipt(job, "@@@@@", ROWS_PER_SHARD).to_bytes().decode()
    folder = Path(job.folder, "receipts")
    folder.mkdir(parents=True, exist_ok=True)
    for number, unit in enumerate(job.units):
        if number not in open_units:
            (folder / f"{unit.id}.json").write_text(template.replace("@@@@@", unit.id))
    if job.stage == "pretokenize":
        _pretend_captions(job)


def _pretend_captions(job: StageJob) -> None:
    """Write captions, which the dataset's card looks into, for open units too."""
    folder = Path(job.folder, "meta")
    folder.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": pa.array([bytes(16)], pa.binary(16)), "caption": ["a caption"]}), sink)
    content = sink.getvalue().to_pybytes()
    for unit in job.units:
        (folder / f"{unit.id}.parquet").write_bytes(content)


class NoWork:
    """An executor that writes receipts and does nothing for them."""

    def run(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        """Yield an outcome per unit."""
        for stage_work in work:
            job = stage_work.job
            store = job.store()
            for unit in stage_work.units:
                store.put_if_absent(receipt(job, unit.id, unit.rows).to_bytes(), receipt_name(unit.id))
                yield UnitOutcome(job.label, unit.id, {"ok": unit.rows}, 0.0, audit=AUDIT)


def resume(recipe: Recipe) -> None:
    """Finish the pretended token stage."""
    run_planned([Planner(recipe).get("pretokenize", CORPUS)], NoWork(), lambda _: None)
    manifest = Planner(recipe).get("pretokenize", CORPUS).manifest
    assert manifest is not None
    print(f"{manifest.details['shards']:,} shards, {manifest.rows_in:,} rows")


def timed(label: str, command: Sequence[str]) -> None:
    """Run a command and print what it took, its peak memory, and its last line on the stage.

    The label is "COMMAND, STAGE begun".
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out)  # noqa: S603  (ours)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        lines = out.read().decode().splitlines()
    wall_seconds = time.monotonic() - started
    assert status == 0, f"{label} failed"
    cpu_seconds = usage.ru_utime + usage.ru_stime
    peak_mb = usage.ru_maxrss / 1e3
    stage = label.split(", ")[1].split(maxsplit=1)[0]
    of_stage = [line for line in lines if line.startswith(stage)]
    last_line = " ".join((of_stage or lines)[-1].split())
    figures = f"{wall_seconds:8.1f} s{cpu_seconds:8.1f} s of CPU{peak_mb:7.0f} MB"
    print(f"{label:34}{figures}   {last_line}", flush=True)


def measure(root: str, settings: Sequence[str], stage: str, commands: Sequence[str]) -> None:
    """Time commands on the run as it is."""
    options = ["--root", root]
    for setting in settings:
        options += ["--set", setting]
    for command in commands:
        if command == "resume":
            program = [sys.executable, "-m", "benchmarks.plan", "--resume"]
        else:
            program = [sys.executable, "-m", "dualtoken.jobs.cli", *command.split(), "urls"]
        timed(f"{command}, {stage} begun", [*program, *options])


def main() -> None:
    """Pretend the run and time what plans it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10**9)
    parser.add_argument("--store", choices=("local", "s3"), default="local")
    parser.add_argument("--folder", help="for the pretended run; default: a temporary one")
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resume:
        resume(load_recipe("urls", [*arguments.set, f"root={arguments.root}"]))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        _measure_all(Path(folder), arguments.images, s3=arguments.store == "s3")


def _measure_all(folder: Path, images: int, *, s3: bool) -> None:
    table = folder / "table.parquet"
    write_table(table, images)
    settings = [f"corpora.{CORPUS}.source.table={table}", f"download.rows_per_shard={ROWS_PER_SHARD}"]
    recipe = load_recipe("urls", [*settings, f"root={folder / 'test/run'}"])
    num_shards = -(-images // ROWS_PER_SHARD)
    print(f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {images:,} images, {num_shards:,} shards, ", end="")
    print("on s3" if s3 else "on disk")
    status_commands = ["plan", "status"] if s3 else ["plan", "status", "status --exact"]
    with _served(folder) if s3 else nullcontext(str(folder / "test")) as top:
        root = f"{top}/run"
        measure(root, settings, "nothing", ["plan"])
        download = Planner(recipe).get("download", CORPUS)
        pretend_begun(download, num_open=download.num_units // 2)
        measure(root, settings, "download", status_commands)
        for stage, corpus in BEFORE_TOKENS:
            pretend_finished(Planner(recipe).get(stage, corpus))
        pretend_begun(Planner(recipe).get("pretokenize", CORPUS), num_open=1000)
        measure(root, settings, "pretokenize", [*status_commands, "resume"])
        measure(root, settings, "report", ["plan", "status"])


def _served(folder: Path):  # noqa: ANN202  (of a module that only the extra `dev` can import)
    from tests.helpers.s3_servers import s3_server  # noqa: PLC0415

    return s3_server("rclone", folder)


if __name__ == "__main__":
    main()
