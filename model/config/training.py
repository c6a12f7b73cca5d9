"""Training of the tokenizer and its optional parts, as frozen pydantic models; imports neither torch nor ray.

Defaults are those of the released DualToken code, which takes 256 images a step.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dualtoken.model.config.base import (
    Config,
    Location,
    PositiveInt,
    in_fingerprint_unless_default,
    kind_by_its_name,
    not_in_fingerprint,
)
from dualtoken.model.config.optimizer import (
    AdamWConfig,
    CosineSchedule,
    OptimizerConfig,
    ParameterGroups,
    ScheduleConfig,
)

Phase = Literal[0, 1, 2]
"""Phase of training. 0 starts the new parts beside a frozen tower. 1 trains everything. 2 refines meaning and
leaves pictures as they are."""


class LossConfig(Config):
    """Weights of the loss terms.

    Defaults are the released code's for phase 1, and `PHASE_WEIGHTS` for the others. Where `semantic` and
    `pooled` are 0, or `reconstruction` and LPIPS are off, that stream is not trained.
    """

    reconstruction: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the pictures' squared error."""
    semantic: Annotated[float, Field(ge=0)] = 5.0
    """Weight of quantised semantic tokens against the teacher's: squared error plus cosine."""
    pooled: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the image embedding against the teacher's: squared error plus cosine."""
    commitment: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the tokens' distance from their codes."""


PHASE_WEIGHTS: dict[int, dict[str, float]] = {
    0: {"semantic": 0.0, "pooled": 5.0},
    2: {"reconstruction": 0.0, "semantic": 1.0, "pooled": 5.0},
}
"""Loss weights of the released code's phases 0 and 2, where they differ from those of phase 1."""


class NoPerceptual(Config):
    """Pictures are judged by their pixels only."""

    kind: Literal["none"]


class LpipsConfig(Config):
    """Pictures are judged by VGG16's features too (LPIPS, arXiv 1801.03924)."""

    kind: Literal["lpips"]
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the distance in the loss."""
    backbone: Location | None = not_in_fingerprint(default=None)
    """File with torchvision's VGG16 weights; by default where torchvision keeps its downloads."""
    heads: Location | None = not_in_fingerprint(default=None)
    """File with the linear heads; by default those that torchmetrics ships."""


PerceptualConfig = Annotated[
    NoPerceptual | LpipsConfig, Field(discriminator="kind"), BeforeValidator(kind_by_its_name)
]
"""`none`, or a mapping with its `kind`.

The names of weight files are not in the fingerprint: their contents are, which the pipeline adds.
"""


class RandomCropConfig(Config):
    """A random part of each picture, resized to a square: torchvision's RandomResizedCrop, never mirrored."""

    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(le=1)]] = (0.9, 1.0)
    """Share of the picture's area, at least and at most."""
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
    """Width over height, at least and at most."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "RandomCropConfig":
        for name, (least, most) in (("scale", self.scale), ("ratio", self.ratio)):
            if least > most:
                raise ValueError(f"{name}=[{least}, {most}]: put the lower bound first")
        return self


class GanConfig(Config):
    """A patch discriminator judges the pictures (VQGAN, arXiv 2012.09841)."""

    weight: Annotated[float, Field(gt=0)] = 0.75
    """Weight of the generator's loss; it multiplies the adaptive weight."""
    start_step: Annotated[int, Field(ge=0)] = 0
    """First step in which discriminator and generator loss take part; released: half an epoch, 19,531."""
    min_adaptive_weight: Annotated[float, Field(gt=0)] = 0.3
    """Lower bound of the adaptive weight, a ratio of gradient norms at the decoder's last layer."""
    max_adaptive_weight: Annotated[float, Field(gt=0)] = 10.0
    """Upper bound of the adaptive weight."""
    learning_rate: Annotated[float, Field(gt=0)] = 7.2e-5
    """Peak learning rate of the discriminator."""
    final_learning_rate: Annotated[float, Field(ge=0)] = 4e-5
    """Learning rate of the discriminator at the run's last step, reached along a cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up, counted from `start_step`; released: half an epoch, 19,531."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Decay rates of Adam's two moments, for the discriminator."""
    width: Annotated[PositiveInt, Field(multiple_of=32)] = 64
    """Channels after the discriminator's first layer; its norms have 32 groups."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "GanConfig":
        least = self.min_adaptive_weight
        most = self.max_adaptive_weight
        if least > most:
            raise ValueError(f"min_adaptive_weight={least} is over max_adaptive_weight={most}: lower it")
        return self


class WeightEmaConfig(Config):
    """Exponential moving average of the weights over the steps; a run ends with the average."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Decay per step; the half-life in steps is about 0.69 / (1 - decay)."""


