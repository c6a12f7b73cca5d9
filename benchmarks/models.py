"""The models that benchmarks run, and what they say of the machine."""

import platform
import time
from collections.abc import Callable

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
"""A sixth of the widths at half the side: the paper's proportions, for a CPU."""


def hardware(device: torch.device) -> str:
    """Return the processor or card that figures belong to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long one call takes by the clock; on one thread of a CPU how long it worked, which other programs hardly change.

    The work of several threads, shared out among them, would count as speed what some of them wait.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        started = time.process_time()
        work()
        return time.process_time() - started
    _finish(device)
    started = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    """Wait for what a GPU was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
