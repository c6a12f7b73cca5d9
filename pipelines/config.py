"""The recipe: one YAML file, one frozen model, that configures a whole run; imports neither torch nor ray."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from model.base_config import Config, Location, PositiveInt, if_set, run_only
from model.config import TokenizerConfig
from pipelines.corpus_config import CorpusConfig, HeldoutCorpus, HeldoutFraction, Name
from pipelines.crop_config import MAX_VARIANTS, WHOLE_IMAGE, AnyCrops
from pipelines.filter_config import FilterConfig
from pipelines.load_config import LoadConfig
from pipelines.teacher_config import LocalTeacher, OpenClipTeacher, TargetsConfig, TrainedTeacher
from pipelines.train_config import TrainConfig

THREADS_BESIDE_GPU = 4
"""Of a worker that has one, to read and decode images."""


def _fingerprint(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or len(value) != 12 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{value!r} is no fingerprint: give, in quotes, the 12 hexadecimal digits that `dualtoken plan` shows")
    return value


Fingerprint = Annotated[str, BeforeValidator(_fingerprint)]
"""Names a stage's folder."""


class ClusterConfig(Config):
    """Where and how wide the stages run."""

    address: str = run_only(default="local")
    """`local` starts and stops a cluster of its own; else a Ray address, host:port."""
    dashboard: str | None = run_only(default=None)
    """Send each stage of a workflow as a job to the cluster with this dashboard, such as http://127.0.0.1:8265."""
    num_cpus: PositiveInt | None = run_only(default=None)
    """Of the local cluster; all of the machine's by default."""
    min_workers: PositiveInt = run_only(default=1)
    max_workers: PositiveInt = run_only(default=2)
    """Actors of a stage; Ray Data scales between the two."""
    gpus_per_worker: float = run_only(default=0.0, ge=0)
    object_store_mb: PositiveInt = run_only(default=256)
    """Of the local cluster; units pass names, not data, so little is needed."""

    @model_validator(mode="after")
    def _workers_in_order(self) -> "ClusterConfig":
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers={self.min_workers} is over max_workers={self.max_workers}: lower it")
        return self


class DownloadConfig(Config):
    """URL table to image shards, with img2dataset's resizer and layout."""

    rows_per_shard: Annotated[int, Field(ge=1, le=4096)] = 4096
    image_size: PositiveInt = 256
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "center_crop"
    resize_only_if_bigger: bool = False
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: Annotated[int, Field(ge=0, le=100)] = 95
    """JPEG and WebP: quality; PNG: compression, 0 to 9."""
    max_bytes: PositiveInt = 20_000_000
    """Of one response; more is refused while it streams."""
    max_pixels: PositiveInt = 100_000_000
    """Read from the image's header, before it is decoded."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 30.0
    """For one image in all: look-up, redirects, retries and body."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Of failures that may pass: no connection, a body cut short, HTTP 408, 429 and 5xx."""
    accept_dead_units: bool = run_only(default=False)
    """Finish a unit none of whose URLs answered, too; off, since a network that was down would be taken for dead links."""
    concurrency: PositiveInt = run_only(default=32)
    """Requests under way at once, of one worker."""
    allow_private_addresses: bool = False
    """Fetch from loopback and private networks too; off, since a hostile URL table could read internal services."""

    @model_validator(mode="after")
    def _png_quality_is_compression(self) -> "DownloadConfig":
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(f"encode_quality={self.encode_quality} with encode_format=png: PNG takes a compression of 0 to 9")
        return self


class PretokenizeConfig(Config):
    """Corpora to token shards."""

    precision: Literal["float32", "bfloat16"] = if_set(default="float32")
    """Of the tower; codes are searched for in float32. bfloat16 is faster where hardware has it, and changes some codes."""
    batch_size: PositiveInt = 64
    """Images encoded at once; halved where the device's memory does not hold them."""
    decode_threads: int | None = run_only(default=None, ge=0)
    """Of one worker, to read and decode batches while one is encoded; 0: in turn. By default 4 beside a GPU, 0 on a CPU, busy as it is.

    A worker with a GPU asks its cluster for one CPU more than these.
    """
    crops: Annotated[tuple[AnyCrops, ...], Field(min_length=1)] = WHOLE_IMAGE
    """What each image gives: a row of tokens for each square, in this order; their boxes stand beside the captions."""
    captions_of: dict[Name, Fingerprint] = if_set(default={})
    """By corpus, a finished token dataset of the same decision and crops: codes alone are written, beside its captions."""
    audit_rows: int = run_only(default=4, ge=0)
    """Of a shard, chosen by chance: decoded again from their stored codes, and compared with what was encoded."""
    min_psnr: float | None = run_only(default=None, ge=0)
    """dB that a shard's audited rows must have in the mean; a lower one is an alarm, be all other shards as bad."""
    on_alarm: Literal["report", "stop"] = run_only(default="report")
    """When a shard's codes collapse, drift from the dataset's or are under `min_psnr`: say so, or also end the run, unfinished."""

    def threads(self, *, beside_gpu: bool) -> int:
        """Return the threads of a worker that read and decode ahead."""
        return (THREADS_BESIDE_GPU if beside_gpu else 0) if self.decode_threads is None else self.decode_threads

    def cpus(self, gpus: float) -> int:
        """Return the CPUs that a worker with so many GPUs keeps busy; without one, its threads share the encoder's."""
        return 1 + self.threads(beside_gpu=True) if gpus else 1

    @property
    def num_variants(self) -> int:
        """Rows of tokens of an image."""
        return sum(crops.count * (1 + crops.flip) for crops in self.crops)

    @model_validator(mode="after")
    def _few_variants(self) -> "PretokenizeConfig":
        if self.num_variants > MAX_VARIANTS:
            raise ValueError(f"crops give {self.num_variants} rows of tokens an image, at most {MAX_VARIANTS}: take some out")
        return self


