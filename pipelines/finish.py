"""What a stage adds once every unit has its receipt: a corpus's token index and card, and details for its manifest."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from infra.scratch import scratch_folder
from infra.storage import Store
from pipelines.captions import lender_of
from pipelines.commit import StageContent, commit_manifest, upload
from pipelines.data_card import CARD, card
from pipelines.receipts import FileRecord, Manifest, Receipt, read_manifest, read_receipts
from pipelines.stage import StageJob
from pipelines.token_audit import Alarm, DatasetAudit, stopped
from pipelines.token_shards import BORROWING_VERSION, INDEX, SCHEMA_VERSION, write_index
from pipelines.work_parts import PARTS_DETAIL

WEIGHTS = "model.safetensors"
PRIVATE = "failed:private_address"


def finish(job: StageJob) -> Manifest:
    """Write what a stage adds to its units' files, then its manifest."""
    content = StageContent(job)
    details, files = _finish_tokens(content) if job.stage == "pretokenize" else ({}, [])
    return commit_manifest(content, details, files)


def tokenizer_identity(store: Store) -> dict[str, str]:
    """Return the fingerprint of a trained tokenizer and the SHA-256 of its weights."""
    manifest = read_manifest(store)
    assert manifest is not None, "tokens are made with a finished tokenizer"
    files = {file.name: file for receipt in read_receipts(store).values() for file in receipt.files}
    return {"fingerprint": manifest.fingerprint, "sha256": files[WEIGHTS].sha256}


def problems(manifest: Manifest) -> Iterator[str]:
    """Yield what a user should know of a stage that is finished all the same."""
    devices = manifest.details.get("devices", [])
    if len(devices) > 1:
        said = "its shards were made by devices that may round otherwise, so that equal images may have other codes"
        yield f"{said}: {'; '.join(devices)} (`dualtoken verify --deep` tells how many)"
    if private := manifest.counts.get(PRIVATE):
        said = f"{private} of {manifest.rows_in} URLs lead into a private network, which a table of the web's must not reach"
        yield f"{said}: if the servers are yours, set download.allow_private_addresses=true and run again"


def _noting_devices(receipts: Iterable[Receipt], devices: set[str]) -> Iterator[Receipt]:
    """Pass receipts on; from before there were such facts they name none."""
    for receipt in receipts:
        if "device" in receipt.facts:
            devices.add(f"{receipt.facts['device']}, torch {receipt.facts['torch']}")
        yield receipt


def _finish_tokens(content: StageContent) -> tuple[dict[str, Any], list[FileRecord]]:
    job, audit, devices = content.job, DatasetAudit(content.job.recipe.pretokenize.min_psnr), set[str]()
    config = job.recipe.tokenizer
    with scratch_folder() as scratch:
        index = write_index(Path(scratch) / INDEX, audit.seen(_noting_devices(content.receipts(), devices)))
        summary = audit.summary()
        if summary["alarms"] and job.recipe.pretokenize.on_alarm == "stop":
            raise stopped(job.label, Alarm(**summary["alarms"][0]))
        details = {
            "schema_version": BORROWING_VERSION if lender_of(job) else SCHEMA_VERSION,
            "tokenizer": tokenizer_identity(job.input("train")),
            "grid": [config.grid_size, config.grid_size],
            "depth": config.pixel.depth,
            "codes": {"semantic": config.semantic.num_codes, "pixel": config.pixel.num_codes},
            "rows": sum(index["rows"].to_pylist()),
            "shards": index.num_rows,
            "devices": sorted(devices),
            "audit": summary,
            PARTS_DETAIL: {name: round(seconds, 3) for name, seconds in content.totals.parts.items()},
        }
        (Path(scratch) / CARD).write_text(card(job, details, content.totals), encoding="utf-8")
        return details, [upload(job.store(), Path(scratch), name) for name in (INDEX, CARD)]
