"""The tables in which `plan` tells what is expected of a recipe's networks, and of its targets."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.table import Table

from dualtoken.jobs.status_tables import bytes_in_words
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
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
