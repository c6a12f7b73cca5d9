"""What a training step asks of a model that several ranks train, by DistributedDataParallel or FSDP2."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

Model = TypeVar("Model", bound=nn.Module)


def gradient_sync(model: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """Return the context of a micro-batch's passes: ranks average their gradients in the last one only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    elif isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def total_gradient_norm(model: nn.Module) -> Float[Tensor, ""]:
    """Return the norm of all gradients together, of whole ones where they are sharded."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model's transformers, the members of its module lists: FSDP2's own units."""
    blocks: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and list(module[0].children()):
            blocks += list(module)
    return blocks


def is_sharded(model: nn.Module) -> bool:
    """Tell whether FSDP2 has sharded a model."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Return a sharded model's parameters as whole tensors, where a rank is to keep them; else nothing.

    A tied one stands under each of its names, and in memory once.
    All ranks call it together. The model stays as it is, and so does what FSDP2 knows of its passes: modules
    that are called by themselves would leave traces there.
    """
    weights: dict[str, Tensor] = {}
    gathered: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = gathered.get(id(parameter))
        if known is None:
            known = parameter.detach()
            if isinstance(known, DTensor):
                known = known.full_tensor()
            # Others let go of it at once: whole weights may not fit beside a training everywhere.
            gathered[id(parameter)] = known if keep else known.new_empty(0)
        if keep:
            weights[name] = known
    return weights


def weightless_copy(model: Model) -> Model:
    """Return a copy of a model whose parameters are on the device `meta`, tied where they were.

    Its buffers are copies of the model's own.
    """
    parameters: dict[int, object] = {}
    for parameter in model.parameters():
        empty = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        parameters[id(parameter)] = empty
    return copy.deepcopy(model, parameters)
