"""Adapters of low rank in the trunk (LoRA, arXiv 2106.09685), by the package peft, which only training needs.

While a trunk is trained, peft's layers stand in the places of its own; `merge_adapters` puts plain ones with
the sums there again.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dualtoken.model.config.mllm import LoraConfig, is_adapter
from dualtoken.model.mllm.modeling import UnifiedModel
from dualtoken.model.randomness import seeded_weights

ADAPTER_FOLDER = "adapter"
"""Folder of the adapter alone, in a saved model's."""
ADAPTER_NAME = "default"
_PEFT_PREFIX = "base_model.model"
"""Beginning of a tensor's name in peft's files, before its name in the causal language model."""


def add_adapters(model: UnifiedModel, config: LoraConfig, *, seed: int) -> None:
    """Put fresh adapters into a model's trunk, in place; what it computes stays the same.

    Raises ValueError without peft, and for target modules that are no linear layers of the trunk.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("lora needs the package peft: pip install 'dualtoken[lora]', or set lora=null")
    from peft import inject_adapter_in_model  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    trunk = model.model.language_model
    _require_linear(trunk, config)
    with seeded_weights(seed):
        inject_adapter_in_model(_peft_config(config, None), trunk, ADAPTER_NAME)


def _require_linear(trunk: nn.Module, config: LoraConfig) -> None:
    if config.target_modules == "all-linear":
        return
    for target in config.target_modules:
        found = [
            module for name, module in trunk.named_modules() if name == target or name.endswith(f".{target}")
        ]
        if not found or not all(isinstance(module, nn.Linear) for module in found):
            raise ValueError(
                f"lora.target_modules: {target!r} names no linear layers of the trunk: "
                f"use some of {', '.join(_linear_names(trunk))}, or all-linear"
            )


def _linear_names(trunk: nn.Module) -> list[str]:
    linear = [name for name, module in trunk.named_modules() if isinstance(module, nn.Linear)]
    return sorted({name.rpartition(".")[2] for name in linear})


def _peft_config(config: LoraConfig, base: str | None) -> Any:  # noqa: ANN401  (peft's)
    from peft import LoraConfig as PeftLoraConfig  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    targets = config.target_modules
    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
    )


def save_adapter(model: UnifiedModel, config: LoraConfig, folder: Path, base: str | None) -> None:
    """Write the trunk's adapters for `peft.PeftModel.from_pretrained`, on a trunk that `base` may name."""
    trunk = model.model.language_model
    beginning = f"{_PEFT_PREFIX}.{trunk.base_model_prefix}"
    tensors: dict[str, Tensor] = {}
    for name, parameter in trunk.named_parameters():
        if is_adapter(name):
            tensors[f"{beginning}.{name.replace(f'.{ADAPTER_NAME}.', '.')}"] = parameter.detach().contiguous()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    described = _peft_config(config, base)
    described.inference_mode = True
    described.save_pretrained(str(folder))


def merge_adapters(model: UnifiedModel) -> None:
    """Add each adapter to its layer's weights, and put the plain layer into its place."""
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    trunk = model.model.language_model
    adapted = [(name, module) for name, module in trunk.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, own = name.rpartition(".")
        setattr(trunk.get_submodule(parent), own, module.get_base_layer())
    # peft's notes on the module, which would make transformers save an adapter.
    del trunk.peft_config


@contextmanager
def step_dropout(config: LoraConfig | None, device: torch.device, seed: int) -> Iterator[None]:
    """Draw the adapters' dropout in the block from a seed, so that a step depends on nothing before it."""
    if config is None or not config.dropout:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
