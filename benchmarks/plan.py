"""What a billion images cost the commands that plan: `python -m benchmarks.plan [--images 1000000000] [--store local|s3]`.

A run is pretended: a table of that many rows, finished stages' manifests, and a receipt per unit of the stage under way, as
the real writers lay them out. `dualtoken plan` and `status` are then run as a user runs them, in processes of their own, and a
resume is: planning, handing out the open units, indexing and the manifest, all but the units' work. Printed are seconds of the
clock and of the process, and its peak memory. `s3` needs the extra `dev`: rclone's server over the same folder.
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
from dualtoken.pipelines.core.stage import StageJob, UnitOutcome, Work
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner
from dualtoken.pipelines.runtime.run import run_planned

ROWS_PER_SHARD = 4096
GROUP_ROWS = 1_000_000
BEFORE_TOKENS = ("download", "teacher", "score", "filter", "targets", "train")
MOMENT = "2026-01-01T00:00:00.000+00:00"
FILES = {
    "download": ("{}.tar", "{}.parquet", "{}_stats.json", "ledger/{}.parquet"),
    "pretokenize": ("data/{}.arrow", "meta/{}.parquet", "ledger/{}.parquet"),
}
AUDIT = {"rows": ROWS_PER_SHARD, "looked_at": [0, 900, 2048, 4095], "psnr": [22.31, 21.87, 23.05, 22.64]}
AUDIT |= {"semantic_perplexity": [401.123] * 4, "pixel_perplexity": [398.456] * 4}
TIMES = {"wait": 1.234, "encode": 7.654, "write": 0.321, "audit": 0.123}
USAGE = {"semantic_usage": [0.953125] * 4, "pixel_usage": [0.953125] * 4}
FACTS = {"download": {"bytes_fetched": 1}, "pretokenize": {**USAGE, "audit": AUDIT, "seconds": TIMES}}


def write_table(path: Path, rows: int) -> None:
    """Write a URL table of that many equal rows, which takes a few megabytes."""
    texts = pa.DictionaryArray.from_arrays(
        pa.repeat(pa.scalar(0, pa.int8()), GROUP_ROWS), pa.array(["https://example.org/0.jpg"])
    )
    table = pa.table({"url": texts, "caption": texts})
    with pq.ParquetWriter(path, table.schema) as writer:
        for first in range(0, rows, GROUP_ROWS):
            writer.write_table(table.slice(0, min(GROUP_ROWS, rows - first)))


def receipt(job: StageJob, unit: str, rows: int) -> Receipt:
    """Return a unit's receipt, as long as a real one."""
    names = (name.format(unit) for name in FILES[job.stage])
    files = tuple(
        FileRecord(name=name, bytes=90_000_000, sha256=f"{unit:0>64}", xxh3_128=f"{unit:0>32}")
        for name in names
    )
    facts = FACTS[job.stage] | {"rows_out_by_shard": {unit: rows}}
    return Receipt(
        stage=job.stage, corpus=job.corpus, unit=unit, fingerprint=job.fingerprint, attempt="0" * 32, rows=rows, counts={"ok": rows},
        files=files, facts=facts, finished_at=MOMENT, seconds=9.5,
    )  # fmt: skip


