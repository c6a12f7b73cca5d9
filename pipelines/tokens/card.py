"""Writes a token dataset's card, its `README.md`: contents, tokenizer, licenses, and what was left out.

The card is a function of the dataset and of what it was made from, so that the same recipe gives the same
bytes; times stand in the manifest.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pyarrow.compute as pc

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.crops import WHOLE_IMAGE
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.core.totals import Totals
from dualtoken.pipelines.tokens.captions import caption_source_of, folder_fingerprint, own_meta_path
from dualtoken.pipelines.tokens.facts import TokenDetails

CARD_FILE = "README.md"
LICENSE_COLUMNS = ("license", "licence", "license_url")
SHOWN_LICENSES = 50
_HEAD = """---
tags:
- dualtoken-tokens
---
# Tokens of {corpus}

{rows:,} rows of image codes, with captions, by a dual-vocabulary vision tokenizer \
([arXiv 2503.14324](https://arxiv.org/abs/2503.14324)):
{shards:,} shards, {bytes:,} bytes. `FORMAT.md` of the DualToken project specifies the files, \
`manifest.json` holds the checksums.
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
    """Return the card of a dataset that has a receipt for every unit.

    `details` are those of its manifest; `totals` adds up its receipts.
    """
    parts = [_HEAD.format(corpus=job.corpus, rows=details.rows, shards=details.shards, bytes=totals.bytes)]
    source = caption_source_of(job)
    if source is not None:
        parts.append(_shared_captions(source))
    parts += _tokenizer(details)
    parts += _funnel(job, totals)
    parts += _licenses(source or job.store(), job)
    return "\n".join(parts) + "\n" + _USAGE


def _shared_captions(source: Store) -> str:
    folder = f"../{folder_fingerprint(source)}"
    return (
        f"Its captions lie in the folder `{folder}`, beside another tokenizer's codes of the same images.\n"
    )


def _tokenizer(details: TokenDetails) -> Iterator[str]:
    rows, columns = details.grid
    tokenizer = details.tokenizer
    yield "## Tokenizer\n"
    yield f"Training run `{tokenizer.fingerprint}`, weights with the SHA-256 `{tokenizer.sha256}`.\n"
    yield "| stream | codes of an image | codebook | bits of an image |\n|---|---|---|---|"
    for stream, num_codes in details.num_codes.items():
        bits = rows * columns * details.depth * math.log2(num_codes)
        yield f"| {stream} | {rows} x {columns} x {details.depth} | {num_codes:,} | {bits:,.0f} |"


def _funnel(job: StageJob, totals: Totals) -> Iterator[str]:
    """Tabulate what came in and what became of it, for each stage whose folder is at hand."""
    yield "\n## What was left out\n\n| step | samples in | went on | left out |\n|---|---|---|---|"
    for name in job.inputs:
        stage, _, corpus = name.partition("/")
        if corpus != job.corpus or stage == job.stage:
            continue  # the tokenizer, or the dataset that captions are shared with
        manifest = read_manifest(job.input(stage))
        if manifest is not None:
            yield _funnel_row(stage, manifest.rows_in, manifest.counts)
    yield _funnel_row(job.stage, totals.rows, dict(sorted(totals.counts.items())))


def _funnel_row(stage: str, rows_in: int, counts: Mapping[str, int]) -> str:
    lost = [f"{count:,} {status}" for status, count in counts.items() if status != "ok"]
    return f"| {stage} | {rows_in:,} | {counts.get('ok', 0):,} | {', '.join(lost) or 'none'} |"


def _licenses(captions: Store, job: StageJob) -> Iterator[str]:
    """Count the licenses of a dataset's images; `captions` is the folder of its `meta/`."""
    yield "\n## Licenses\n"
    units = [unit.id for unit in job.units]
    column = _license_column(captions, units)
    if column is None:
        yield (
            "Not known: the corpus's table has no license column, or the recipe does not carry one along "
            "(`keep_columns`)."
        )
        return

    cropped = job.recipe.pretokenize.crops != WHOLE_IMAGE
    counts: Counter[str] = Counter()
    for unit_counts in map_ahead(lambda unit: _count(captions, unit, column, cropped=cropped), units):
        counts.update(unit_counts)

    yield f"Of the column `{column}`, as the corpus's table gives it.\n\n| license | images |\n|---|---|"
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    for name, count in ranked[:SHOWN_LICENSES]:
        one_line = " ".join(name.split()).replace("|", " ")
        yield f"| {one_line} | {count:,} |"
    others = ranked[SHOWN_LICENSES:]
    if others:
        yield f"| {len(others):,} others | {sum(count for _, count in others):,} |"


def _license_column(captions: Store, units: Sequence[str]) -> str | None:
    """Return the first of `LICENSE_COLUMNS` that the captions' tables have, all the same, or None."""
    if not units:
        return None
    present = read_table(captions, own_meta_path(units[0]), list(LICENSE_COLUMNS)).column_names
    for name in LICENSE_COLUMNS:
        if name in present:
            return name
    return None


def _count(captions: Store, unit: str, column: str, *, cropped: bool) -> Counter[str]:
    """Count a unit's images by license; of an image's crops the first one counts."""
    name = own_meta_path(unit)
    if cropped:
        table = read_table(captions, name, [column, "variant"])
        table = table.filter(pc.field("variant") == 0)
    else:
        table = read_table(captions, name, [column])
    counts: Counter[str] = Counter()
    for pair in table[column].value_counts().to_pylist():
        license_name = "none given" if pair["values"] is None else str(pair["values"])
        counts[license_name] = pair["counts"]
    return counts