class ReportConfig(Config):
    """The page that a run ends with."""

    num_images: Annotated[int, Field(ge=1, le=256)] = 32
    """Held-out originals beside their reconstructions."""
    batch_size: PositiveInt = 64


class Recipe(Config):
    """A whole run."""

    name: Name
    root: Location = run_only(default="data", validate_default=True)
    """Where everything is written."""
    corpora: Annotated[dict[Name, CorpusConfig], Field(min_length=1)]
    heldout: Annotated[HeldoutCorpus | HeldoutFraction, Field(discriminator="kind")]
    """What training never sees and the report is made from."""
    cluster: ClusterConfig = ClusterConfig()
    download: DownloadConfig = DownloadConfig()
    teacher: Annotated[TrainedTeacher | OpenClipTeacher | LocalTeacher, Field(discriminator="kind")]
    filter: FilterConfig = FilterConfig()
    targets: TargetsConfig = TargetsConfig()
    tokenizer: TokenizerConfig
    train: TrainConfig = TrainConfig()
    pretokenize: PretokenizeConfig = PretokenizeConfig()
    report: ReportConfig = ReportConfig()
    load: LoadConfig = run_only(default=LoadConfig())

    @property
    def training_corpora(self) -> tuple[str, ...]:
        """The corpora that teacher and tokenizer learn from."""
        held_out = self.heldout.corpus if isinstance(self.heldout, HeldoutCorpus) else None
        return tuple(name for name in sorted(self.corpora) if name != held_out)

    @property
    def heldout_corpora(self) -> tuple[str, ...]:
        """The corpora that hold-out samples come from."""
        return (self.heldout.corpus,) if isinstance(self.heldout, HeldoutCorpus) else tuple(self.corpora)

    @model_validator(mode="after")
    def _heldout_is_a_corpus(self) -> "Recipe":
        if isinstance(self.heldout, HeldoutCorpus) and self.heldout.corpus not in self.corpora:
            raise ValueError(f"heldout.corpus={self.heldout.corpus} is no corpus: set it to one of {', '.join(self.corpora)}")
        if not self.training_corpora:
            raise ValueError("heldout.corpus holds out the only corpus: add a second one, or hold out a fraction")
        return self

    @model_validator(mode="after")
    def _loads_its_corpora(self) -> "Recipe":
        if unknown := sorted(self.load.named() - ({*(self.load.corpora or self.training_corpora)} & self.corpora.keys())):
            raise ValueError(
                f"load names {unknown[0]}: set load.corpora to some of {', '.join(self.corpora)}, and weights or epochs of these"
            )
        return self

    @model_validator(mode="after")
    def _captions_are_of_corpora(self) -> "Recipe":
        if unknown := sorted(self.pretokenize.captions_of.keys() - self.corpora.keys()):
            raise ValueError(f"pretokenize.captions_of.{unknown[0]} is of no corpus: name one of {', '.join(self.corpora)}")
        return self

    @model_validator(mode="after")
    def _stage_fits_tokenizer(self) -> "Recipe":
        if self.train.stage == 2 and self.tokenizer.shared_codebook:
            raise ValueError("train.stage=2 leaves the pixel stream as it is, tokenizer.shared_codebook=true has one for both: set stage=1")
        return self

    @model_validator(mode="after")
    def _teacher_sees_the_crops(self) -> "Recipe":
        if self.train.random_crop and self.targets.dense:
            raise ValueError("train.random_crop crops anew each time, targets.dense=true says what the teacher saw once: set it to false")
        return self

    @model_validator(mode="after")
    def _teacher_fits_tokenizer(self) -> "Recipe":
        if isinstance(self.teacher, TrainedTeacher):
            if self.teacher.tower != self.tokenizer.tower:
                raise ValueError("teacher.tower differs from tokenizer.tower: make them equal, the tokenizer starts from the teacher")
            if self.teacher.image_size != self.tokenizer.image_size:
                raise ValueError(
                    f"teacher.image_size={self.teacher.image_size}, tokenizer.image_size={self.tokenizer.image_size}: make them equal"
                )
        return self
