"""Tensors of a training by name, the live ones: what a checkpoint holds, and is loaded into in place.

A name is that of a part and of the tensor in it: `model.decoder.conv_in.weight`,
`optimizer.decoder.conv_in.weight.exp_avg`. It depends neither on the number of workers nor on how they share
the model, so any number of them goes on from it.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualtoken.model.optimizer import AnyOptimizer, Optimizers


class OptimizerOf(NamedTuple):
    """An optimiser, and the module that its parameters have their names in."""

    optimizer: AnyOptimizer
    module: nn.Module


class TrainedParts(NamedTuple):
    """All that changes in a training, by name, but the number of steps done."""

    modules: Mapping[str, nn.Module]
    """Modules as they were before DistributedDataParallel wrapped them."""
    optimizers: Mapping[str, OptimizerOf]


class SavedTensor(NamedTuple):
    """What a checkpoint tells of a tensor."""

    shape: torch.Size
    dtype: torch.dtype


def state_tensors(parts: TrainedParts) -> dict[str, Tensor]:
    """Return the live tensors of all parts; sharded ones are `DTensor`s."""
    tensors: dict[str, Tensor] = {}
    for part, module in parts.modules.items():
        for name, tensor in module_tensors(module).items():
            tensors[f"{part}.{name}"] = tensor
    for part, (optimizer, module) in parts.optimizers.items():
        for name, parameter, owner in _optimized(optimizer, module):
            for key, tensor in owner.state.get(parameter, {}).items():
                tensors[f"{part}.{name}.{key}"] = tensor
    return tensors


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's live tensors by name; one of several names, such as tied weights, stands once."""
    tensors: dict[str, Tensor] = {}
    known = set[int]()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            known.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def allocate_optimizer_state(parts: TrainedParts, saved: Mapping[str, SavedTensor]) -> None:
    """Give the optimisers the state that a checkpoint has, as zeros that it can be loaded into.

    An optimiser makes its state in its first step; without that, there would be nothing to load into.
    """
    saved_keys: dict[str, list[str]] = {}
    for name in saved:
        parameter_name, _, key = name.rpartition(".")
        saved_keys.setdefault(parameter_name, []).append(key)
    for part, (optimizer, module) in parts.optimizers.items():
        for name, parameter, owner in _optimized(optimizer, module):
            for key in saved_keys.get(f"{part}.{name}", []):
                owner.state[parameter][key] = _zeros(parameter, saved[f"{part}.{name}.{key}"])


def _zeros(parameter: nn.Parameter, saved: SavedTensor) -> Tensor:
    """Return zeros in the form of a parameter, or a number beside it, such as AdamW's count of steps."""
    if saved.shape == parameter.shape:
        return torch.zeros_like(parameter, dtype=saved.dtype)
    # Our optimisers are fused ones or keep no numbers: a fused one has them on the device.
    return torch.zeros(saved.shape, dtype=saved.dtype, device=parameter.device)


def _optimized(
    optimizer: AnyOptimizer, module: nn.Module
) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
    """Yield the parameters that an optimiser moves: name, parameter, and the optimiser proper."""
    owners: dict[nn.Parameter, torch.optim.Optimizer] = {}
    parts = optimizer.parts if isinstance(optimizer, Optimizers) else (optimizer,)
    for owner in parts:
        for group in owner.param_groups:
            owners.update(dict.fromkeys(group["params"], owner))
    for name, parameter in module.named_parameters():
        if parameter in owners:
            yield name, parameter, owners[parameter]
