"""What each `targets.mode` costs and changes: bytes, images a second, and the loss of the training it feeds.

Run: python -m benchmarks.targets [RECIPE] [--steps 200] [--set KEY=VALUE ...]. The recipe's stages run in
this process, in a temporary folder; targets and training once for each mode, from the same teacher, samples
and seed. The loss is the mean of the last twentieth of the steps, of the terms that the teacher decides; its
gap is to `online`.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.models import hardware, today
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.teacher import TargetsMode
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.training.metrics_log import read_metrics

MODES: tuple[TargetsMode, ...] = ("online", "dense_float16", "dense_int8")
TERMS = ("semantic", "pooled")


class Row(NamedTuple):
    """What one mode gave."""

    mode: str
    bytes_per_image: float
    stored_per_second: float
    """Images a second of the targets stage; 0 where nothing is stored."""
    trained_per_second: float
    losses: tuple[float, ...]
    """Mean of each of `TERMS` at the end."""


def measure(recipe_name: str, mode: TargetsMode, root: Path, steps: int, overrides: list[str]) -> Row:
    """Run targets and training in a mode."""
    settings = [
        *overrides,
        f"root={root}",
        f"targets.mode={mode}",
        f"train.steps={steps}",
        "train.log_every=1",
        f"train.checkpoint_every={steps}",
    ]
    recipe = load_recipe(recipe_name, settings)
    executor = LocalExecutor()
    for command in ("scenes", "download", "teacher", "filter"):
        run_command(command, recipe, executor, lambda _: None)
    size = rate = 0.0
    if mode != "online":
        started = time.perf_counter()
        run_command("targets", recipe, executor, lambda _: None)
        seconds = time.perf_counter() - started
        stored = [planned.manifest for planned in Planner(recipe).on_corpora("targets")]
        rows = sum(manifest.rows_in for manifest in stored if manifest)
        size = sum(manifest.bytes for manifest in stored if manifest) / rows
        rate = rows / seconds
    started = time.perf_counter()
    run_command("train", recipe, executor, lambda _: None)
    seconds = time.perf_counter() - started
    job = Planner(recipe).get("train", None).job
    assert job is not None
    lines = read_metrics(Store(job.folder))[-max(1, steps // 20) :]
    losses = tuple(sum(line[term] for line in lines) / len(lines) for term in TERMS)
    return Row(mode, size, rate, steps * recipe.train.batch_size / seconds, losses)


def main() -> None:
    """Print the table."""
    import torch  # noqa: PLC0415  (after the arguments)

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="scenes")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    print(f"{today()}, {hardware(torch.device('cpu'))}; {arguments.recipe}, {arguments.steps} steps")
    print(f"{'mode':15}{'bytes/image':>12}{'stored/s':>10}{'trained/s':>11}", end="")
    print("".join(f"{term:>12}{'gap':>9}" for term in TERMS))
    with tempfile.TemporaryDirectory() as folder:
        online = None
        for mode in MODES:
            row = measure(arguments.recipe, mode, Path(folder), arguments.steps, arguments.set)
            online = online or row
            print(f"{row.mode:15}{row.bytes_per_image:12.0f}{row.stored_per_second:10.0f}", end="")
            print(f"{row.trained_per_second:11.0f}", end="")
            for loss, reference in zip(row.losses, online.losses, strict=True):
                print(f"{loss:12.5f}{loss / reference - 1:9.2%}", end="")
            print(flush=True)


if __name__ == "__main__":
    main()
