"""Finishes a token dataset: its index, its card, and the details of its manifest."""

from pathlib import Path
from typing import Any

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.hub.model_name import WEIGHTS
from dualtoken.pipelines.core.commit import StageContent, upload
from dualtoken.pipelines.core.receipts import FileRecord, Receipt, read_manifest, read_receipts
from dualtoken.pipelines.core.timing import PARTS_DETAIL
from dualtoken.pipelines.tokens.audit import Alarm, DatasetAudit, stopped
from dualtoken.pipelines.tokens.captions import caption_source_of
from dualtoken.pipelines.tokens.card import CARD_FILE, card
from dualtoken.pipelines.tokens.shards import (
    INDEX_FILE,
    SCHEMA_VERSION,
    SHARED_CAPTIONS_VERSION,
    IndexBuilder,
)


def tokenizer_identity(store: Store) -> dict[str, str]:
    """Return the fingerprint of a trained tokenizer and the SHA-256 of its weights."""
    manifest = read_manifest(store)
    assert manifest is not None, "tokens are made with a finished tokenizer"
    files: dict[str, FileRecord] = {}
    for receipt in read_receipts(store).values():
        for file in receipt.files:
            files[file.name] = file
    return {"fingerprint": manifest.fingerprint, "sha256": files[WEIGHTS].sha256}


class _ReceiptSums:
    """What the dataset's own files and details need of its receipts, added up one receipt at a time."""

    def __init__(self, min_psnr: float | None) -> None:
        self.index = IndexBuilder()
        self.audit = DatasetAudit(min_psnr)
        self.devices: set[str] = set()
        """Devices that made the shards, each with its version of torch."""

    def add(self, receipt: Receipt) -> None:
        self.index.add(receipt)
        self.audit.add(receipt)
        if "device" in receipt.facts:  # receipts from before there were such facts name none
            self.devices.add(f"{receipt.facts['device']}, torch {receipt.facts['torch']}")


def finish_tokens(content: StageContent) -> tuple[dict[str, Any], list[FileRecord]]:
    """Write the index and the card of a corpus whose units all have their receipts.

    Returns the manifest's details and the records of both files. Raises `TokenAlarm` where a shard is unlike the others
    and the recipe stops at that.
    """
    recipe = content.job.recipe
    sums = _ReceiptSums(recipe.pretokenize.min_psnr)
    # One receipt in memory at a time: a corpus of a billion images has a quarter of a million of them.
    for receipt in content.unread_receipts():
        content.add(receipt)
        sums.add(receipt)

    audit = sums.audit.summary()
    if audit["alarms"] and recipe.pretokenize.on_alarm == "stop":
        raise stopped(content.job.label, Alarm(**audit["alarms"][0]))
    with scratch_folder() as scratch:
        index = sums.index.write(Path(scratch) / INDEX_FILE)
        details = {
            **_dataset_details(content),
            "rows": sum(index["rows"].to_pylist()),
            "shards": index.num_rows,
            "devices": sorted(sums.devices),
            "audit": audit,
            PARTS_DETAIL: {name: round(seconds, 3) for name, seconds in content.totals.parts.items()},
        }
        (Path(scratch) / CARD_FILE).write_text(card(content.job, details, content.totals), encoding="utf-8")
        store = content.job.store()
        return details, [upload(store, Path(scratch), name) for name in (INDEX_FILE, CARD_FILE)]


def _dataset_details(content: StageContent) -> dict[str, Any]:
    """Return the manifest's details that are known without reading a receipt: format, tokenizer and shape of the codes."""
    job = content.job
    tokenizer = job.recipe.tokenizer
    schema_version = SCHEMA_VERSION
    if caption_source_of(job):
        schema_version = SHARED_CAPTIONS_VERSION
    return {
        "schema_version": schema_version,
        "tokenizer": tokenizer_identity(job.input("train")),
        "grid": [tokenizer.grid_size, tokenizer.grid_size],
        "depth": tokenizer.pixel.depth,
        "codes": {"semantic": tokenizer.semantic.num_codes, "pixel": tokenizer.pixel.num_codes},
    }
