"""The recipe: one YAML file, one frozen model, that configures a whole run; imports neither torch nor ray."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from model.config import Config, PositiveInt, TextConfig, TokenizerConfig, TowerConfig, if_set, run_only
from model.training_config import GanConfig, LpipsConfig, NoPerceptual, PerceptualConfig, RandomCropConfig, Stage, WeightEmaConfig
from pipelines.crop_config import MAX_VARIANTS, WHOLE_IMAGE, AnyCrops

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Names a folder, so: lower case, digits, dot, dash, underscore."""


def _fingerprint(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or len(value) != 12 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{value!r} is no fingerprint: give, in quotes, the 12 hexadecimal digits that `dualtoken plan` shows")
    return value


Fingerprint = Annotated[str, BeforeValidator(_fingerprint)]
"""Names a stage's folder."""
Fraction = Annotated[float, Field(gt=0, lt=1)]


class ScenesSource(Config):
    """The embedded generator: small synthetic scenes with captions, served over HTTP on this machine."""

    kind: Literal["scenes"]
    split: Literal["train", "heldout"] = "train"
    """The splits share no combination of attributes."""
    num_images: PositiveInt = 12_000
    seed: int = 0


class UrlsSource(Config):
    """A table of image URLs and captions."""

    kind: Literal["urls"]
    table: Annotated[str, Field(min_length=1)]
    """A .parquet, .csv or .tsv file: a path or any fsspec URL."""
    url_column: str = "url"
    caption_column: str = "caption"
    keep_columns: tuple[str, ...] = ()
    """Further columns to carry along, such as license."""


class ShardsSource(Config):
    """Existing webdataset shards in img2dataset's layout, read where they are."""

    kind: Literal["shards"]
    folder: Annotated[str, Field(min_length=1)]
    """A folder with NNNNN.tar and NNNNN.parquet: a path or any fsspec URL."""


class CorpusConfig(Config):
    """A named image-text dataset."""

    source: Annotated[ScenesSource | UrlsSource | ShardsSource, Field(discriminator="kind")]


class HeldoutCorpus(Config):
    """Hold a whole corpus out of training."""

    kind: Literal["corpus"]
    corpus: Name


class HeldoutFraction(Config):
    """Hold a share of each corpus out of training, chosen by the samples' keys."""

    kind: Literal["fraction"]
    fraction: Fraction


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
    """Of failures that may pass: no connection, HTTP 408, 429 and 5xx."""
    concurrency: PositiveInt = run_only(default=32)
    """Requests under way at once, of one worker."""
    allow_private_addresses: bool = False
    """Fetch from loopback and private networks too; off, since a hostile URL table could read internal services."""

    @model_validator(mode="after")
    def _png_quality_is_compression(self) -> "DownloadConfig":
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(f"encode_quality={self.encode_quality} with encode_format=png: PNG takes a compression of 0 to 9")
        return self


class TrainedTeacher(Config):
    """A small SigLIP-style model that the recipe trains itself on the corpora's captions, where no weights can be had."""

    kind: Literal["train"]
    image_size: PositiveInt
    tower: TowerConfig
    text: TextConfig = TextConfig()
    steps: PositiveInt = 700
    batch_size: PositiveInt = 96
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    seed: int = 0


class OpenClipTeacher(Config):
    """A model that open_clip knows by name, with weights from its hub."""

    kind: Literal["open_clip"]
    model: str
    """Such as ViT-SO400M-14-SigLIP2-378."""
    pretrained: str
    """Its tag, such as webli."""


class LocalTeacher(Config):
    """An open_clip checkpoint on disk: a folder with open_clip_config.json and open_clip_model.safetensors."""

    kind: Literal["local"]
    folder: Annotated[str, Field(min_length=1)]


class MinSide(Config):
    """Drop images whose shorter side, as fetched, is under `pixels`."""

    rule: Literal["min_side"]
    pixels: PositiveInt


class MaxAspect(Config):
    """Drop images more than `ratio` times as long as wide, or as wide as long."""

    rule: Literal["max_aspect"]
    ratio: Annotated[float, Field(ge=1)]


class CaptionLength(Config):
    """Drop captions of fewer words or characters."""

    rule: Literal["caption_length"]
    min_words: Annotated[int, Field(ge=0)] = 1
    min_characters: Annotated[int, Field(ge=0)] = 1


class ExactDuplicate(Config):
    """Keep the first of the images of a corpus that have the same pixels."""

    rule: Literal["exact_duplicate"]


class Similarity(Config):
    """Keep the images whose caption the teacher finds closest."""

    rule: Literal["similarity"]
    min_cosine: Annotated[float, Field(ge=-1, le=1)] = -1.0
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of those that reach this rule."""


Rule = Annotated[MinSide | MaxAspect | CaptionLength | ExactDuplicate | Similarity, Field(discriminator="rule")]


class FilterConfig(Config):
    """Scores of every sample, then rules over the scores; a changed rule runs no model again."""

    rules: tuple[Rule, ...] = ()
    """In order; the first that objects names the reason."""
    batch_size: PositiveInt = 64

    @model_validator(mode="after")
    def _each_rule_once(self) -> "FilterConfig":
        names = [rule.rule for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rules name {min(twice)} more than once: keep one of them")
        return self


class TargetsConfig(Config):
    """What the teacher says of each kept sample, computed once."""

    dense: bool = True
    """Also the tokens of the semantic block, float16; without them, training runs the teacher itself."""
    dense_budget_gb: float = run_only(default=50.0, gt=0)
    """Refuse to write more dense targets than this per corpus."""
    batch_size: PositiveInt = 64


class LossConfig(Config):
    """Weights of the loss terms; defaults are the released code's of stage 1, and those of `STAGE_WEIGHTS` in the others.

    Where `semantic` and `pooled` are 0, or `reconstruction` and LPIPS are off, that stream is not trained.
    """

    reconstruction: Annotated[float, Field(ge=0)] = 5.0
    semantic: Annotated[float, Field(ge=0)] = 5.0
    """Of quantised semantic tokens against the teacher's: squared error plus cosine."""
    pooled: Annotated[float, Field(ge=0)] = 1.0
    """Of the image embedding against the teacher's: squared error plus cosine."""
    commitment: Annotated[float, Field(ge=0)] = 5.0


STAGE_WEIGHTS: dict[int, dict[str, float]] = {
    0: {"semantic": 0.0, "pooled": 5.0},
    2: {"reconstruction": 0.0, "semantic": 1.0, "pooled": 5.0},
}
"""Weights of the released code's other stages, where they differ from stage 1's."""


class TrainConfig(Config):
    """Training of the dual tokenizer with Ray Train."""

    num_workers: PositiveInt = 1
    """Data-parallel processes; the batch is shared among them."""
    use_gpu: bool = False
    cpus_per_worker: PositiveInt = 1
    """Threads too; another number gives other last bits."""
    steps: PositiveInt = 400
    batch_size: PositiveInt = 64
    """Of all workers together."""
    learning_rate: Annotated[float, Field(gt=0)] = 7.2e-5
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the trunk and decoder; quantisers are float32 always."""
    compile: bool = if_set(default=False)
    """Run a step by torch.compile: faster once it is compiled, other last bits; on a CPU it needs a C++ compiler."""
    memory_format: Literal["contiguous", "channels_last"] = if_set(default="contiguous")
    """Of the decoder's weights; `channels_last` is for GPUs."""
    random_crop: RandomCropConfig | None = if_set(default=None)
    """What pictures are augmented by; the released code's is `{}`. The teacher must see the crops: `targets.dense: false`."""
    stage: Stage = 1
    """What is trained: 1 all; 0 what a frozen tower lacks; 2 the semantic stream alone (`model/stages.py`)."""
    start_from: str | None = run_only(default=None)
    """A trained tokenizer's folder, a path or any fsspec URL, to go on from; by default the teacher's tower and fresh parts."""
    freeze_tower: bool = False
    """Keep the whole tower as it is at the start, in any stage."""
    losses: LossConfig = LossConfig()
    perceptual: PerceptualConfig = NoPerceptual(kind="none")
    """`none`, or `{kind: lpips}`."""
    gan: GanConfig | None = None
    weight_ema: WeightEmaConfig | None = None
    """The model that is saved is then the average."""
    accumulate_steps: PositiveInt = 1
    """Parts that a worker takes its share of the batch in, one after the other; the step is that of the whole batch."""
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    """Longer gradients of the tokenizer are shortened to this."""
    checkpoint_every: PositiveInt = run_only(default=100)
    """Steps."""
    log_every: PositiveInt = run_only(default=10)
    """Steps."""
    max_failures: Annotated[int, Field(ge=0)] = run_only(default=2)
    """Restarts of the workers before the run fails."""
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _weights_of_the_stage(cls, values: Any) -> Any:  # noqa: ANN401
        if not isinstance(values, dict) or not isinstance(losses := values.get("losses", {}), dict):
            return values
        stage = values.get("stage")
        return values | {"losses": (STAGE_WEIGHTS.get(stage, {}) if isinstance(stage, int) else {}) | losses}

    @model_validator(mode="after")
    def _workers_share_the_batch(self) -> "TrainConfig":
        if self.batch_size % (parts := self.num_workers * self.accumulate_steps):
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of num_workers={self.num_workers} times "
                f"accumulate_steps={self.accumulate_steps}: make it one of {parts}"
                if self.accumulate_steps > 1
                else f"batch_size={self.batch_size} is no multiple of num_workers={self.num_workers}: change one of them"
            )
        return self

    @model_validator(mode="after")
    def _channels_last_on_gpus(self) -> "TrainConfig":
        if self.memory_format == "channels_last" and not self.use_gpu:
            raise ValueError("memory_format=channels_last is no faster on a CPU: set use_gpu=true or memory_format=contiguous")
        return self

    @model_validator(mode="after")
    def _something_is_learnt(self) -> "TrainConfig":
        pictures = self.losses.reconstruction > 0 or isinstance(self.perceptual, LpipsConfig)
        if self.stage == 2 and (pictures or self.gan):
            raise ValueError("stage=2 leaves pictures as they are: set losses.reconstruction=0, perceptual=none, gan=null")
        if self.stage == 2 and self.start_from is None:
            raise ValueError("stage=2 refines a trained tokenizer: set start_from to its folder")
        if self.gan and not pictures:
            raise ValueError("gan weighs its loss against that of pictures: set losses.reconstruction above 0")
        if not (pictures or self.losses.semantic or self.losses.pooled):
            raise ValueError("losses are all 0: set reconstruction, semantic or pooled above 0")
        return self


class PretokenizeConfig(Config):
    """Corpora to token shards."""

    batch_size: PositiveInt = 64
    """Images encoded at once; halved where the device's memory does not hold them."""
    decode_threads: int | None = run_only(default=None, ge=0)
    """Of one worker, to read and decode batches while one is encoded; 0: in turn. By default 4 beside a GPU, 0 on a CPU, busy as it is."""
    crops: Annotated[tuple[AnyCrops, ...], Field(min_length=1)] = WHOLE_IMAGE
    """What each image gives: a row of tokens for each square, in this order; their boxes stand beside the captions."""
    captions_of: dict[Name, Fingerprint] = if_set(default={})
    """By corpus, a finished token dataset of the same decision and crops: codes alone are written, beside its captions."""
    audit_rows: int = run_only(default=4, ge=0)
    """Of a shard, chosen by chance: decoded again from their stored codes, and compared with what was encoded."""
    on_alarm: Literal["report", "stop"] = run_only(default="report")
    """When a shard's codes collapse, or drift from the dataset's: say so, or also end the run, its dataset unfinished."""

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
    root: Annotated[str, Field(min_length=1)] = run_only(default="data")
    """Where everything is written: a path or any fsspec URL."""
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
