"""What an exported token dataset says of itself, the same in every format.

`export.json` has all of it, README.md has it in words, and Parquet files and Hugging Face's folders hold it
as JSON. H by W positions, D depths, N = H * W * D.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from dualtoken.pipelines.core.receipts import Record

README = "README.md"
METADATA_KEY = "dualtoken"
"""Name of the description in the metadata of Parquet schemas."""
ORDER = "position-major, depth-minor: positions by row of the grid from the top, then column, then depth"
KEY = "32 hexadecimal digits in lower case"
"""The one form of a row's key in exports; a token dataset holds its 16 bytes."""


class Shape(NamedTuple):
    """What all rows of a dataset have in common."""

    grid: tuple[int, int]
    depth: int
    num_codes: dict[str, int]
    """Size of the codebook, by stream that is exported, in their order."""
    num_shards: int
    fingerprint: str
    """The dataset's root hash."""

    @property
    def codes_per_row(self) -> int:
        """Codes of one stream of a row, N."""
        rows, columns = self.grid
        return rows * columns * self.depth


class Description(Record):
    """What an export holds, known before its first file is written."""

    format: str
    dataset: str
    root_hash: str
    """Hash of the dataset that was exported."""
    tokenizer: dict[str, str]
    """`fingerprint` of its training run, `sha256` of its weights."""
    image_size: int | None
    """Side of the square that the tokenizer sees, pixels; None where the dataset does not say so."""
    preprocessing: str
    """What was done to images before they were encoded, in words: resize, crop, scale of the levels."""
    grid: tuple[int, int]
    depth: int
    codes: dict[str, int]
    """Size of the codebook, by stream in the order of the ids."""
    order: str = ORDER
    key: str = KEY
    first_id: int
    rows: int
    places: dict[str, str]
    """Where a row's key, codes, caption and other columns stand."""
    layout: dict[str, Any]
    """What else a reader of the files must know: shape and type of the codes, and Megatron's ids."""


def schema_metadata(description: Description) -> dict[str, str]:
    """Return the description as metadata of a schema."""
    return {METADATA_KEY: description.model_dump_json()}


def readme(description: Description) -> str:
    """Return the page beside an export's files."""
    return "\n".join(_lines(description)) + "\n"


def _lines(description: Description) -> Iterator[str]:
    rows, columns = description.grid
    tokenizer = description.tokenizer
    size = description.image_size
    codebooks = ", ".join(f"{stream} {number:,}" for stream, number in description.codes.items())
    yield f"# {description.rows:,} rows of image codes, as {description.format}\n"
    yield f"Exported from a token dataset with the root hash `{description.root_hash}`.\n"
    yield f"* Codes of a row and stream: {rows} x {columns} x {description.depth} (rows, columns, depths)."
    yield f"* Order: {description.order}."
    yield f"* Codebooks: {codebooks} codes."
    yield f"* Key: {description.key}."
    yield f"* Tokenizer: training run `{tokenizer['fingerprint']}`, weights' SHA-256 `{tokenizer['sha256']}`."
    yield f"* Image size: {'not known' if size is None else f'{size} x {size} pixels'}."
    yield f"* Images were prepared thus: {description.preprocessing}."
    yield "\n## Where a row's parts are\n\n| part | place |\n|---|---|"
    for part, place in description.places.items():
        yield f"| {part} | {place} |"
    yield "\n## Layout\n\n| fact | value |\n|---|---|"
    for fact, value in description.layout.items():
        yield f"| {fact} | {value if isinstance(value, str) else json.dumps(value)} |"
    yield "\n`export.json` says all of this as JSON, with each file's size and checksums."
