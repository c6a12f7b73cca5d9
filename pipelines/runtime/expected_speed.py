"""Expected speed and memory of a recipe's networks on a device, by part, from the counts of their shapes.

A part takes the longer of two times: its operations at the device's rate, its bytes at the memory's. Rates
are the makers' for dense products, times the share that large products reach in practice; nothing here was
measured on these cards by us. Imports no torch, so that planning stays quick.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dualtoken.model.config.base import Precision
from dualtoken.model.config.costs import Cost, total
from dualtoken.model.config.step_costs import (
    encoder,
    searches,
    teacher,
    training_step,
)
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.target_bytes import target_bytes
from dualtoken.pipelines.config.teacher import TargetsMode

REACHED = 0.6
"""Share of a device's highest rate that networks' products and convolutions reach."""
REACHED_OF_MEMORY = 0.8
"""Share of the memory's rate that layers without products reach."""
_BYTES = {"float32": 4, "bfloat16": 2}
GB = 1e9


class Device(NamedTuple):
    """A device's rates, by its maker's data sheet."""

    name: str
    teraflops: dict[Precision, float]
    """Dense products, 10^12 operations a second, without TF32."""
    terabytes: float
    """Memory's rate, 10^12 bytes a second."""
    memory_gb: float | None
    """Memory of one device, GB; None for a CPU's core."""


DEVICES = {
    device.name: device
    for device in (
        Device("H200", {"float32": 67.0, "bfloat16": 989.0}, 4.8, 141.0),
        Device("H100", {"float32": 67.0, "bfloat16": 989.0}, 3.35, 80.0),
        Device("A100", {"float32": 19.5, "bfloat16": 312.0}, 2.04, 80.0),
        Device("L4", {"float32": 30.3, "bfloat16": 121.0}, 0.30, 24.0),
        # One core of an AMD EPYC (AVX2, 2.6 GHz: 16 multiplications and additions of float32 a cycle).
        Device("core", {"float32": 0.083, "bfloat16": 0.083}, 0.01, None),
    )
}
"""Devices by name."""
_SLOWER_VARIANTS = {"H100": {"PCIe", "NVL"}, "H200": {"NVL"}}
"""Words in the driver's name of a card that say that it is slower than the data sheet's first column."""
_PART_OF_CARD = "MIG"
"""Word in the name of a part of a card."""


def named_device(driver_name: str) -> Device | None:
    """Return the device of a driver's name, such as `NVIDIA H200`; None where its rate is not known."""
    words = set(re.split(r"[^A-Za-z0-9]+", driver_name))
    if _PART_OF_CARD in words:
        return None
    for name, device in DEVICES.items():
        is_card = device.memory_gb is not None
        if is_card and name in words and not words & _SLOWER_VARIANTS.get(name, set()):
            return device
    return None


class ExpectedPart(NamedTuple):
    """What is expected of one part of a stage, on one device."""

    stage: str
    part: str
    gflop: float
    """Operations of an image, 10^9."""
    milliseconds: float
    """Time of an image."""


class ExpectedStage(NamedTuple):
    """What is expected of a stage, on one device."""

    stage: str
    precision: Precision
    parts: tuple[ExpectedPart, ...]
    memory_gb: float
    """Weights, what an optimiser keeps, and activations of a batch, GB."""

    @property
    def images_per_second(self) -> float:
        """Images a second and device, decoding of files left out."""
        return 1000 / sum(part.milliseconds for part in self.parts)


class ExpectedTargets(NamedTuple):
    """What a mode of the targets costs a recipe."""

    mode: TargetsMode
    bytes: float
    """Bytes stored, of all samples."""
    seconds: float
    """Seconds of one device: computing them once, or in each step of the training, beside reading them."""
    fits: bool
    """Whether the recipe's losses, crops and budget allow it."""


def expected_stages(recipe: Recipe, device: Device) -> Iterator[ExpectedStage | str]:
    """Yield what is expected of the stages that run networks, or why a stage's are not counted."""
    for expected in (_targets, _train, _pretokenize):
        try:
            found = expected(recipe, device)
        except ValueError as problem:
            yield f"{expected.__name__.lstrip('_')}: {problem}"
        else:
            if found is not None:
                yield found


