"""The tables in which `plan` tells what is expected of a recipe's networks, and of its targets."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.table import Table

from dualtoken.jobs.status_tables import bytes_in_words
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.expected_mllm import (
    DRAWING_PRECISIONS,
    ExpectedMemory,
    expected_drawing,
    expected_training,
)
from dualtoken.pipelines.runtime.expected_speed import (
    DEVICES,
    Device,
    ExpectedStage,
    ExpectedTargets,
    chosen_mode,
    expected_stages,
    expected_targets,
)
from dualtoken.pipelines.runtime.plan import PlannedStage

DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help=f"Device whose speed is expected: {', '.join(DEVICES)} (of a CPU); default: by the recipe.",
    ),
]


def expectations(recipe: Recipe, plan: Sequence[PlannedStage], name: str | None) -> Iterator[Table | str]:
    """Yield tables of what is expected on a device, and lines on what cannot be counted."""
    device = _device(recipe, name)
    table = Table("expected", "part", box=None, pad_edge=False)
    for heading in ("GFLOP/image", "ms/image", f"images/s, one {device.name}", "memory, at most"):
        table.add_column(heading, justify="right")
    lines: list[str] = []
    for stage in expected_stages(recipe, device):
        if isinstance(stage, str):
            lines.append(f"not expected: {stage}")
        else:
            _add_stage(table, stage, device)
    if table.row_count:
        yield table
    samples = [planned.num_rows for planned in plan if planned.stage == "filter"]
    if any(samples) and not lines:
        yield from _targets(recipe, device, samples)
    if recipe.mllm is not None:
        try:
            yield from _unified_model(recipe, device)
        except ValueError as problem:
            lines.append(f"not expected: mllm: {problem}")
    yield from lines


def _device(recipe: Recipe, name: str | None) -> Device:
    """Return the device of that name; by default an H100 for a recipe with GPUs, else a CPU's core."""
    if name is None:
        wants_gpus = recipe.train.use_gpu or recipe.cluster.gpus_per_worker > 0
        return DEVICES["H100" if wants_gpus else "core"]
    if name not in DEVICES:
        raise UserError(f"--device {name} is unknown: name one of {', '.join(DEVICES)}")
    return DEVICES[name]


def _add_stage(table: Table, stage: ExpectedStage, device: Device) -> None:
    for part in stage.parts:
        table.add_row(stage.stage, part.part, f"{part.gflop:,.2f}", f"{part.milliseconds:,.3f}", "", "")
    milliseconds = sum(part.milliseconds for part in stage.parts)
    memory = bytes_in_words(stage.memory_gb * 1e9)
    if device.memory_gb is not None and stage.memory_gb > device.memory_gb:
        memory = f"{memory} > {device.memory_gb:g} GB"
    gflop = sum(part.gflop for part in stage.parts)
    rate = f"{stage.images_per_second:,.1f}"
    table.add_row(stage.stage, stage.precision, f"{gflop:,.2f}", f"{milliseconds:,.3f}", rate, memory)


def _unified_model(recipe: Recipe, device: Device) -> Iterator[Table | str]:
    """Yield what is expected of the unified model: a step of its training, its memory, its drawings.

    Raises ValueError for a trunk whose layers are not known.
    """
    training = expected_training(recipe, device)
    table = Table("mllm, training", "part", box=None, pad_edge=False)
    for heading in ("parameters", "GFLOP/position", "µs/position"):
        table.add_column(heading, justify="right")
    for part in training.parts:
        parameters = f"{part.parameters:,}" if part.parameters else ""
        row = (parameters, f"{part.gigaflop:,.4f}", f"{part.microseconds:,.3f}")
        table.add_row("mllm", part.part, *row)
    parameters = sum(part.parameters for part in training.parts)
    gigaflop = training.step_flop / training.num_positions / 1e9
    microseconds = 1e6 / training.positions_per_second
    row = (f"{parameters:,}", f"{gigaflop:,.4f}", f"{microseconds:,.3f}")
    table.add_row("mllm", training.precision, *row)
    yield table
    yield (
        f"mllm, one {device.name}: a step of {training.num_positions:,} positions takes "
        f"{training.step_seconds:,.2f} s and {training.step_flop / 1e12:,.2f} TFLOP, "
        f"{training.positions_per_second:,.0f} positions/s, {training.documents_per_second:,.1f} documents/s "
        f"of {training.document_length:,.0f} positions, MFU {training.utilization:.0%}"
    )
    yield _memory(training.memory, device)
    yield _drawings(recipe, device)


def _memory(memory: ExpectedMemory, device: Device) -> str:
    """Return a line on the memory of one device, part by part."""
    parts = [f"{name} {bytes_in_words(size)}" for name, size in memory._asdict().items() if size]
    line = f"mllm, memory of one {device.name}: {bytes_in_words(memory.total)}: {', '.join(parts)}"
    if device.memory_gb is not None and memory.total > device.memory_gb * 1e9:
        return f"{line}; over {device.memory_gb:g} GB: raise mllm.accumulate_steps, or lower mllm.capacity"
    return line


def _drawings(recipe: Recipe, device: Device) -> Table:
    """Return what drawing takes on a device, one image by itself and as many as `examine` draws together."""
    table = Table("mllm, drawing", box=None, pad_edge=False)
    headings = ("trunk", "heads", "cache", "decoder", "s/image", "images/s")
    for heading in headings:
        table.add_column(heading, justify="right")
    for precision in DRAWING_PRECISIONS:
        for num_images in (1, recipe.examine.batch_size):
            drawn = expected_drawing(recipe, device, precision, num_images)
            seconds = (drawn.trunk, drawn.heads, drawn.cache, drawn.decoder, drawn.seconds)
            row = [f"{part / num_images:,.4f}" for part in seconds]
            together = f"{precision}, {num_images} together"
            table.add_row(together, *row, f"{num_images / drawn.seconds:,.2f}")
    return table


def _targets(recipe: Recipe, device: Device, samples: Sequence[int]) -> Iterator[Table | str]:
    """Yield what each mode of the targets costs for the samples of each corpus, and the one to choose."""
    modes = list(expected_targets(recipe, device, samples))
    table = Table("targets.mode", box=None, pad_edge=False)
    for heading in ("bytes", f"time of one {device.name}", "possible"):
        table.add_column(heading, justify="right")
    for mode in modes:
        size = bytes_in_words(mode.bytes) if mode.bytes else ""
        table.add_row(mode.mode, size, _duration(mode.seconds), "yes" if mode.fits else "no")
    yield table
    yield _advice(recipe, chosen_mode(modes))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def _advice(recipe: Recipe, best: ExpectedTargets) -> str:
    targets = recipe.targets
    now = targets.mode or targets.stored
    if not targets.read_by_training:
        now = "online"
    budget = f"targets.dense_budget_gb={targets.dense_budget_gb:g}"
    if best.mode == now:
        return f"targets.mode={now} takes least time within {budget}"
    return f"targets.mode={best.mode} would take least time within {budget}; the recipe has {now}"
