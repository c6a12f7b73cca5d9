"""Finishes a token dataset: its index, its card, and the details of its manifest."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.model.hub.model_name import WEIGHTS
from dualtoken.pipelines.core.commit import StageContent, upload
from dualtoken.pipelines.core.receipts import FileRecord, Receipt, read_manifest, read_receipts
from dualtoken.pipelines.tokens.audit import DatasetAudit, stopped
from dualtoken.pipelines.tokens.captions import caption_source_of
from dualtoken.pipelines.tokens.card import CARD_FILE, card
from dualtoken.pipelines.tokens.facts import TokenDetails, TokenFacts, TokenizerIdentity
from dualtoken.pipelines.tokens.shards import INDEX_FILE, SCHEMA_VERSION, SHARED_CAPTIONS_VERSION, write_index


def tokenizer_identity(store: Store) -> TokenizerIdentity:
    """Return the fingerprint of a trained tokenizer and the SHA-256 of its weights."""
    manifest = read_manifest(store)
    assert manifest is not None, "tokens are made with a finished tokenizer"
    files = {file.name: file for receipt in read_receipts(store).values() for file in receipt.files}
    return TokenizerIdentity(manifest.fingerprint, files[WEIGHTS].sha256)


def _noting_devices(receipts: Iterable[Receipt], devices: set[str]) -> Iterator[Receipt]:
    """Pass receipts on; from before there were such facts they name none."""
    for receipt in receipts:
        made_by = TokenFacts.of(receipt).made_by
        if made_by is not None:
            devices.add(made_by)
        yield receipt


def finish_tokens(content: StageContent) -> tuple[dict[str, Any], list[FileRecord]]:
    """Write the index and the card of a corpus whose every unit has its receipt; return them with the manifest's details."""
    job, audit, devices = content.job, DatasetAudit(content.job.recipe.pretokenize.min_psnr), set[str]()
    config = job.recipe.tokenizer
    with scratch_folder() as scratch:
        index = write_index(
            Path(scratch) / INDEX_FILE, audit.seen(_noting_devices(content.receipts(), devices))
        )
        summary = audit.summary()
        if summary.alarms and job.recipe.pretokenize.on_alarm == "stop":
            raise stopped(job.label, summary.alarms[0])
        details = TokenDetails(
            schema_version=SHARED_CAPTIONS_VERSION if caption_source_of(job) else SCHEMA_VERSION,
            tokenizer=tokenizer_identity(job.input("train")),
            grid=(config.grid_size, config.grid_size),
            depth=config.pixel.depth,
            num_codes={"semantic": config.semantic.num_codes, "pixel": config.pixel.num_codes},
            rows=sum(index["rows"].to_pylist()),
            shards=index.num_rows,
            devices=sorted(devices),
            audit=summary,
            seconds_by_part={name: round(seconds, 3) for name, seconds in content.totals.parts.items()},
        )
        (Path(scratch) / CARD_FILE).write_text(card(job, details, content.totals), encoding="utf-8")
        return details.to_json(), [
            upload(job.store(), Path(scratch), name) for name in (INDEX_FILE, CARD_FILE)
        ]
