"""Images a second and peak memory of a recipe's tokenizer.

Run: python -m benchmarks.throughput [RECIPE] [--device cuda] [--batch-size 64]. Encoding, decoding, and the
training step that the train stage takes with the recipe's own settings: LPIPS, the GAN, from its start on,
and, where the recipe stores no dense targets, the teacher's pass among them; reading images and targets is
not. All weights are random (the tokenizer's, the discriminator's, LPIPS' VGG16, and the teacher's tower,
which has the shape of the tokenizer's), and so are pictures, codes and stored targets: times are those of
trained ones. Peak MB are beside what is there after a first call: weights, and in training the optimiser's
state and gradients. Encoding is timed in float32 and in bfloat16, and beside it stands the share of the
matrix products' rate of the same precision and run that it reaches. J/image is what the whole processor or
card used meanwhile, where that can be read. A row that does not fit into a GPU's memory is measured with half
the batch, which its line names.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.encode import count
from benchmarks.energy import energy_counter
from benchmarks.memory import peak_memory
from benchmarks.models import default_device, hardware, seconds, today
from dualtoken.model.config.training import LpipsConfig
from dualtoken.model.precision import Precision, forbid_tf32, tower_precision
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.teacher.teacher import tower_targets
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.lpips import Lpips
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import train_step
from dualtoken.model.vision.towers import build_tower_like
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.training.train import apply_memory_layout

SHARE = "of the matrix products' rate"
SECONDS_FOR_JOULES = 2.0
"""Least time of work whose energy is told."""


class Row(NamedTuple):
    """A row of the table: something that is timed."""

    name: str
    precision: Precision
    run: Callable[[], object]
    gflop: float | None = None
    """Operations of an image, where they are counted."""


def work(recipe: Recipe, device: torch.device, batch_size: int) -> Iterator[Row]:
    """Yield the rows, each when those before it are done: training changes the tokenizer."""
    torch.manual_seed(0)
    config = recipe.tokenizer
    grid_size = config.grid_size
    tokenizer = DualTokenizer(config).to(device)
    images = torch.rand(batch_size, 3, config.image_size, config.image_size, device=device) * 2 - 1
    shape = (batch_size, grid_size, grid_size, config.pixel.depth)
    codes = torch.randint(config.pixel.num_codes, shape, device=device)

    def encode(precision: Precision) -> object:
        with tower_precision(device, precision):
            return tokenizer.encode(images)

    gflop = count(config)["encode"]
    yield Row("encode", "float32", lambda: encode("float32"), gflop)
    yield Row("encode", "bfloat16", lambda: encode("bfloat16"), gflop)
    yield Row("decode", "float32", lambda: tokenizer.decode(codes))
    yield Row("training step", recipe.train.precision, training_step(recipe, tokenizer, images))


def training_step(recipe: Recipe, tokenizer: DualTokenizer, images: Tensor) -> Callable[[], object]:
    """Return what the train stage does with a batch once the GAN, if there is one, has started."""
    config = recipe.tokenizer
    train = recipe.train
    apply_memory_layout(tokenizer, train)
    lpips = _random_lpips(images.device) if isinstance(train.perceptual, LpipsConfig) else None
    state = TrainState(tokenizer, train, lpips)
    state.step = train.gan.start_step if train.gan else 0
    if recipe.targets.dense:
        dense = torch.randn(len(images), config.grid_size**2, config.tower.width, device=images.device)
        stored = TeacherTargets(dense.mean(1), dense)
        return lambda: train_step(state, images, stored)
    teacher = build_tower_like(config.tower, config.image_size).to(images.device).eval()

    def ask_and_train() -> None:
        with tower_precision(images.device, train.precision):
            targets = tower_targets(teacher, images, config.semantic_block)
        train_step(state, images, targets)

    return ask_and_train


def _random_lpips(device: torch.device) -> Lpips:
    network = Lpips()
    for head in network.heads:
        nn.init.uniform_(head)
    return network.to(device)


def matmul_rate(precision: Precision, device: torch.device, rounds: int) -> float:
    """Return the GFLOP/s of a square matrix product, the most that a device gives in a precision.

    float32 is never TF32.
    """
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    torch.mm(matrix, matrix)
    times = [seconds(lambda: torch.mm(matrix, matrix), device) for _ in range(rounds)]
    return 2e-9 * size**3 / statistics.median(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="scenes")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    device = torch.device(arguments.device)
    print(f"{today()}, {hardware(device)}; {recipe.name}, ", end="")
    print(f"{recipe.tokenizer.image_size} px, batch {arguments.batch_size}")
    forbid_tf32()
    energy = energy_counter(device)
    print(f"{'':16}{'precision':>10}{'images/s':>10}{'J/image':>10}{'peak MB':>10}{SHARE:>32}")
    for number, row in enumerate(work(recipe, device, arguments.batch_size)):
        print(_measure_what_fits(recipe, number, row, device, arguments, energy), flush=True)


def _measure_what_fits(
    recipe: Recipe,
    number: int,
    row: Row,
    device: torch.device,
    arguments: argparse.Namespace,
    energy: Callable[[], float] | None,
) -> str:
    """Return a row's line, of half the batch where memory does not hold it, and so on."""
    batch_size: int = arguments.batch_size
    while True:
        try:
            line = measure(row, device, batch_size, arguments.rounds, energy)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                return f"{row.name:16}{row.precision:>10}  one image does not fit into the memory"
        else:
            return line if batch_size == arguments.batch_size else f"{line}  batch {batch_size}"
        # Out here the error is gone, and with it the tensors of its traceback.
        batch_size //= 2
        torch.cuda.empty_cache()
        row = next(islice(work(recipe, device, batch_size), number, None))


def measure(
    row: Row, device: torch.device, batch_size: int, rounds: int, energy: Callable[[], float] | None
) -> str:
    """Time a row and return its line of the table."""
    peak = _peak(row.run, device)
    joules = "unread"
    before = energy() if energy else 0.0
    times = [seconds(row.run, device) for _ in range(rounds)]
    if energy:
        # The counters move in steps of tens of milliseconds.
        while sum(times) < SECONDS_FOR_JOULES:
            times.append(seconds(row.run, device))
        joules = f"{(energy() - before) / (batch_size * len(times)):.2f}"
    rate = batch_size / statistics.median(times)
    digits = 1 if rate >= 10 else 3
    share = ""
    # A CPU without bfloat16 products has no rate of them to speak of.
    if row.gflop and (device.type == "cuda" or row.precision == "float32"):
        share = f"{row.gflop * rate / matmul_rate(row.precision, device, rounds):.1%}"
    return f"{row.name:16}{row.precision:>10}{rate:10.{digits}f}{joules:>10}{peak:10.0f}{share:>32}"


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
