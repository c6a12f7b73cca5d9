"""How a recipe trains the tokenizer; imports neither torch nor ray."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dualtoken.model.config.base import (
    Config,
    Location,
    PositiveInt,
    in_fingerprint_unless_default,
    not_in_fingerprint,
)
from dualtoken.model.config.training import (
    GanConfig,
    LpipsConfig,
    NoPerceptual,
    PerceptualConfig,
    Phase,
    RandomCropConfig,
    WeightEmaConfig,
)


class LossConfig(Config):
    """Weights of the loss terms; defaults are the released code's of stage 1, and those of `PHASE_WEIGHTS` in the others.

    Where `semantic` and `pooled` are 0, or `reconstruction` and LPIPS are off, that stream is not trained.
    """

    reconstruction: Annotated[float, Field(ge=0)] = 5.0
    semantic: Annotated[float, Field(ge=0)] = 5.0
    """Of quantised semantic tokens against the teacher's: squared error plus cosine."""
    pooled: Annotated[float, Field(ge=0)] = 1.0
    """Of the image embedding against the teacher's: squared error plus cosine."""
    commitment: Annotated[float, Field(ge=0)] = 5.0


PHASE_WEIGHTS: dict[int, dict[str, float]] = {
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
    compile: bool = in_fingerprint_unless_default(default=False)
    """Run a step by torch.compile: faster once it is compiled, other last bits; on a CPU it needs a C++ compiler."""
    memory_format: Literal["contiguous", "channels_last"] = in_fingerprint_unless_default(
        default="contiguous"
    )
    """Of the decoder's weights; `channels_last` is for GPUs."""
    checkpoint_tower: bool = not_in_fingerprint(default=False)
    """Keep no activations inside the tower's blocks: each runs forward twice in a step, which gives the same."""
    random_crop: RandomCropConfig | None = in_fingerprint_unless_default(default=None)
    """What pictures are augmented by; the released code's is `{}`. The teacher must see the crops: `targets.dense: false`."""
    stage: Phase = 1
    """What is trained: 1 all; 0 what a frozen tower lacks; 2 the semantic stream alone (`model/stages.py`)."""
    start_from: Location | None = not_in_fingerprint(default=None)
    """A trained tokenizer's folder to go on from; by default the teacher's tower and fresh parts."""
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
    checkpoint_every: PositiveInt = not_in_fingerprint(default=100)
    """Steps."""
    log_every: PositiveInt = not_in_fingerprint(default=10)
    """Steps."""
    max_failures: Annotated[int, Field(ge=0)] = not_in_fingerprint(default=2)
    """Restarts of the workers before the run fails."""
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _weights_of_the_stage(cls, values: Any) -> Any:  # noqa: ANN401
        if not isinstance(values, dict) or not isinstance(losses := values.get("losses", {}), dict):
            return values
        stage = values.get("stage")
        return values | {"losses": (PHASE_WEIGHTS.get(stage, {}) if isinstance(stage, int) else {}) | losses}

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
            raise ValueError(
                "memory_format=channels_last is no faster on a CPU: set use_gpu=true or memory_format=contiguous"
            )
        return self

    @model_validator(mode="after")
    def _something_is_learnt(self) -> "TrainConfig":
        pictures = self.losses.reconstruction > 0 or isinstance(self.perceptual, LpipsConfig)
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
        if not (pictures or self.losses.semantic or self.losses.pooled):
            raise ValueError("losses are all 0: set reconstruction, semantic or pooled above 0")
        return self
