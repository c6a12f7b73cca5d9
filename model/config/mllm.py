"""Shape and training of the unified model of text and images; imports neither torch nor ray."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dualtoken.model.config.base import (
    Config,
    PositiveInt,
    Precision,
    in_fingerprint_unless_default,
    not_in_fingerprint,
    require_divisible_width,
)
from dualtoken.model.config.drawing import DrawingConfig
from dualtoken.model.config.optimizer import (
    AdamWConfig,
    CosineSchedule,
    OptimizerConfig,
    ParameterGroups,
    ScheduleConfig,
    group_of,
)

MODEL_TYPE = "dualtoken_mllm"
"""Type of model in config.json of a saved folder."""
StreamName = Literal["semantic", "pixel"]
"""One of the tokenizer's two vocabularies."""
STREAM_NAMES: tuple[StreamName, ...] = ("semantic", "pixel")
_TRUNK = ("model.language_model.", "lm_head.")
"""Beginnings of the names of the language model's parameters."""
_PHASES = {
    1: ("model.visual_projector.", "model.visual_positions."),
    2: ("model.visual_projector.", "model.visual_positions.", *_TRUNK),
    3: ("heads.",),
    4: ("",),
}
"""Beginnings of the names of what each phase trains."""


class TrunkShape(Config):
    """A language model of this shape, Qwen2's architecture (arXiv 2412.15115), that starts from nothing."""

    kind: Literal["shape"] = "shape"
    width: PositiveInt = 192
    """Channels of a position."""
    depth: PositiveInt = 4
    """Number of blocks."""
    num_heads: PositiveInt = 3
    """Attention heads of a block."""
    num_key_value_heads: PositiveInt | None = None
    """Heads of keys and values, shared by groups of attention heads; by default `num_heads`."""
    mlp_width: PositiveInt = 512
    """Channels inside a block's gated MLP."""
    vocabulary: Annotated[int, Field(ge=300)] = 512
    """Entries of the text vocabulary, a byte-level BPE that is trained on the corpus; special ones
    included."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TrunkShape":
        require_divisible_width(self.width, self.num_heads)
        groups = self.num_key_value_heads
        if groups is not None and self.num_heads % groups:
            raise ValueError(
                f"num_heads={self.num_heads} is no multiple of num_key_value_heads={groups}: change one"
            )
        return self


class NamedTrunk(Config):
    """A pretrained causal language model with its text tokenizer, such as Qwen/Qwen2.5-3B."""

    kind: Literal["pretrained"]
    model: Annotated[str, Field(min_length=1)]
    """Name on the Hugging Face hub, or a local folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""


def _kind(value: object) -> object:
    if isinstance(value, dict):
        return value.get("kind", "shape")
    return getattr(value, "kind", None)


AnyTrunk = Annotated[
    Annotated[TrunkShape, Tag("shape")] | Annotated[NamedTrunk, Tag("pretrained")],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="kind must be shape or pretrained"),
]
"""The language model, by its `kind`; a shape where there is none."""


class DepthHeadConfig(Config):
    """The transformer over depths that predicts one stream's codes of a position from the trunk's state."""

    width: PositiveInt = 1024
    """Channels of a depth's state."""
    num_layers: PositiveInt = 3
    """Number of blocks."""
    num_heads: PositiveInt = 8
    """Attention heads of a block."""
    mlp_width: PositiveInt | None = None
    """Channels inside a block's MLP; by default twice `width`."""
    mlp: Literal["per_depth", "shared"] = "per_depth"
    """Whether each depth has an MLP of its own in each block, as in the paper, or all depths share one."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "DepthHeadConfig":
        require_divisible_width(self.width, self.num_heads)
        return self

    @property
    def inner_width(self) -> int:
        """Channels inside a block's MLP."""
        return self.mlp_width or 2 * self.width


class MllmConfig(Config):
    """Shape of the unified model: trunk, projector and depth heads."""

    trunk: AnyTrunk = TrunkShape()
    """Language model that reads and writes both text and images."""
    head: DepthHeadConfig = DepthHeadConfig()
    """Shape of the head of each stream."""
    inputs: Annotated[tuple[StreamName, ...], Field(min_length=1)] = STREAM_NAMES
    """Streams that an image position reads."""
    targets: tuple[StreamName, ...] = STREAM_NAMES
    """Streams that are predicted; none for a model that only answers."""
    visual_position: Literal["none", "learned"] = "none"
    """Whether a position of an image also gets learned vectors of its row and its column. A trunk that starts
    from nothing needs them."""
    code_likeness: Annotated[float, Field(ge=0, le=1)] = in_fingerprint_unless_default(default=0.0)
    """Share of the variance of fresh classifiers of codes that follows from the codes' vectors: codes of like
    vectors begin with like classifiers. Drawings are learnt sooner then; questions later,
    where those of a document see each other (`documents.turns_apart`)."""
    drawing: DrawingConfig = in_fingerprint_unless_default(default=DrawingConfig())
    """How captions are drawn where nothing else is said; it is saved with the model."""

    @model_validator(mode="after")
    def _each_stream_once(self) -> "MllmConfig":
        for name in ("inputs", "targets"):
            streams = getattr(self, name)
            if len(set(streams)) < len(streams):
                raise ValueError(f"{name}={list(streams)} names a stream twice: take one out")
        if self.targets and set(self.inputs) - set(self.targets):
            missing = min(set(self.inputs) - set(self.targets))
            raise ValueError(
                f"inputs have {missing}, targets do not: a drawing reads back what it predicted; "
                f"add {missing} to targets, or take it out of inputs, or set targets=[]"
            )
        return self


