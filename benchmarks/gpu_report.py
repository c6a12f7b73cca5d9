"""What the steps of `benchmarks.gpu` share: how they tell results, which model they take, how they time."""

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import seconds
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe

RESULT = "RESULT "
"""Begin of the line on standard output with results, as JSON."""
WARM_UP_SECONDS = 0.2


def tell(**found: Any) -> None:  # noqa: ANN401  (whatever JSON holds)
    """Print results at once: what a step found before its time was up is kept."""
    print(RESULT + json.dumps(found), flush=True)


def guarded(name: str, function: Callable[[], object]) -> None:
    """Tell what a function returns, or how it fails: the others of its step go on."""
    try:
        tell(**{name: function()})
    except Exception as error:  # noqa: BLE001  (told as the result)
        tell(**{name: f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


@cache
def recipe_for(device: torch.device, *overrides: str) -> Recipe:
    """Return the recipe whose networks are run: the paper's on a GPU, a small one that tries the script."""
    if device.type == "cuda":
        return load_recipe("paper-384", list(overrides))
    return load_recipe("scenes", [one for one in overrides if "memory_format" not in one])


def fresh_tokenizer(recipe: Recipe, device: torch.device) -> DualTokenizer:
    """Return a tokenizer with random weights made on the device: on a CPU those of the paper take 27 s."""
    with torch.device("meta"):
        tokenizer = DualTokenizer(recipe.tokenizer)
    tokenizer.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, tensor in tokenizer.state_dict().items():
            if tensor.ndim > 1:
                tensor.normal_(std=0.02, generator=generator)
            elif name.endswith("weight"):
                tensor.fill_(1)
            else:
                tensor.zero_()
        for codebook in (tokenizer.quantize_pixel, tokenizer.quantize_semantic):
            for buffer in codebook.buffers():
                buffer.fill_(1) if buffer.ndim == 1 else buffer.normal_(generator=generator)
    return tokenizer.eval()


def random_images(recipe: Recipe, count: int, device: torch.device) -> Tensor:
    """Return images of -1 to 1."""
    size = recipe.tokenizer.image_size
    generator = torch.Generator(device).manual_seed(1)
    return torch.rand(count, 3, size, size, device=device, generator=generator) * 2 - 1


def milliseconds(function: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Return the median time of a call, after a warm-up."""
    ends = time.monotonic() + WARM_UP_SECONDS
    function()
    while time.monotonic() < ends:
        function()
    return round(1000 * statistics.median(seconds(function, device) for _ in range(rounds)), 3)


def peak_mb(function: Callable[[], object], device: torch.device) -> float | None:
    """Return the most memory of a GPU during a call, MB; None for a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return round(torch.cuda.max_memory_allocated(device) / 1e6)


def largest_kernels(function: Callable[[], object], count: int) -> list[str]:
    """Return the operators that take most of a call's time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        function()
    kind = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    averages = sorted(profile.key_averages(), key=lambda event: -getattr(event, kind))
    return [
        f"{getattr(event, kind) / 1000:.2f} ms {event.count}x {event.key[:80]}" for event in averages[:count]
    ]


def nvidia_smi(query: str) -> str:
    """Return what nvidia-smi says to a query, or why it says nothing."""
    try:
        asked = subprocess.run(  # noqa: S603  (a fixed program)
            ["nvidia-smi", f"--query-{query}", "--format=csv"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return asked.stdout.strip() or asked.stderr.strip()