class TrainingConfig(Config):
    """Training of the tokenizer: what decides its steps, wherever it runs.

    The order of the fields is part of a recipe's fingerprint and of the report: a new field goes where its
    meaning belongs, with `in_fingerprint_unless_default`.
    """

    steps: PositiveInt = 400
    """Number of optimiser steps."""
    batch_size: PositiveInt = 64
    """Images per step, over all workers together."""
    optimizer: OptimizerConfig = in_fingerprint_unless_default(default=AdamWConfig())
    """`adamw`, or `{kind: muon}`: Muon for matrices, AdamW for the rest."""
    learning_rate: Annotated[float, Field(gt=0)] = 7.2e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Decay rates of AdamW's two moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay of matrices and kernels."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    schedule: ScheduleConfig = in_fingerprint_unless_default(default=CosineSchedule())
    """Learning rate after the warm-up: `cosine`, `wsd`, `constant`, or a mapping with its `kind`."""
    parameters: ParameterGroups = in_fingerprint_unless_default(default=())
    """Parameters with a rate or weight decay of their own, or frozen, by patterns of their names."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the trunk and decoder; quantisers are float32 always."""
    compile: bool | Literal["blocks"] = in_fingerprint_unless_default(default=False)
    """Run a step by torch.compile: faster once it is compiled, other last bits; on a CPU it needs a C++
    compiler.

    `true` compiles a step whole. `blocks` compiles the blocks of tower, decoder and discriminator, each kind
    once: done in a fraction of the time, and nothing is fused across blocks.
    """
    memory_format: Literal["contiguous", "channels_last"] = in_fingerprint_unless_default(
        default="contiguous"
    )
    """Memory format of the decoder's weights; `channels_last` is for GPUs."""
    checkpoint_tower: bool = not_in_fingerprint(default=False)
    """Keep no activations inside the tower's blocks: each runs forward twice in a step, which gives the same
    result."""
    random_crop: RandomCropConfig | None = in_fingerprint_unless_default(default=None)
    """Augmentation of pictures; the released code's is `{}`. The teacher must see the crops: `targets.dense:
    false`."""
    stage: Phase = 1
    """Phase of training: 1 trains all; 0 what a frozen tower lacks; 2 the semantic stream alone
    (`model/training/trainable.py`)."""
    start_from: Location | None = not_in_fingerprint(default=None)
    """Folder of a trained tokenizer to go on from, at its image size or another one; by default the teacher's
    tower and fresh parts."""
    freeze_tower: bool = False
    """Keep the whole tower as it is at the start, in any phase."""
    losses: LossConfig = LossConfig()
    """Weights of the loss terms."""
    perceptual: PerceptualConfig = NoPerceptual(kind="none")
    """`none`, or `{kind: lpips}`."""
    gan: GanConfig | None = None
    """Adversarial loss on the pictures."""
    weight_ema: WeightEmaConfig | None = None
    """Average of the weights; where it is set, the model that is saved is the average."""
    accumulate_steps: PositiveInt = 1
    """Parts that a worker takes its share of the batch in, one after the other; the step is that of the whole
    batch."""
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    """Norm that longer gradients of the tokenizer are clipped to."""
    seed: int = 0
    """Seed of fresh weights, of the order of samples and of code restarts."""

    @model_validator(mode="before")
    @classmethod
    def _weights_of_the_phase(cls, values: Any) -> Any:  # noqa: ANN401
        """Lay the loss weights that are given over those of the phase."""
        if not isinstance(values, dict):
            return values
        losses = values.get("losses", {})
        if not isinstance(losses, dict):
            return values
        phase = values.get("stage")
        weights = PHASE_WEIGHTS.get(phase, {}) if isinstance(phase, int) else {}
        return values | {"losses": weights | losses}

    @model_validator(mode="after")
    def _something_is_learnt(self) -> "TrainingConfig":
        pictures = self.trains_pictures
        if self.stage == 2 and (pictures or self.gan):
            raise ValueError(
                "stage=2 leaves pictures as they are: set losses.reconstruction=0, perceptual=none, gan=null"
            )
        if self.stage == 2 and self.start_from is None:
            raise ValueError("stage=2 refines a trained tokenizer: set start_from to its folder")
        if self.gan and not pictures:
            raise ValueError(
                "gan weighs its loss against that of pictures: set losses.reconstruction above 0"
            )
        if not (pictures or self.trains_meaning):
            raise ValueError("losses are all 0: set reconstruction, semantic or pooled above 0")
        return self

    @property
    def trains_pictures(self) -> bool:
        """Whether some loss compares pictures."""
        return self.losses.reconstruction > 0 or isinstance(self.perceptual, LpipsConfig)

    @property
    def trains_meaning(self) -> bool:
        """Whether some loss compares with the teacher."""
        return self.losses.semantic > 0 or self.losses.pooled > 0
