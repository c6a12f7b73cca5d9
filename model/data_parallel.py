"""What a training step asks of a model that several ranks train, by DistributedDataParallel or FSDP2."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


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
