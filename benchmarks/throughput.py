"""Images a second and peak memory of a recipe's tokenizer: `python -m benchmarks.throughput [RECIPE] [--device cuda] [--batch-size 64]`.

Encoding, decoding, and a training step with the recipe's own settings, of random pictures; fresh weights.
"""

import argparse
import datetime as dt
import statistics
from collections.abc import Callable

import torch

from benchmarks.memory import peak_memory
from benchmarks.models import hardware, seconds
from model.losses import TeacherTargets
from model.stages import freeze
from model.tokenizer import DualTokenizer
from model.train_state import TrainState
from model.training import train_step
from pipelines.config import Recipe
from pipelines.recipe import load_recipe


def work(recipe: Recipe, device: torch.device, batch_size: int) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    torch.manual_seed(0)
    config = recipe.tokenizer
    train = recipe.train.model_copy(update={"gan": None, "warmup_steps": 0})
    tokenizer = DualTokenizer(config).to(device)
    freeze(tokenizer, train)
    state = TrainState(tokenizer, train)
    images = torch.rand(batch_size, 3, config.image_size, config.image_size, device=device) * 2 - 1
    dense = torch.randn(batch_size, config.grid_size**2, config.tower.width, device=device)
    targets = TeacherTargets(dense.mean(1), dense)
    codes = tokenizer.encode(images).pixel
    return {
        "encode": lambda: tokenizer.encode(images),
        "decode": lambda: tokenizer.decode(codes),
        "training step": lambda: train_step(state, images, targets),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="scenes", help="without LPIPS; a GAN is left out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    recipe, device = load_recipe(arguments.recipe, ["train.perceptual=none"]), torch.device(arguments.device)
    print(f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {hardware(device)}; {recipe.name}, ", end="")
    print(f"{recipe.tokenizer.image_size} px, batch {arguments.batch_size}, {recipe.train.precision}")
    print(f"{'':16}{'images/s':>10}{'peak MB':>10}")
    for name, run in work(recipe, device, arguments.batch_size).items():
        peak = _peak(run, device)
        taken = statistics.median(seconds(run, device) for _ in range(arguments.rounds))
        print(f"{name:16}{arguments.batch_size / taken:10.1f}{peak:10.0f}", flush=True)


def _peak(run: Callable[[], object], device: torch.device) -> float:
    """Return the MB that a call needs beside what was there."""
    if device.type != "cuda":
        return peak_memory(run)
    run()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


if __name__ == "__main__":
    main()
