"""Pretokenize: the kept samples of an image shard to one token shard, from a stream of batches and in bounded memory."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.metrics.arrays import Levels, psnr
from dualtoken.pipelines.config.crops import WHOLE_IMAGE
from dualtoken.pipelines.core.ledger import KEY_BYTES, OK_VERDICT, Status, Verdict, ledger_table
from dualtoken.pipelines.core.receipts import LEDGERS
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tables import read_input
from dualtoken.pipelines.core.threads import BackgroundThread
from dualtoken.pipelines.core.timing import Stopwatch
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.crops import CROP_FIELDS, Crop, crop_columns
from dualtoken.pipelines.images.samples import KeptSample, kept_samples, open_image_shard
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.inference.adaptive_batch import AdaptiveBatchEncoder
from dualtoken.pipelines.inference.image_stream import ImageBatch, ImageStream, Undecodable
from dualtoken.pipelines.inference.networks import (
    TokenizerRunner,
    describe_device,
    open_tokenizer,
    prepare_process,
)
from dualtoken.pipelines.tokens.audit import CodeCounter, sample_rows
from dualtoken.pipelines.tokens.captions import caption_source_of, require_same_rows
from dualtoken.pipelines.tokens.facts import ShardAudit, TokenFacts
from dualtoken.pipelines.tokens.finish import tokenizer_identity
from dualtoken.pipelines.tokens.shards import (
    STREAMS,
    Ids,
    TokenShardWriter,
    codes_of,
    data_path,
    read_data_shard,
    token_schema,
)

SCORES = {"similarity": "teacher_similarity"}
"""Scores carried along, and the names that they get: a source may have a column of the plain name."""
LEFT_OUT = {"key", "sample_key", "status", "reason", "error_message", "width", "height"}
"""Of an image shard's columns: the sample key stands first, every kept sample succeeded, and stored sizes are the recipe's."""
UNDECODABLE = "undecodable"
"""Why a kept sample may still be lost: its image was damaged since it was scored."""


class Worker:
    """Encodes one image shard per unit; only the layers that codes need are run."""

    def __init__(self, job: StageJob, *, write_beside: bool | None = None) -> None:
        """Open the tokenizer; by default one batch is written beside the next ones' encoding where that is a GPU's work."""
        self._job, self._lender, config = job, caption_source_of(job), job.recipe.pretokenize
        prepare_process(threads=1, exact_float32=True)
        self._tokenizer = open_tokenizer(job)
        self._encoder = AdaptiveBatchEncoder(self._tokenizer, config.batch_size)
        beside_gpu = self._tokenizer.device.type == "cuda"
        self._write_beside = beside_gpu if write_beside is None else write_beside
        self._images = ImageStream(config, self._tokenizer.network.transform, beside_gpu=beside_gpu)
        identity = tokenizer_identity(job.input("train"))
        self._schema = token_schema(self._tokenizer.config, identity, self._preprocessing(), config.precision)

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `data/<shard>.arrow` and, unless captions are borrowed, `meta/<shard>.parquet`."""
        data, watch = data_path(unit.id), Stopwatch()
        with watch.timed("fetch"):
            shard, rows = self._open(unit, scratch)
        done = _Done(self._tokenizer.config, self._audited(unit, len(rows)))
        with TokenShardWriter(scratch / data, self._schema) as writer:
            self._encode(shard, rows, done, writer, watch)
        with watch.timed("audit"):
            ratios = done.ratios(scratch / data, self._tokenizer)
        with watch.timed("captions"):
            meta = self._captions(unit, shard, done, scratch)
        captions_of = None if self._lender is None else self._lender.url.rsplit("/", 1)[1]
        made_by = describe_device(self._tokenizer.device)
        facts = TokenFacts(
            shard=unit.id,
            usage=done.usage(),
            audit=done.audit(ratios),
            rows=writer.rows,
            captions_of=captions_of,
            device=made_by["device"],
            torch=made_by["torch"],
        )
        ledger = ledger_table([row.key for row in rows], [_verdict(found) for found in done.found])
        return UnitOutput((data, *meta), ledger, facts.to_json(), {data: writer.digest}, watch.seconds())

    def _open(self, unit: Unit, scratch: Path) -> tuple[ImageShard, list[KeptSample]]:
        """Open the unit's image shard, and see before the work that its rows can be written."""
        shard = open_image_shard(self._job.input("download"), unit.id, scratch)
        rows = kept_samples(shard, read_input(self._job.input("filter"), f"{unit.id}.parquet"))
        self._require_free_names(shard)
        self._require_same(
            f"{LEDGERS}/{unit.id}.parquet", rows, scratch
        )  # before the work; then of what came of it
        return shard, rows

    def _encode(
        self,
        shard: ImageShard,
        rows: Sequence[KeptSample],
        done: "_Done",
        writer: TokenShardWriter,
        watch: Stopwatch,
    ) -> None:
        """Write the rows' codes, by batch; `beside` the encoder a batch is counted, hashed and written while it does the next ones."""
        self._encoder.begin()
        with (
            closing(self._images.batches(shard, rows)) as stream,
            BackgroundThread(threaded=self._write_beside) as beside,
        ):
            for batch in watch.waiting("wait", stream):
                with watch.timed("encode"):
                    codes = self._encoder.encode(batch.levels)
                with watch.timed("write"):  # of the time that this thread waits
                    beside.submit(partial(done.write, writer, batch, codes))
            with watch.timed("write"):
                beside.finish()

    def _preprocessing(self) -> str:
        cropped = self._job.recipe.pretokenize.crops != WHOLE_IMAGE
        return f"{'crop of the meta table, then ' if cropped else ''}{self._tokenizer.network.transform}"

    def _require_free_names(self, shard: ImageShard) -> None:
        """Raise `UserError` where a column that is carried along has the name of one that is added."""
        crops = (
            () if self._job.recipe.pretokenize.crops == WHOLE_IMAGE else (field.name for field in CROP_FIELDS)
        )
        if taken := {*SCORES.values(), *crops}.intersection(shard.metadata.column_names):
            raise UserError(
                f"the images of {self._job.corpus} have a column {min(taken)!r}, which token shards use themselves: rename it"
            )

    def _audited(self, unit: Unit, rows: int) -> frozenset[int]:
        config = self._job.recipe.pretokenize
        return sample_rows(f"{self._job.corpus}/{unit.id}", rows * config.num_variants, config.audit_rows)

    def _captions(self, unit: Unit, shard: ImageShard, done: "_Done", scratch: Path) -> tuple[str, ...]:
        """Write the rows' captions, or see that those to be borrowed are theirs; return the file, if there is one."""
        name = f"meta/{unit.id}.parquet"
        crops = [found for found in done.found if not isinstance(found, Undecodable)]
        rows = [row for row, found in zip(done.rows, crops, strict=True) for _ in found]
        cut = {} if self._job.recipe.pretokenize.crops == WHOLE_IMAGE else crop_columns(crops)
        if self._lender is not None:
            self._require_same(name, rows, scratch, **cut)
            return ()
        (scratch / "meta").mkdir()
        pq.write_table(self._meta(unit, shard, rows, cut), scratch / name, compression="zstd")
        return (name,)

    def _meta(
        self, unit: Unit, shard: ImageShard, rows: Sequence[KeptSample], cut: Mapping[str, pa.Array]
    ) -> pa.Table:
        """Join a shard's own columns, the scores and the crops, in the order of the token rows."""
        scores = read_input(self._job.input("score"), f"{unit.id}.parquet", ["key", *SCORES])
        own = shard.metadata.take(pa.array([row.row for row in rows], pa.int64()))
        by_key = {key: place for place, key in enumerate(scores["key"].to_pylist())}
        scored = scores.take(pa.array([by_key[row.key] for row in rows], pa.int64()))
        carried = {name: own[name] for name in own.column_names if name not in LEFT_OUT}
        return pa.table(
            {"key": scored["key"], **carried, **{ours: scored[name] for name, ours in SCORES.items()}, **cut}
        )

    def _require_same(self, name: str, rows: Sequence[KeptSample], scratch: Path, **cut: pa.Array) -> None:
        """Raise `UserError` where captions are borrowed from a dataset with other rows in this table."""
        if self._lender is not None:
            keys = pa.array([row.key for row in rows], pa.binary(KEY_BYTES))
            require_same_rows(self._lender, self._job.corpus, name, {"key": keys, **cut}, scratch)


