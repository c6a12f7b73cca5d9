"""What `evaluate` reads: evaluation sets and protocols by name; imports neither torch nor ray."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field, PositiveFloat, model_validator

from dualtoken.model.config.base import (
    Config,
    Location,
    PositiveInt,
    Precision,
    in_fingerprint_unless_default,
    not_in_fingerprint,
)
from dualtoken.model.config.drawing import DrawingConfig
from dualtoken.pipelines.config.corpora import CaptionKey, CaptionKeys, Name, QuoteMarks
from dualtoken.pipelines.config.crops import AnyCrops, CenterCrop
from dualtoken.pipelines.config.run import RunConfig

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TokenizerMetric = Literal[
    "psnr",
    "ssim",
    "ms_ssim",
    "lpips",
    "dists",
    "text_kept",
    "objects_read",
    "objects_read_original",
    "idempotence_semantic",
    "idempotence_pixel",
    "jpeg_agreement_semantic",
    "jpeg_agreement_pixel",
    "batch_agreement_semantic",
    "batch_agreement_pixel",
    "usage_semantic",
    "usage_pixel",
    "perplexity_semantic",
    "perplexity_pixel",
    "bits_per_pixel",
    "attribute_shape",
    "attribute_colour",
    "attribute_size",
    "attribute_shape_teacher",
    "attribute_colour_teacher",
    "attribute_size_teacher",
    "zero_shot",
    "zero_shot_teacher",
    "image_to_text",
    "image_to_text_teacher",
    "text_to_image",
    "text_to_image_teacher",
    "knn",
    "knn_teacher",
    "linear_probe",
    "linear_probe_teacher",
    "fd_teacher",
    "fd",
]
"""Metrics of tokenizers, and of a unified model's own tokenizer.

`_teacher` is the same on the teacher's own embeddings, which is what the codes are measured against.
"""
UnifiedMetric = Literal[
    "answer",
    "answer_shape",
    "answer_colour",
    "answer_size",
    "answer_place",
    "answer_count",
    "answer_dots",
    "answer_shuffled",
    "answer_shape_shuffled",
    "answer_colour_shuffled",
    "answer_size_shuffled",
    "answer_place_shuffled",
    "answer_count_shuffled",
    "answer_dots_shuffled",
    "described_grammar",
    "described_shape",
    "described_colour",
    "described_size",
    "described_place",
    "described_whole",
    "described_shape_shuffled",
    "described_colour_shuffled",
    "described_size_shuffled",
    "described_place_shuffled",
    "described_whole_shuffled",
    "drawn_object",
    "drawn_binding",
    "drawn_shape",
    "drawn_colour",
    "drawn_size",
    "drawn_place",
    "drawn_whole",
    "drawn_object_shuffled",
    "drawn_binding_shuffled",
    "drawn_shape_shuffled",
    "drawn_colour_shuffled",
    "drawn_size_shuffled",
    "drawn_place_shuffled",
    "drawn_whole_shuffled",
]
"""Metrics of unified models: answers to questions, descriptions, and drawings of captions.

`_shuffled` is the same against the next sample of the set: what is right without looking.
"""
MetricName = Literal[TokenizerMetric, UnifiedMetric]
"""Metrics of evaluations, each described by `evaluation.metric_catalogue`."""


class EvaluationSet(Config):
    """Fields that all sets share."""

    class_names: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers where labels are numbers."""
    max_images: PositiveInt | None = None
    """Images to take, the first by key; by default all."""
    key_below: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Take the samples alone whose key, mapped to 0 to 1, is below this: those that `heldout.fraction` holds
    out of a run's own shards."""
    licence: str = not_in_fingerprint(default="")
    """Licence of the images, for the card."""


class ScenesSet(EvaluationSet):
    """Generated scenes: ground truth for attributes, any number, the same on every machine."""

    kind: Literal["scenes"]
    split: Literal["train", "heldout"] = "heldout"
    num_images: PositiveInt = 1024
    seed: int = 0
    questions: bool = in_fingerprint_unless_default(default=False)
    """Whether the generator's questions about each scene belong to the set."""


class ShardsSet(EvaluationSet):
    """Webdataset shards: ours, img2dataset's, or any other."""

    kind: Literal["shards"]
    folder: Location
    caption_key: CaptionKey | CaptionKeys | None = None
    """Where a tar without a table has a sample's caption, as in a recipe's source."""
    label_column: str | None = None
    """Column of the shards' tables that names a sample's class."""
    cluster_column: str | None = None
    """Column that groups samples which are not independent, such as frames of one video."""
    questions_column: str | None = in_fingerprint_unless_default(default=None)
    """Column with each image's questions, a JSON list of objects with `question`, `answer` and, where there
    are several kinds, `kind`."""


