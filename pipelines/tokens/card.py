"""The card of a token dataset, `README.md` in its folder: what it holds, which tokenizer made it, licenses, and what was left out.

A function of the dataset and of what it was made from, so that the same recipe gives the same bytes; times stand in the manifest.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import pyarrow.compute as pc

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.crops import WHOLE_IMAGE
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.core.totals import Totals
from dualtoken.pipelines.tokens.captions import caption_source_of
from dualtoken.pipelines.tokens.facts import TokenDetails

CARD_FILE = "README.md"
LICENSE_COLUMNS = ("license", "licence", "license_url")
SHOWN_LICENSES = 50
_HEAD = """---
tags:
- dualtoken-tokens
---
# Tokens of {corpus}

{rows:,} rows of image codes, with captions, by a dual-vocabulary vision tokenizer ([arXiv 2503.14324](https://arxiv.org/abs/2503.14324)):
{shards:,} shards, {bytes:,} bytes. `FORMAT.md` of the DualToken project specifies the files, `manifest.json` holds the checksums.
"""
_USAGE = """
## Use

```python
import numpy as np
from dualtoken import TokenDataset

tokens = TokenDataset(".")  # this folder; a remote one needs a cache
rows = tokens.read(np.arange(4))
print(rows.semantic.shape, rows.pixel.shape, tokens.captions(np.arange(4)))
```

Other formats: `dualtoken export-tokens . --format webdataset --out DIR`, or `parquet`, `hf`, `megatron`.
"""


def card(job: StageJob, details: TokenDetails, totals: Totals) -> str:
    """Return the card of a dataset whose every unit has its receipt; `details` are its manifest's, `totals` its receipts'."""
    head = _HEAD.format(corpus=job.corpus, rows=details.rows, shards=details.shards, bytes=totals.bytes)
    captions = caption_source_of(job) or job.store()
    parts = [head, *_borrowed(captions, job), *_tokenizer(details), *_funnel(job, totals)]
    parts += _licenses(
        captions, [unit.id for unit in job.units], cropped=job.recipe.pretokenize.crops != WHOLE_IMAGE
    )
    return "\n".join(parts) + "\n" + _USAGE


def _borrowed(captions: Store, job: StageJob) -> Iterator[str]:
    if captions.url != job.store().url:
        lender = captions.url.rsplit("/", 1)[1]
        yield f"Its captions lie in the folder `../{lender}`, beside another tokenizer's codes of the same images.\n"


def _tokenizer(details: TokenDetails) -> Iterator[str]:
    rows, columns = details.grid
    depth = details.depth
    tokenizer = details.tokenizer
    yield f"## Tokenizer\n\nTraining run `{tokenizer.fingerprint}`, weights with the SHA-256 `{tokenizer.sha256}`.\n"
    yield "| stream | codes of an image | codebook | bits of an image |\n|---|---|---|---|"
    for stream, size in details.num_codes.items():
        bits = rows * columns * depth * math.log2(size)
        yield f"| {stream} | {rows} x {columns} x {depth} | {size:,} | {bits:,.0f} |"


def _funnel(job: StageJob, totals: Totals) -> Iterator[str]:
    """Tabulate what came in and what became of it, for each step whose folder is at hand."""
    yield "\n## What was left out\n\n| step | samples in | went on | left out |\n|---|---|---|---|"
    for step in ("download", "score", "filter"):
        if manifest := read_manifest(job.input(step)):
            yield _funnel_row(step, manifest.rows_in, manifest.counts)
    yield _funnel_row("pretokenize", totals.rows, dict(sorted(totals.counts.items())))


def _funnel_row(step: str, rows_in: int, counts: Mapping[str, int]) -> str:
    lost = ", ".join(f"{count:,} {status}" for status, count in counts.items() if status != "ok") or "none"
    return f"| {step} | {rows_in:,} | {counts.get('ok', 0):,} | {lost} |"


def _licenses(store: Store, units: list[str], *, cropped: bool) -> Iterator[str]:
    yield "\n## Licenses\n"
    names = read_table(store, f"meta/{units[0]}.parquet", list(LICENSE_COLUMNS)).column_names if units else []
    column = next((name for name in LICENSE_COLUMNS if name in names), None)
    if column is None:
        yield "Not known: the corpus's table has no license column, or the recipe does not carry one along (`keep_columns`)."
        return
    counts: Counter[str] = Counter()
    for of_unit in map_ahead(lambda unit: _count(store, unit, column, cropped=cropped), units):
        counts.update(of_unit)
    yield f"Of the column `{column}`, as the corpus's table gives it.\n\n| license | images |\n|---|---|"
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    yield from (
        f"| {' '.join(name.split()).replace('|', ' ')} | {count:,} |"
        for name, count in ranked[:SHOWN_LICENSES]
    )
    if others := ranked[SHOWN_LICENSES:]:
        yield f"| {len(others):,} others | {sum(count for _, count in others):,} |"


def _count(store: Store, unit: str, column: str, *, cropped: bool) -> Counter[str]:
    """Count a unit's images by license; of an image's crops the first stands for it."""
    table = read_table(store, f"meta/{unit}.parquet", [column, "variant"] if cropped else [column])
    values = (table.filter(pc.field("variant") == 0) if cropped else table)[column].value_counts().to_pylist()
    return Counter(
        {"none given" if pair["values"] is None else str(pair["values"]): pair["counts"] for pair in values}
    )
