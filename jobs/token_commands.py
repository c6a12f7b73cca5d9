"""The commands on a token dataset: `inspect`, `export-tokens`, `card`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store, join
from dualtoken.jobs.options import CorpusOption, RootOption, SetOption
from dualtoken.jobs.recipe_arguments import print_line
from dualtoken.jobs.stage_places import RecipeOptions, find_model, find_stage
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.core.receipts import done_units
from dualtoken.pipelines.core.totals import sum_receipts
from dualtoken.pipelines.errors import ExitCode, UserError
from dualtoken.pipelines.runtime.stage_folder import read_stage, stage_job
from dualtoken.pipelines.tokens.card import CARD_FILE
from dualtoken.pipelines.tokens.card import card as compose_card
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.facts import STREAMS, TokenDetails
from dualtoken.pipelines.tokens.shards import TOKEN_STAGE, data_path, require_finished

SHARD_SUFFIX = ".arrow"
DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="A token dataset: <corpus>/tokens/<fingerprint>, a folder above it, or a recipe "
        "(with --corpus where it has several).",
    ),
]


class TokenFormat(StrEnum):
    """What `export-tokens` writes."""

    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    HF = "hf"
    MEGATRON = "megatron"


class Streams(StrEnum):
    """Which codes `export-tokens` writes."""

    BOTH = "both"
    SEMANTIC = "semantic"
    PIXEL = "pixel"


def inspect(
    place: Annotated[
        str,
        typer.Argument(
            metavar="SHARD|DATASET",
            help="data/NNNNN.arrow of a token dataset, a path or URL; or the dataset as `card` takes it, "
            "for its first shard.",
        ),
    ],
    shard: Annotated[
        str | None, typer.Option("--shard", help="Which shard of a DATASET, such as 00003.")
    ] = None,
    row: Annotated[int | None, typer.Option("--row", help="Show this row too, 0 the first.")] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Write the PNG that the row's pixel codes say; row 0 by default."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The tokenizer's folder, where the run's own is gone.")
    ] = None,
    corpus: CorpusOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Show a token shard: schema, metadata, checksum, use of the codebooks; one row, and its picture."""
    from dualtoken.pipelines.maintenance.inspect_shard import (  # noqa: PLC0415
        decode_row,
        describe,
        describe_row,
        find_tokenizer,
        open_shard,
    )

    if not place.endswith(SHARD_SUFFIX):
        place = _shard_of(find_stage(place, TOKEN_STAGE, RecipeOptions(overrides, root, corpus)), shard)
    with scratch_folder() as name:
        scratch = Path(name)
        opened = open_shard(place, scratch)
        for line in describe(opened):
            print_line(line)
        if row is not None:
            for line in describe_row(opened, row):
                print_line(line)
        if image is not None:
            with find_model(model or find_tokenizer(opened), RecipeOptions()) as tokenizer:
                picture = decode_row(opened, row or 0, tokenizer, scratch)
            image.parent.mkdir(parents=True, exist_ok=True)
            picture.save(image, "PNG")
            print_line(f"{image}: {picture.width} x {picture.height} pixels")


def _shard_of(dataset: Store, shard: str | None) -> str:
    """Return the URL of a dataset's shard, of the first one by default."""
    names = sorted(name for name, _ in dataset.files("data") if name.endswith(SHARD_SUFFIX))
    if not names:
        raise UserError(f"{dataset.url} has no shard: run `dualtoken {TOKEN_STAGE}` first")
    if shard is None:
        return join(dataset.url, names[0])
    wanted = data_path(shard.removesuffix(SHARD_SUFFIX))
    if wanted not in names:
        raise UserError(f"--shard {shard}: {dataset.url} has {names[0]} to {names[-1]}: name one of them")
    return join(dataset.url, wanted)


def export_tokens(
    dataset: DatasetArgument,
    format: Annotated[TokenFormat, typer.Option("--format", help="Of which tool.")],  # noqa: A002
    out: Annotated[str, typer.Option("--out", help="An empty folder; a path or URL.")],
    streams: Annotated[Streams, typer.Option("--streams", help="Which codes.")] = Streams.BOTH,
    first_id: Annotated[
        int,
        typer.Option(
            "--first-id", min=0, help="Megatron: the id of semantic code 0, such as the text's ids."
        ),
    ] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Refuse tokens of another tokenizer than this fingerprint."),
    ] = None,
    corpus: CorpusOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Write a token dataset as WebDataset, Parquet, Hugging Face or Megatron files, with checksums."""
    # Its formats' libraries take a second.
    from dualtoken.pipelines.tokens.export import export_tokens as write  # noqa: PLC0415

    found = find_stage(dataset, TOKEN_STAGE, RecipeOptions(overrides, root, corpus)).url
    chosen = STREAMS if streams == Streams.BOTH else (streams.value,)
    try:
        done = write(found, format.value, out, streams=chosen, first_id=first_id, tokenizer=tokenizer)
    except DamagedShardError as error:
        typer.echo(f"dualtoken: {error}", err=True)
        raise typer.Exit(ExitCode.BUG) from None
    size = sum(file.bytes for file in done.files)
    rows = pluralized(done.rows, "row")
    files = pluralized(len(done.files), "file")
    print_line(f"{out}: {rows} in {files}, {size:,} bytes, as {done.format}")


def card(
    dataset: DatasetArgument,
    out: Annotated[
        Path | None, typer.Option("--out", help="A file to write it into; by default it is printed.")
    ] = None,
    corpus: CorpusOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Show a token dataset's card: counts, bytes, tokenizer, licenses, and what was left out."""
    store = find_stage(dataset, TOKEN_STAGE, RecipeOptions(overrides, root, corpus))
    try:
        details = TokenDetails.of(require_finished(store))
    except ValueError as error:
        raise UserError(str(error)) from error
    if store.exists(CARD_FILE):
        text = store.read(CARD_FILE).decode()
    else:  # a dataset from before cards were written
        text = compose_card(
            stage_job(store, read_stage(store)), details, sum_receipts(store, done_units(store))
        )
    if out is None:
        print_line(text.rstrip())
    else:
        out.write_text(text, encoding="utf-8")