class FolderSet(EvaluationSet):
    """A folder of images, with captions and labels in a table, as a recipe's folder."""

    kind: Literal["folder"]
    folder: Location
    captions: Location | None = None
    file_column: str = "file_name"
    caption_column: str | None = None
    quotes: QuoteMarks | None = None
    label_column: str | None = None
    """Column of the table that names an image's class; `folder:` is the name of the image's own folder."""
    cluster_column: str | None = None
    questions_column: str | None = in_fingerprint_unless_default(default=None)
    """Column with each image's questions, a JSON list of objects with `question`, `answer` and, where there
    are several kinds, `kind`."""


class ParquetSet(EvaluationSet):
    """Parquet files with encoded images in a column, or a Hugging Face cache's Arrow files."""

    kind: Literal["parquet", "hf_cache"]
    folder: Location
    """Folder with .parquet files (`parquet`) or .arrow files (`hf_cache`), or one such file."""
    image_column: str = "image"
    """Column of encoded images: binary, or a struct with `bytes`, as Hugging Face stores them."""
    key_column: str | None = None
    """Column whose value is unique to a row; by default a row's file and number."""
    caption_column: str | None = None
    """Column of captions: text, or a list of texts."""
    label_column: str | None = None
    cluster_column: str | None = None
    questions_column: str | None = in_fingerprint_unless_default(default=None)
    """Column with each image's questions, a JSON list of objects with `question`, `answer` and, where there
    are several kinds, `kind`."""


AnySet = Annotated[ScenesSet | ShardsSet | FolderSet | ParquetSet, Field(discriminator="kind")]


class WeightFile(NamedTuple):
    """A file of weights that a protocol names."""

    key: str
    """Key that names it."""
    file: Path
    sha256: str | None
    """Digest that it must have, where one is set."""


class PerceptualWeights(Config):
    """Files with the weights of a perceptual metric; their contents count, not where they are."""

    backbone: Location = not_in_fingerprint()
    """File with torchvision's VGG16 weights."""
    backbone_sha256: Sha256 | None = not_in_fingerprint(default=None)
    """Digest that the file must have."""
    heads: Location | None = not_in_fingerprint(default=None)
    """File with the weights on top of it; by default the one that torchmetrics ships."""
    heads_sha256: Sha256 | None = not_in_fingerprint(default=None)

    def files(self) -> list[WeightFile]:
        """Return the files that are named."""
        found = [WeightFile("backbone", Path(self.backbone), self.backbone_sha256)]
        if self.heads is not None:
            found.append(WeightFile("heads", Path(self.heads), self.heads_sha256))
        return found


class _FeatureWeights(Config):
    """What all feature networks share: a file of weights, whose content counts, not where it is."""

    file: Location = not_in_fingerprint()
    """File with the network's weights: safetensors, or torch's own."""
    sha256: Sha256 | None = not_in_fingerprint(default=None)
    """Digest that the file must have."""

    def files(self) -> list[WeightFile]:
        """Return the file."""
        return [WeightFile("file", Path(self.file), self.sha256)]