class _Done:
    """What a unit has encoded so far: what became of each sample, its codes counted, and the images to look at again."""

    def __init__(self, config: TokenizerConfig, audited: frozenset[int]) -> None:
        self.rows: list[KeptSample] = []
        """Of the samples that could be decoded."""
        self.found: list[tuple[Crop, ...] | Undecodable] = []
        """By sample."""
        books = {"semantic": config.semantic, "pixel": config.pixel}
        self._tallies = {stream: CodeCounter(book.depth, book.num_codes) for stream, book in books.items()}
        self._audited, self._places_seen, self._rows_out = audited, 0, 0
        self._seen: dict[int, Levels] = {}

    def write(self, writer: TokenShardWriter, batch: ImageBatch, codes: Sequence[Ids]) -> None:
        """Take a batch, and add its rows to the shard."""
        writer.append(*self.take(batch, codes))

    def take(self, batch: ImageBatch, codes: Sequence[Ids]) -> tuple[list[bytes], Ids, Ids]:
        """Return the rows that a batch adds to the shard: keys, semantic and pixel codes."""
        variants = len(batch.levels) // len(batch.rows)
        whole = [not isinstance(found, Undecodable) for found in batch.found]
        places = np.flatnonzero(np.repeat(whole, variants))
        semantic, pixel = (
            ids.reshape(len(ids), -1)[places] if not all(whole) else ids.reshape(len(ids), -1)
            for ids in codes
        )
        for stream, ids in zip(STREAMS, (semantic, pixel), strict=True):
            self._tallies[stream].add(ids)
        for row, place in enumerate(places.tolist(), start=self._rows_out):
            if self._places_seen + place in self._audited:
                self._seen[row] = batch.levels[place].numpy().copy()
        self.found += batch.found
        kept = [row for row, sound in zip(batch.rows, whole, strict=True) if sound]
        self.rows += kept
        self._places_seen += len(batch.levels)
        self._rows_out += len(places)
        return [row.key for row in kept for _ in range(variants)], semantic, pixel

    def ratios(self, path: Path, tokenizer: TokenizerRunner) -> dict[int, float]:
        """Decode the chosen rows from the codes that the file holds; return their PSNR by row."""
        if not self._seen:
            return {}
        grid = (1, tokenizer.config.grid_size, tokenizer.config.grid_size, tokenizer.config.pixel.depth)
        chosen = read_data_shard(path).select(["pixel"]).take(pa.array(list(self._seen), pa.int64()))
        # One by one: the decoder takes more memory an image than encoding does.
        shown = (tokenizer.decode(ids.reshape(grid))[0].cpu().numpy() for ids in codes_of(chosen, "pixel"))
        return {
            row: round(psnr(image, seen), 2)
            for image, (row, seen) in zip(shown, self._seen.items(), strict=True)
        }

    def usage(self) -> dict[str, list[float]]:
        """Return, by stream, the share of codes that the shard uses, per depth."""
        return {stream: tally.usage() for stream, tally in self._tallies.items()}

    def audit(self, ratios: dict[int, float]) -> ShardAudit:
        """Return the audit of the shard; `ratios` are the PSNR of the rows looked at."""
        return ShardAudit(
            rows=self._rows_out,
            looked_at=list(ratios),
            psnr=list(ratios.values()),
            perplexity={stream: tally.perplexity() for stream, tally in self._tallies.items()},
        )


def _verdict(found: tuple[Crop, ...] | Undecodable) -> Verdict:
    if isinstance(found, Undecodable):
        return Verdict(Status.FAILED, UNDECODABLE, found.detail)
    return OK_VERDICT