class MllmLossWeights(Config):
    """Weights of the summands of the loss, each a mean over all its targets of the batch."""

    text: Annotated[float, Field(ge=0)] = 1.0
    """Cross-entropy of text."""
    semantic: Annotated[float, Field(ge=0)] = 1.0
    """Cross-entropy of semantic codes, weighted mean over depths."""
    pixel: Annotated[float, Field(ge=0)] = 1.0
    """Cross-entropy of pixel codes, weighted mean over depths."""
    later_depths: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a depth beyond the first over that of the first: most of what a caption decides is in the
    first, and most of the noise in those beyond."""
    z: Annotated[float, Field(ge=0)] = 0.0
    """Squared logarithm of the softmax's denominator (PaLM's z-loss), of each summand's logits."""


class LoraConfig(Config):
    """Adapters of low rank beside the trunk's matrices, which stay as they are (LoRA, arXiv 2106.09685).

    A saved model has them merged into its weights, and apart in peft's layout.
    """

    rank: PositiveInt = 16
    """Rank of an adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the adapters, over `rank`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that are left out in training, drawn anew for each step and worker."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Linear layers of the trunk that have an adapter, by the ends of their names, such as
    `[q_proj, v_proj]`; by default all."""


class MllmTrainingConfig(MllmConfig):
    """A model's shape and what decides the steps of its training."""

    phase: Literal[1, 2, 3, 4] = 4
    """What is trained (DualToken, table of stages): 1 the projector, 2 projector and trunk, 3 the heads,
    4 all."""
    lora: LoraConfig | None = in_fingerprint_unless_default(default=None)
    """Train adapters in place of the trunk, in phases 2 and 4; needs the package peft."""
    steps: PositiveInt = 1000
    """Number of optimiser steps."""
    batch_size: PositiveInt = 8
    """Packed sequences of a step, over all workers."""
    capacity: PositiveInt = 1024
    """Positions of a packed sequence."""
    losses: MllmLossWeights = MllmLossWeights()
    """Weights of the losses."""
    code_dropout: Annotated[float, Field(ge=0, lt=float("inf"))] = in_fingerprint_unless_default(default=0.0)
    """Largest share of an image's positions whose codes the trunk does not read while it learns to draw the
    image; each time a share from 0 to this one is drawn. What is not read has to be told from the caption, as
    of words in word dropout (arXiv 1511.06349). Beyond 1, images are hidden whole: with 2, half of them."""
    depth_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the image positions whose codes beyond the first depth are trained, drawn anew for each sample
    and step: their loss counts as many times more, so its expectation is that of all."""
    optimizer: OptimizerConfig = AdamWConfig()
    """`adamw`, or `{kind: muon}`: Muon for matrices, AdamW for the rest."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up."""
    schedule: ScheduleConfig = CosineSchedule()
    """Learning rate after the warm-up: `cosine`, `wsd`, `constant`, or a mapping with its `kind`."""
    parameters: ParameterGroups = ()
    """Parameters with a rate or weight decay of their own, or frozen, by patterns of their names."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of matrices."""
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Norm that longer gradients are scaled down to."""
    precision: Precision = "float32"
    """Precision of trunk and heads; losses, norms and sampling are in float32."""
    accumulate_steps: PositiveInt = not_in_fingerprint(default=1)
    """Parts that a worker takes its share of a batch in."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of fresh weights and of the order of samples."""

    @model_validator(mode="after")
    def _phase_trains_the_adapters(self) -> "MllmTrainingConfig":
        if self.lora is not None and self.phase in (1, 3):
            raise ValueError(
                f"lora adapts the trunk, which phase={self.phase} leaves as it is: set phase to 2 or 4, "
                "or lora=null"
            )
        return self

    def trains(self, name: str) -> bool:
        """Tell whether a parameter of this name is trained: by the phase, and not frozen by a group.

        Of a trunk with adapters these alone are.
        """
        is_trained = name.startswith(_PHASES[self.phase])
        if self.lora is not None and name.startswith(_TRUNK):
            is_trained = is_adapter(name)
        group = group_of(name, self.parameters)
        return is_trained and not (group is not None and group.freeze)


def is_adapter(name: str) -> bool:
    """Tell whether a parameter of this name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name