def pretend_finished(planned: PlannedStage) -> None:
    """Write a stage's manifest, and the one receipt that later stages read."""
    job = planned.job
    assert job is not None
    write_stage_record(job, planned.identity)
    units = {unit.id: unit.rows for unit in job.units}
    if job.stage == "filter":
        units = dict.fromkeys(
            (f"{unit:05d}" for unit in range(-(-planned.num_rows // ROWS_PER_SHARD))), ROWS_PER_SHARD
        )
    manifest = Manifest(
        stage=job.stage, corpus=job.corpus, fingerprint=job.fingerprint, root_hash="0" * 64, rows_in=planned.num_rows,
        counts={"ok": planned.num_rows}, units=units, bytes=10**12, seconds=1e6, first_started_at=MOMENT, last_finished_at=MOMENT,
        files=(), details={},
    )  # fmt: skip
    job.store().put_bytes(manifest.to_bytes(), MANIFEST_FILE)
    if job.stage == "train":
        file = FileRecord(name="model.safetensors", bytes=1, sha256="0" * 64, xxh3_128="0" * 32)
        model = Receipt(
            stage="train", corpus=None, unit="model", fingerprint=job.fingerprint, attempt="0", rows=0, counts={}, files=(file,), facts={},
            finished_at=MOMENT, seconds=1.0,
        )  # fmt: skip
        job.store().put_bytes(model.to_bytes(), receipt_name("model"))


def pretend_begun(planned: PlannedStage, left_open: int) -> None:
    """Write the receipts of all units but some, evenly spread."""
    job = planned.job
    assert job is not None
    write_stage_record(job, planned.identity)
    left = {number * len(job.units) // left_open for number in range(left_open)}
    template = receipt(job, "@@@@@", ROWS_PER_SHARD).to_bytes().decode()
    folder = Path(job.folder, "receipts")
    folder.mkdir(parents=True, exist_ok=True)
    for number, unit in enumerate(job.units):
        if number not in left:
            (folder / f"{unit.id}.json").write_text(template.replace("@@@@@", unit.id))
    if job.stage == "pretokenize":
        _pretend_captions(job)


def _pretend_captions(job: StageJob) -> None:
    """Write captions, which the dataset's card looks into, for open units too."""
    folder = Path(job.folder, "meta")
    folder.mkdir(parents=True, exist_ok=True)
    first, *others = (folder / f"{unit.id}.parquet" for unit in job.units)
    pq.write_table(pa.table({"key": pa.array([bytes(16)], pa.binary(16)), "caption": ["a caption"]}), first)
    content = first.read_bytes()
    for other in others:
        other.write_bytes(content)


class NoWork:
    """An executor that puts receipts and does nothing for them."""

    def run(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        """Yield an outcome per unit."""
        for one in work:
            store = one.job.store()
            for unit in one.units:
                store.put_if_absent(receipt(one.job, unit.id, unit.rows).to_bytes(), receipt_name(unit.id))
                yield UnitOutcome(one.job.label, unit.id, {"ok": unit.rows}, 0.0, audit=AUDIT)


def resume(recipe: Recipe) -> None:
    """Finish the pretended token stage."""
    run_planned([Planner(recipe).get("pretokenize", "web")], NoWork(), lambda _: None)
    manifest = Planner(recipe).get("pretokenize", "web").manifest
    assert manifest is not None
    print(f"{manifest.details['shards']:,} shards, {manifest.rows_in:,} rows")


def timed(label: str, command: Sequence[str]) -> None:
    """Run a command to its end, and print its last line, what it took and its peak memory."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out)  # noqa: S603  (ours)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        said = out.read().decode().splitlines()
    taken = time.monotonic() - started
    assert status == 0, f"{label} failed"
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3
    about = [line for line in said if line.startswith(label.split(", ")[1].split(maxsplit=1)[0])]
    print(
        f"{label:34}{taken:8.1f} s{cpu:8.1f} s of CPU{peak:7.0f} MB   {' '.join((about or said)[-1].split())}",
        flush=True,
    )


def measure(root: str, settings: Sequence[str], stage: str, commands: Sequence[str]) -> None:
    """Time commands on the run as it is."""
    options = [text for setting in settings for text in ("--set", setting)]
    for command in commands:
        words = command.split()
        program = (
            ["-m", "benchmarks.plan", "--resume"] if words[0] == "resume" else ["-m", "dualtoken.jobs.cli"]
        )
        arguments = [] if words[0] == "resume" else [*words, "urls"]
        timed(f"{command}, {stage} begun", [sys.executable, *program, *arguments, "--root", root, *options])


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
    table, root = folder / "table.parquet", folder / "test/run"
    write_table(table, images)
    settings = [f"corpora.web.source.table={table}", f"download.rows_per_shard={ROWS_PER_SHARD}"]
    recipe = load_recipe("urls", [*settings, f"root={root}"])
    print(
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {images:,} images, {-(-images // ROWS_PER_SHARD):,} shards, on {'s3' if s3 else 'disk'}"
    )
    with _served(folder) if s3 else nullcontext(str(folder / "test")) as top:
        at = f"{top}/run"
        measure(at, settings, "nothing", ["plan"])
        download = Planner(recipe).get("download", "web")
        pretend_begun(download, left_open=download.num_units // 2)
        measure(at, settings, "download", ["plan", "status", *([] if s3 else ["status --exact"])])
        for step in BEFORE_TOKENS:
            pretend_finished(Planner(recipe).get(step, None if step in {"teacher", "train"} else "web"))
        pretend_begun(Planner(recipe).get("pretokenize", "web"), left_open=1000)
        measure(
            at, settings, "pretokenize", ["plan", "status", *([] if s3 else ["status --exact"]), "resume"]
        )
        measure(at, settings, "report", ["plan", "status"])


def _served(folder: Path):  # noqa: ANN202  (of a module that only the extra `dev` can import)
    from tests.helpers.s3_servers import s3_server  # noqa: PLC0415

    return s3_server("rclone", folder)


if __name__ == "__main__":
    main()
