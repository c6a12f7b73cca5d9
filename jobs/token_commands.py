"""The commands on a token dataset: `inspect`, `export-tokens`, `card`."""

from pathlib import Path
from typing import Annotated

import typer

from infra.storage import scratch_folder
from jobs.session import say


def inspect(
    shard: Annotated[str, typer.Argument(metavar="SHARD", help="data/NNNNN.arrow of a token dataset; a path or URL.")],
    row: Annotated[int | None, typer.Option("--row", help="Show this row too, 0 the first.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="Write the PNG that the row's pixel codes say; row 0 by default.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The tokenizer's folder, where the run's own is gone.")] = None,
) -> None:
    """Show a token shard: schema, metadata, checksum, use of the codebooks; one row, and its picture."""
    from pipelines.shard_view import decode_row, describe, describe_row, find_tokenizer, open_shard  # noqa: PLC0415

    with scratch_folder() as name:
        scratch = Path(name)
        opened = open_shard(shard, scratch)
        for line in describe(opened):
            say(line)
        if row is not None:
            for line in describe_row(opened, row):
                say(line)
        if image is not None:
            picture = decode_row(opened, row or 0, model or find_tokenizer(opened), scratch)
            image.parent.mkdir(parents=True, exist_ok=True)
            picture.save(image, "PNG")
            say(f"{image}: {picture.width} x {picture.height} pixels")