def _targets(recipe: Recipe, device: Device) -> ExpectedStage | None:
    if recipe.targets.stored is None:
        return None
    parts = {"teacher": teacher(recipe.tokenizer)}
    return _forward(device, "targets", recipe.targets.precision, parts, recipe.targets.batch_size)


def _pretokenize(recipe: Recipe, device: Device) -> ExpectedStage:
    config = recipe.tokenizer
    parts = {"tower": encoder(config), "code searches": searches(config)}
    pretokenize = recipe.pretokenize
    return _forward(device, "pretokenize", pretokenize.precision, parts, pretokenize.batch_size)


def _forward(
    device: Device, name: str, precision: Precision, parts: dict[str, Cost], batch_size: int
) -> ExpectedStage:
    """Return what is expected of a stage that runs networks forward, with one layer in memory at a time."""
    expected = tuple(_expected(device, name, part, precision, cost) for part, cost in parts.items())
    summed = total(*parts.values())
    numbers = 4 * summed.weights + batch_size * summed.widest * _BYTES[precision]
    return ExpectedStage(name, precision, expected, numbers / GB)


def _train(recipe: Recipe, device: Device) -> ExpectedStage:
    train = recipe.train
    online = not recipe.targets.read_by_training
    costs = training_step(recipe.tokenizer, train, online=online)
    expected: list[ExpectedPart] = []
    for part in costs:
        precision = "float32" if part.name == "code searches" else train.precision
        expected.append(_expected(device, "train", part.name, precision, part.cost))
    images = train.batch_size // train.num_workers // train.accumulate_steps
    weights = sum(part.cost.weights for part in costs)
    # Weights, gradients and two moments of Adam, each in float32; the average's weights, and the other ranks'
    # gradients' buckets.
    copies = 4 + int(train.weight_ema is not None) + int(train.num_workers > 1)
    activations = images * sum(part.cost.saved for part in costs) * _BYTES[train.precision]
    return ExpectedStage("train", train.precision, tuple(expected), (4 * copies * weights + activations) / GB)


def _expected(device: Device, stage: str, name: str, precision: Precision, cost: Cost) -> ExpectedPart:
    computing = cost.flop / (device.teraflops[precision] * 1e12 * REACHED)
    moving = cost.moved * _BYTES[precision] / (device.terabytes * 1e12 * REACHED_OF_MEMORY)
    return ExpectedPart(stage, name, cost.flop / 1e9, 1000 * max(computing, moving))


def expected_targets(recipe: Recipe, device: Device, samples: Sequence[int]) -> Iterator[ExpectedTargets]:
    """Yield what each mode costs in all, for the samples of each corpus, cheapest in bytes first."""
    config = recipe.tokenizer
    num_samples = sum(samples)
    largest = max(samples)
    train = recipe.train
    tower = teacher(config)
    stored = _expected(device, "targets", "teacher", recipe.targets.precision, tower)
    once = num_samples * stored.milliseconds / 1000
    each_step = _expected(device, "train", "teacher", train.precision, tower).milliseconds / 1000
    yield ExpectedTargets("online", 0.0, each_step * train.steps * train.batch_size, fits=True)
    for mode in ("pooled", "dense_int8", "dense_float16"):
        size = num_samples * float(target_bytes(config, mode))
        fits = train.random_crop is None
        if mode == "pooled":
            fits = fits and train.losses.semantic == 0
        else:
            of_largest = largest * target_bytes(config, mode)
            fits = fits and of_largest <= recipe.targets.dense_budget_gb * GB
        yield ExpectedTargets(mode, size, once, fits=fits)


def chosen_mode(modes: list[ExpectedTargets]) -> ExpectedTargets:
    """Return the mode that fits and takes least time; of equal ones the one that rounds least."""
    fitting = [mode for mode in modes if mode.fits]
    return min(reversed(fitting), key=lambda mode: mode.seconds)
