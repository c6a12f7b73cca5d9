"""Data parallelism of any model over the workers of a training: DDP, or FSDP2, which shards it too."""

from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dualtoken.pipelines.training.train_context import TrainContext


def data_parallel(
    model: nn.Module,
    context: TrainContext,
    kind: Literal["ddp", "fsdp2"],
    blocks: Iterable[nn.Module] = (),
) -> nn.Module:
    """Return a model that averages its gradients over the workers; one worker's stays as it is.

    The model is on the context's device. Buffers must be equal on all workers, and are kept so by the
    training. `ddp` wraps the model; `fsdp2` shards it in place, `blocks` one by one, and the rest with it.
    """
    if context.world_size == 1:
        return model
    if kind == "ddp":
        devices = [context.device] if context.device.type == "cuda" else None
        # Gradients are views of the buckets that are sent: they stand in memory once.
        return DistributedDataParallel(
            model, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    mesh = init_device_mesh(context.device.type, (context.world_size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
