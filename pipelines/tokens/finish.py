"""Finishes a token dataset: its index, its card, and the details of its manifest."""

from pathlib import Path

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.hub.model_name import WEIGHTS
from dualtoken.pipelines.core.commit import StageContent, upload
from dualtoken.pipelines.core.receipts import FileRecord, Receipt, read_manifest, read_receipts
from dualtoken.pipelines.core.stage import StageExtras
from dualtoken.pipelines.tokens.audit import DatasetAudit, stopped
from dualtoken.pipelines.tokens.captions import caption_source_of
from dualtoken.pipelines.tokens.card import CARD_FILE, card
from dualtoken.pipelines.tokens.facts import TokenDetails, TokenFacts, TokenizerIdentity
from dualtoken.pipelines.tokens.shards import (
    INDEX_FILE,
    SCHEMA_VERSION,
    SHARED_CAPTIONS_VERSION,
    IndexBuilder,
)


def tokenizer_identity(store: Store) -> TokenizerIdentity:
    """Return the fingerprint of a trained tokenizer and the SHA-256 of its weights."""
    manifest = read_manifest(store)
    assert manifest is not None, "tokens are made with a finished tokenizer"
    files: dict[str, FileRecord] = {}
    for receipt in read_receipts(store).values():
        for file in receipt.files:
            files[file.name] = file
    return TokenizerIdentity(manifest.fingerprint, files[WEIGHTS].sha256)


class _ReceiptSums:
    """Sums over receipts for the dataset's index, card and details, added up one receipt at a time."""

    def __init__(self, min_psnr: float | None) -> None:
        self.index = IndexBuilder()
        self.audit = DatasetAudit(min_psnr)
        self.devices: set[str] = set()
        """Devices that made the shards, each with its version of torch."""

    def add(self, receipt: Receipt) -> None:
        self.index.add(receipt)
        self.audit.add(receipt)
        made_by = TokenFacts.of(receipt).made_by
        if made_by is not None:
            self.devices.add(made_by)


def finish_tokens(content: StageContent) -> StageExtras:
    """Write the index and the card of a corpus whose units all have their receipts.

    Raises `TokenAlarm` where a shard is unlike the others and the recipe stops at that.
    """
    job = content.job
    config = job.recipe.tokenizer
    sums = _ReceiptSums(job.recipe.pretokenize.min_psnr)
    # One receipt in memory at a time: a corpus of a billion images has a quarter of a million of them.
    for receipt in content.unread_receipts():
        content.add(receipt)
        sums.add(receipt)

    audit = sums.audit.summary()
    if audit.alarms and job.recipe.pretokenize.on_alarm == "stop":
        raise stopped(job.label, audit.alarms[0])
    with scratch_folder() as name:
        scratch = Path(name)
        index = sums.index.write(scratch / INDEX_FILE)
        details = TokenDetails(
            schema_version=SHARED_CAPTIONS_VERSION if caption_source_of(job) else SCHEMA_VERSION,
            tokenizer=tokenizer_identity(job.input("train")),
            grid=(config.grid_size, config.grid_size),
            depth=config.pixel.depth,
            num_codes={"semantic": config.semantic.num_codes, "pixel": config.pixel.num_codes},
            rows=sum(index["rows"].to_pylist()),
            shards=index.num_rows,
            devices=sorted(sums.devices),
            audit=audit,
            seconds_by_part={part: round(seconds, 3) for part, seconds in content.totals.parts.items()},
        )
        (scratch / CARD_FILE).write_text(card(job, details, content.totals), encoding="utf-8")
        files = [upload(job.store(), scratch, file) for file in (INDEX_FILE, CARD_FILE)]
    return StageExtras(details.to_json(), files)
