"""Pretokenize: encodes an image shard's kept samples into one token shard, by batch and in bounded memory.

B samples of a batch, V variants of each, N images of a batch: B times V.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.pipelines.config.crops import WHOLE_IMAGE
from dualtoken.pipelines.core.ledger import KEY_BYTES
from dualtoken.pipelines.core.receipts import LEDGERS
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tables import read_input
from dualtoken.pipelines.core.threads import BackgroundThread
from dualtoken.pipelines.core.timing import Stopwatch
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.crops import CROP_FIELDS, crop_columns
from dualtoken.pipelines.images.samples import KeptSample, kept_samples, open_image_shard
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.inference.adaptive_batch import AdaptiveBatchEncoder
from dualtoken.pipelines.inference.image_stream import ImageStream
from dualtoken.pipelines.inference.networks import describe_device, open_tokenizer, prepare_process
from dualtoken.pipelines.tokens.audit import sample_rows
from dualtoken.pipelines.tokens.captions import caption_source_of, folder_fingerprint, own_meta_path
from dualtoken.pipelines.tokens.encoded_unit import EncodedUnit
from dualtoken.pipelines.tokens.facts import ShardAudit, TokenFacts
from dualtoken.pipelines.tokens.finish import tokenizer_identity
from dualtoken.pipelines.tokens.shards import TokenShardWriter, data_path, token_schema
from dualtoken.pipelines.tokens.shared_captions import require_same_rows

SCORES = {"similarity": "teacher_similarity"}
"""Scores that are carried along, with the names that they get: a source may have a column of the plain
name."""
LEFT_OUT = {"key", "sample_key", "status", "reason", "error_message", "width", "height"}
"""Columns of an image shard that are not carried along.

