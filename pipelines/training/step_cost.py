"""Operations of a training's steps, and what share of the devices' rates they use (MFU, arXiv 2204.02311).

Operations are those that the model needs, so none that are done twice to save memory.
"""

import torch

from dualtoken.model.config.step_costs import training_step
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.expected_speed import named_device
from dualtoken.pipelines.training.task import StepCost
from dualtoken.pipelines.training.train_context import RankContext


def tokenizer_step_cost(recipe: Recipe, *, with_gan: bool) -> StepCost | None:
    """Return the operations of a step of the tokenizer's training; None where they are not counted."""
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


def flop_utilization(cost: StepCost, steps_per_second: float, context: RankContext) -> float | None:
    """Return the share of all workers' highest rate that steps use; None on devices of unknown rate."""
    if context.device.type != "cuda":
        return None
    device = named_device(torch.cuda.get_device_name(context.device))
    if device is None:
        return None
    peak = context.world_size * device.teraflops[cost.precision] * 1e12
    return cost.flop * steps_per_second / peak
