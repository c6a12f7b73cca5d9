"""The models that benchmarks run, and what they measure with.

The machine's name, the seconds of a call, and calls that take turns.
"""

import datetime as dt
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import DecoderConfig, ShortcutConfig, TokenizerConfig, TowerConfig

PAPER_384 = TokenizerConfig(
    image_size=384,
    tower=TowerConfig(patch_size=14, width=1152, depth=27, num_heads=16, mlp_width=4304),
    pixel_block=6,
    semantic_block=26,
    shortcut=ShortcutConfig(),
    pixel=QuantizerConfig(),
    semantic=QuantizerConfig(),
    decoder=DecoderConfig(),
)
"""SigLIP So400m/14 at 384 pixels."""

SMALL_192 = TokenizerConfig(
    image_size=192,
    tower=TowerConfig(patch_size=14, width=192, depth=27, num_heads=3, mlp_width=717),
    pixel_block=6,
    semantic_block=26,
    shortcut=ShortcutConfig(),
    pixel=QuantizerConfig(num_codes=1024),
    semantic=QuantizerConfig(num_codes=1024),
    decoder=DecoderConfig(latent_size=12, latent_width=172, width=20, norm_groups=4),
)
"""The paper's proportions for a CPU: a sixth of the widths at half the side."""


def today() -> str:
    """Return the date in UTC."""
    return f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}"


def default_device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def hardware(device: torch.device) -> str:
    """Return the processor or card that figures belong to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call: of the clock, or on one thread of a CPU those that the process worked.

    Other programs hardly change the latter. With several threads it would count as speed what some of them
    wait.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        started = time.process_time()
        work()
        return time.process_time() - started
    _synchronize(device)
    started = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    """Wait for the work that a GPU was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_in_turn(
    runs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Call each of several functions once a round, so that other load hits all alike; return their seconds.

    With `warm_up` there is one round more, the first, which is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    first_round = -1 if warm_up else 0
    for number in range(first_round, rounds):
        for name, run in runs.items():
            taken = seconds(run, device)
            if number >= 0:
                times[name].append(taken)
    return times