The sample key stands first, every kept sample succeeded, and stored sizes are the recipe's.
"""


class Worker:
    """Encodes one image shard per unit; only the layers that codes need are run."""

    def __init__(self, job: StageJob, *, write_beside: bool | None = None) -> None:
        """Open the tokenizer.

        With `write_beside` one batch is written while the next ones are encoded; by default where a GPU
        encodes.
        """
        self._job = job
        self._caption_source = caption_source_of(job)
        config = job.recipe.pretokenize
        self._is_cropped = config.crops != WHOLE_IMAGE
        prepare_process(threads=1)
        self._tokenizer = open_tokenizer(job)
        self._encoder = AdaptiveBatchEncoder(self._tokenizer, config.batch_size)
        on_gpu = self._tokenizer.device.type == "cuda"
        self._write_beside = on_gpu if write_beside is None else write_beside
        transform = self._tokenizer.network.transform
        self._images = ImageStream(config, transform, beside_gpu=on_gpu)
        preprocessing = f"crop of the meta table, then {transform}" if self._is_cropped else str(transform)
        identity = tokenizer_identity(job.input("train"))
        self._schema = token_schema(self._tokenizer.config, identity, preprocessing, config.precision)

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `data/<shard>.arrow` and, unless captions are shared, `meta/<shard>.parquet`."""
        data = data_path(unit.id)
        watch = Stopwatch()
        with watch.timed("fetch"):
            shard, samples = self._open(unit, scratch)
        encoded = EncodedUnit(self._tokenizer.config, self._rows_to_audit(unit, len(samples)))
        with TokenShardWriter(scratch / data, self._schema) as writer:
            self._encode(shard, samples, encoded, writer, watch)
        with watch.timed("audit"):
            ratios = encoded.images.psnr(scratch / data, self._tokenizer)
        with watch.timed("captions"):
            files = (data, *self._captions(unit, shard, encoded, scratch))
        ledger = encoded.ledger(samples)
        facts = self._facts(unit, encoded, ratios)
        return UnitOutput(files, ledger, facts.to_json(), {data: writer.digest}, watch.seconds())

    def _open(self, unit: Unit, scratch: Path) -> tuple[ImageShard, list[KeptSample]]:
        """Open the unit's image shard, and check before the work that its rows can be written."""
        shard = open_image_shard(self._job.input("download"), unit.id, scratch)
        samples = kept_samples(shard, read_input(self._job.input("filter"), f"{unit.id}.parquet"))
        self._require_free_names(shard)
        # Before the work: that the samples are the caption source's. After it, that the rows made of them
        # are.
        self._require_same_rows(f"{LEDGERS}/{unit.id}.parquet", samples, scratch)
        return shard, samples

    def _encode(
        self,
        shard: ImageShard,
        samples: Sequence[KeptSample],
        encoded: EncodedUnit,
        writer: TokenShardWriter,
        watch: Stopwatch,
    ) -> None:
        """Encode the samples by batch; a thread beside it counts, hashes and writes the batch before."""
        self._encoder.begin()
        with (
            closing(self._images.batches(shard, samples)) as stream,
            BackgroundThread(threaded=self._write_beside) as beside,
        ):
            for batch in watch.waiting("wait", stream):
                with watch.timed("encode"):
                    codes = self._encoder.encode(batch.levels)
                with watch.timed("write"):  # the time that this thread waits
                    beside.submit(partial(encoded.write, writer, batch, codes))
            with watch.timed("write"):
                beside.finish()

    def _rows_to_audit(self, unit: Unit, num_samples: int) -> frozenset[int]:
        config = self._job.recipe.pretokenize
        rows = num_samples * config.num_variants
        return sample_rows(f"{self._job.corpus}/{unit.id}", rows, config.audit_rows)

    def _facts(self, unit: Unit, encoded: EncodedUnit, ratios: dict[int, float]) -> TokenFacts:
        """Return what the receipt says; `ratios` is the PSNR of the rows that were looked at again, dB."""
        audit = ShardAudit(
            rows=encoded.num_rows,
            looked_at=list(ratios),
            psnr=list(ratios.values()),
            perplexity={stream: counter.perplexity() for stream, counter in encoded.counters.items()},
        )
        captions_of = None
        if self._caption_source is not None:
            captions_of = folder_fingerprint(self._caption_source)
        made_by = describe_device(self._tokenizer.device)
        return TokenFacts(
            shard=unit.id,
            usage={stream: counter.usage() for stream, counter in encoded.counters.items()},
            audit=audit,
            rows=encoded.num_rows,
            device=made_by.device,
            torch=made_by.torch,
            cudnn=made_by.cudnn,
            driver=made_by.driver,
            batch_size=self._encoder.batch_size,
            captions_of=captions_of,
        )

    def _require_free_names(self, shard: ImageShard) -> None:
        """Raise `UserError` where a column that is carried along has the name of one that is added."""
        added = set(SCORES.values())
        if self._is_cropped:
            added.update(field.name for field in CROP_FIELDS)
        taken = added.intersection(shard.metadata.column_names)
        if taken:
            raise UserError(
                f"the images of {self._job.corpus} have a column {min(taken)!r}, "
                "which token shards use themselves: rename it"
            )

    def _captions(
        self, unit: Unit, shard: ImageShard, encoded: EncodedUnit, scratch: Path
    ) -> tuple[str, ...]:
        """Write the rows' captions and return the file; check shared captions instead, and return none."""
        name = own_meta_path(unit.id)
        rows: list[KeptSample] = []
        for sample, crops in zip(encoded.samples, encoded.crops, strict=True):
            rows += [sample] * len(crops)
        columns = crop_columns(encoded.crops) if self._is_cropped else {}
        if self._caption_source is not None:
            self._require_same_rows(name, rows, scratch, **columns)
            return ()
        (scratch / "meta").mkdir()
        pq.write_table(self._meta(unit, shard, rows, columns), scratch / name, compression="zstd")
        return (name,)

    def _meta(
        self,
        unit: Unit,
        shard: ImageShard,
        rows: Sequence[KeptSample],
        crops: Mapping[str, pa.Array],
    ) -> pa.Table:
        """Join a shard's own columns, the scores and the crops, in the order of the token rows."""
        scores = read_input(self._job.input("score"), f"{unit.id}.parquet", ["key", *SCORES])
        places = {key: place for place, key in enumerate(scores["key"].to_pylist())}
        scored = scores.take(pa.array([places[row.key] for row in rows], pa.int64()))
        own = shard.metadata.take(pa.array([row.row for row in rows], pa.int64()))
        columns: dict[str, pa.ChunkedArray | pa.Array] = {"key": scored["key"]}
        for name in own.column_names:
            if name not in LEFT_OUT:
                columns[name] = own[name]
        for name, new_name in SCORES.items():
            columns[new_name] = scored[name]
        return pa.table(columns | dict(crops))

    def _require_same_rows(
        self, name: str, rows: Sequence[KeptSample], scratch: Path, **columns: pa.Array
    ) -> None:
        """Raise `UserError` where captions are shared of a dataset that has other rows in this table."""
        if self._caption_source is None:
            return
        keys = pa.array([row.key for row in rows], pa.binary(KEY_BYTES))
        require_same_rows(self._caption_source, self._job.corpus, name, {"key": keys, **columns}, scratch)
