"""Operations of a training's steps, and what share of the devices' rates they use (MFU, arXiv 2204.02311).

Operations are those that the model needs, so none that are done twice to save memory.
"""

import torch

from dualtoken.model.config.mllm import STREAM_NAMES, MllmTrainingConfig
from dualtoken.model.config.mllm_costs import ImageCodes, MllmShape, StepSize, mllm_step
from dualtoken.model.config.step_costs import training_step
from dualtoken.model.config.trunk_dimensions import stated_dimensions
from dualtoken.model.mllm.configuration import DualTokenMllmConfig
from dualtoken.model.vision.imports import vision_imports
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.expected_speed import named_device
from dualtoken.pipelines.training.task import StepCost
from dualtoken.pipelines.training.train_context import RankContext

with vision_imports():
    from transformers import PretrainedConfig


def tokenizer_step_cost(recipe: Recipe, *, with_gan: bool) -> StepCost | None:
    """Return the operations of a step of the tokenizer's training, over all workers together.

    None where they are not counted.
    """
    train = recipe.train
    has_frozen = any(group.freeze for group in train.parameters)
    if has_frozen or not train.trains_pictures or not train.trains_meaning:
        return None
    # What is computed again is no work of the model.
    settings = train.model_copy(update={"checkpoint_tower": False})
    try:
        parts = training_step(recipe.tokenizer, settings, online=not recipe.targets.read_by_training)
    except ValueError:
        return None
    counted = [part.cost.flop for part in parts if with_gan or part.name != "GAN"]
    return StepCost(float(train.batch_size * sum(counted)), train.precision)


def mllm_shape(config: MllmTrainingConfig, model_config: PretrainedConfig) -> MllmShape | None:
    """Return what the cost of a unified model's step follows from; None for a trunk of unknown layers."""
    assert isinstance(model_config, DualTokenMllmConfig)
    try:
        trunk = stated_dimensions(model_config.text_config.to_dict())
    except ValueError:
        return None
    images = ImageCodes(
        positions=model_config.image_positions,
        side=model_config.grid[0],
        depth=model_config.depth,
        num_codes={stream: model_config.num_codes[stream] for stream in STREAM_NAMES},
        code_width={stream: model_config.code_width[stream] for stream in STREAM_NAMES},
    )
    return MllmShape(config, trunk, images)


class MllmStepCounter:
    """Counts the operations of one worker's steps of the unified model, which differ by their documents."""

    def __init__(self, shape: MllmShape | None) -> None:
        self._shape = shape
        self._begin()

    def _begin(self) -> None:
        self._size = StepSize(0, 0, 0, 0, 0, 0)
        self._num_steps = 0

    def add(self, size: StepSize) -> None:
        """Add a step that was taken."""
        self._size = self._size.plus(size)
        self._num_steps += 1

    def mean_cost(self) -> StepCost | None:
        """Return the mean cost of the steps since the last call; None where there are none, or no count."""
        size = self._size
        num_steps = self._num_steps
        self._begin()
        if self._shape is None or not num_steps:
            return None
        flop = sum(part.flop for part in mllm_step(self._shape, size))
        return StepCost(flop / num_steps, self._shape.config.precision)


def flop_utilization(cost: StepCost, steps_per_second: float, context: RankContext) -> float | None:
    """Return the share of all workers' highest rate that steps use; None on devices of unknown rate.

    `cost` is that of a step over all workers together.
    """
    if context.device.type != "cuda":
        return None
    device = named_device(torch.cuda.get_device_name(context.device))
    if device is None:
        return None
    peak = context.world_size * device.teraflops[cost.precision] * 1e12
    return cost.flop * steps_per_second / peak
