"""What a stage adds once every unit has its receipt: a corpus's token index and card, and details for its manifest."""

from pathlib import Path
from typing import Any

from infra.storage import Store, scratch_folder
from pipelines.commit import upload
from pipelines.data_card import CARD, card
from pipelines.receipts import FileRecord, read_manifest, read_receipts
from pipelines.stage import StageJob
from pipelines.token_audit import Alarm, stopped, summarise
from pipelines.token_shards import SCHEMA_VERSION, rows_of, write_index

WEIGHTS = "model.safetensors"


def finish(job: StageJob) -> tuple[dict[str, Any], list[FileRecord]]:
    """Return a stage's manifest details, and the files that it writes beside its units'."""
    if job.stage == "pretokenize":
        return _finish_tokens(job)
    return {}, []


def tokenizer_identity(store: Store) -> dict[str, str]:
    """Return the fingerprint of a trained tokenizer and the SHA-256 of its weights."""
    manifest = read_manifest(store)
    assert manifest is not None, "tokens are made with a finished tokenizer"
    files = {file.name: file for receipt in read_receipts(store).values() for file in receipt.files}
    return {"fingerprint": manifest.fingerprint, "sha256": files[WEIGHTS].sha256}


def _finish_tokens(job: StageJob) -> tuple[dict[str, Any], list[FileRecord]]:
    receipts = read_receipts(job.store())
    config = job.recipe.tokenizer
    audit = summarise(receipts.values())
    if audit["alarms"] and job.recipe.pretokenize.on_alarm == "stop":
        raise stopped(job.label, Alarm(**audit["alarms"][0]))
    details = {
        "schema_version": SCHEMA_VERSION,
        "tokenizer": tokenizer_identity(job.input("train")),
        "grid": [config.grid_size, config.grid_size],
        "depth": config.pixel.depth,
        "codes": {"semantic": config.semantic.num_codes, "pixel": config.pixel.num_codes},
        "rows": sum(rows_of(receipt) for receipt in receipts.values()),
        "shards": len(receipts),
        "audit": audit,
    }
    with scratch_folder() as scratch:
        write_index(Path(scratch) / "index.parquet", receipts.values())
        (Path(scratch) / CARD).write_text(card(job, details, receipts), encoding="utf-8")
        return details, [upload(job.store(), Path(scratch), name) for name in ("index.parquet", CARD)]
