"""Locates a token dataset's captions: its own `meta/`, or that of another dataset (`captions_of`).

With `pretokenize.captions_of` a further tokenizer's codes are written without captions. Row for row they
belong to the `meta/` of the dataset named there, the *caption source*, which stays as it is. Each receipt
names the source, and the index's `meta_path` leads to its file. That file's checksum stands in the source's
receipt alone, so that there is one record of it. What a dataset must be to share its captions is checked in
`pipelines.tokens.shared_captions`. Imports no torch.
"""

from dualtoken.infra.names import relative_name
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import FileRecord, Receipt, StageRecord, receipt_name
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.tokens.facts import TokenFacts


def own_meta_path(unit: str) -> str:
    """Name a unit's captions in the folder of the dataset that they were written for."""
    return f"meta/{unit}.parquet"


def meta_path(receipt: Receipt) -> str:
    """Return where a shard's captions are, relative to the dataset's folder."""
    path = own_meta_path(receipt.unit)
    source = TokenFacts.of(receipt).captions_of
    return f"../{source}/{path}" if source else path


def resolve_meta_path(store: Store, path: str) -> tuple[Store, str]:
    """Return the folder that a `meta_path` leads to, and the name there: object stores know no `..`.

    Raises `UnsafeNameError` where it leads to neither this folder nor one beside it.
    """
    if not path.startswith("../"):
        return store, relative_name(path, store.url)
    source, _, name = path.removeprefix("../").partition("/")
    folder = store.beside(source)
    return folder, relative_name(name, folder.url)


def meta_record(store: Store, path: str, shard: str) -> tuple[Store, FileRecord]:
    """Return the folder of a shard's captions, and the file's record in the receipt there.

    Raises FileNotFoundError where there is no such receipt, or it names no such file.
    """
    folder, name = resolve_meta_path(store, path)
    receipt = Receipt.read(folder, receipt_name(shard))
    for file in receipt.files:
        if file.name == name:
            return folder, file
    raise FileNotFoundError(f"{join(folder.url, receipt_name(shard))} names no {name}")


def folder_fingerprint(store: Store) -> str:
    """Return the fingerprint that a stage's folder is named after."""
    return store.url.rsplit("/", 1)[1]


def caption_source_of(job: StageJob) -> Store | None:
    """Return the folder of the dataset whose captions a job shares, or None where it writes its own."""
    name = _source_input(job.stage, job.corpus)
    return Store(job.inputs[name]) if name in job.inputs else None


def shares_captions(record: StageRecord) -> bool:
    """Tell whether a folder is that of a token dataset that shares another one's captions."""
    return _source_input(record.stage, record.corpus) in record.inputs


def _source_input(stage: str, corpus: str | None) -> str:
    """Name the caption source among a stage's inputs: no other stage has an input of its own stage."""
    return f"{stage}/{corpus}"