_Colours = tuple[float, float, float]
_Deviations = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class TimmFeatures(_FeatureWeights):
    """Features of any architecture of timm's, with weights from a file.

    Images are resized whole, and not rounded after it.
    """

    kind: Literal["timm"]
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
    """timm's name of the architecture; a tag after a dot decides nothing but its head and its size."""
    image_size: PositiveInt
    """Pixels a side that the network sees; position embeddings of another size are interpolated."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    """Filter before images are made smaller, as Pillow does; without it, as old resizers of FID did not."""
    clamp: bool = in_fingerprint_unless_default(default=False)
    """Clamp resized images to the levels that there are, as clean-fid does; bicubic filters overshoot."""
    mean: _Colours = (0.485, 0.456, 0.406)
    """Mean of red, green and blue, where levels are 0 to 1; by default ImageNet's."""
    std: _Deviations = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue, where levels are 0 to 1."""
    pool: Literal["avg", "cls"] = "avg"
    """`avg`: mean over positions, without class and register tokens; `cls`: the class token."""


class TorchFidelityFeatures(_FeatureWeights):
    """The 2,048 features of Inception that FID is made from, by the package torch-fidelity.

    It resizes as TensorFlow 1 did.
    """

    kind: Literal["torch_fidelity"]


AnyFeatures = Annotated[TimmFeatures | TorchFidelityFeatures, Field(discriminator="kind")]


class DrawingProtocol(DrawingConfig):
    """How a unified model draws captions: each once, with noise that follows from seed and sample."""

    seed: Annotated[int, Field(ge=0)] = 0


class EvaluationProtocol(Config):
    """All that decides a model's numbers on a set, beside the two."""

    metrics: tuple[MetricName, ...]
    view: AnyCrops = CenterCrop(kind="center")
    """Part of an image that is evaluated; its first crop, where there are several."""
    precision: Precision = "float32"
    """Precision of tokenizer and teacher; the code search and a unified model are in float32 always."""
    batch_size: PositiveInt = 32
    """Images, questions or drawings at once; the last batch is padded, so that it rounds as the others do."""
    cast: Literal["round", "truncate"] = "round"
    """How reconstructions become levels of 8 bits."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Encode images and reconstructions as JPEG of this quality before they are compared."""
    agreement_jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of the JPEG that `jpeg_agreement` encodes images as before they are tokenized."""
    lpips: PerceptualWeights | None = None
    """Weights of LPIPS (arXiv 1801.03924), for that metric."""
    dists: PerceptualWeights | None = None
    """Weights of DISTS (arXiv 2004.07728), for that metric."""
    features: AnyFeatures | None = in_fingerprint_unless_default(default=None)
    """Network whose features `fd` compares; float32 whatever the precision of the others."""
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("a photo of {}.",)
    """Texts that class names are put into for `zero_shot`; their embeddings are averaged."""
    neighbours: PositiveInt = 10
    """Nearest images that vote in `knn`."""
    drawing: DrawingProtocol = in_fingerprint_unless_default(default=DrawingProtocol())
    """How captions are drawn, for the metrics of drawings."""
    margins: dict[MetricName, Annotated[float, Field(ge=0)]] = not_in_fingerprint(default_factory=dict)
    """Least difference that matters, by metric, in place of the catalogue's."""

    @model_validator(mode="after")
    def _templates_take_a_name(self) -> "EvaluationProtocol":
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"templates: {template!r} needs {{}} once, where a class's name is put")
        return self

    @model_validator(mode="after")
    def _networks_have_weights(self) -> "EvaluationProtocol":
        for name in ("lpips", "dists"):
            if name in self.metrics and getattr(self, name) is None:
                raise ValueError(f"metrics: {name} needs the weights of its networks: set {name}.backbone")
        if "fd" in self.metrics and self.features is None:
            raise ValueError("metrics: fd needs a feature network: set features, or leave it out")
        return self

    @model_validator(mode="after")
    def _metrics_are_some(self) -> "EvaluationProtocol":
        if not self.metrics:
            raise ValueError("metrics is empty: name one, such as psnr")
        return self

    @model_validator(mode="after")
    def _metrics_are_distinct(self) -> "EvaluationProtocol":
        repeated = [name for name in self.metrics if self.metrics.count(name) > 1]
        if repeated:
            raise ValueError(f"metrics: {repeated[0]} is there twice: leave it out once")
        return self


UNIFIED_METRICS: frozenset[str] = frozenset(get_args(UnifiedMetric))
"""Names of the metrics that only a unified model has."""


class MeasureConfig(Config):
    """The recipe's `measure` key: an evaluation that belongs to a run, of its own tokenizer."""

    sets: dict[Name, AnySet] = Field(default_factory=dict)
    """Sets; by default the recipe's held-out samples as they were downloaded."""
    max_images: PositiveInt | None = None
    """Held-out images to take of a corpus, the first by key; by default all."""
    protocols: Annotated[dict[Name, EvaluationProtocol], Field(min_length=1)]

    @model_validator(mode="after")
    def _metrics_are_of_tokenizers(self) -> "MeasureConfig":
        for name, protocol in self.protocols.items():
            for metric in protocol.metrics:
                if metric in UNIFIED_METRICS:
                    raise ValueError(
                        f"protocols.{name}.metrics: {metric} needs a unified model, and a run measures its "
                        "tokenizer: leave it out, and use `dualtoken evaluate --stage mllm`"
                    )
        return self


class EvaluationConfig(RunConfig):
    """Sets and protocols that `evaluate` can be asked for by name, and where it writes."""

    root: Location = not_in_fingerprint(default="data/evaluations", validate_default=True)
    """Folder or URL below which evaluations are written."""
    sets: Annotated[dict[Name, AnySet], Field(min_length=1)]
    protocols: Annotated[dict[Name, EvaluationProtocol], Field(min_length=1)]
    in_process: bool = not_in_fingerprint(default=False)
    """Run the units one by one in the command's own process, without Ray: for small sets."""
    unit_rows: PositiveInt = 256
    """Images in a unit, which one worker evaluates at a time."""
