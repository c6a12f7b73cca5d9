"""Fresh weights of a unified model, in proportions in which a short training learns.

transformers draws every matrix with a standard deviation of 0.02, made for trunks of thousands of channels.
At 128 channels that is a quarter of what keeps a signal's size, and much of a short training only makes
weights grow (NOTES.md, 2026-11-29). Here a matrix has the variance 1 / fan-in (LeCun et al., "Efficient
BackProp", 1998); what a block adds to its residual path is smaller by the root of their number (GPT-2).

What a position of an image reads is of the size of the trunk's own embeddings, and its place somewhat larger.
Where codes stand out, the trunk learns first how codes follow one another, and only then, if ever, to which
places a caption's words belong.
"""

import math

import torch
from torch import Tensor, nn

from dualtoken.model.mllm.depth_heads import DepthHead
from dualtoken.model.mllm.modeling import DualTokenMllmModel, UnifiedModel

PLACE_SIZE = 1.7
"""Size of the vectors of a row and of a column, over that of the trunk's embeddings."""
MEASURED_POSITIONS = 1024
"""Positions with random codes that tell the size of what the projector writes."""

_TRUNK_RESIDUAL = ("o_proj", "down_proj")
_HEAD_RESIDUAL = ("attention_out", "mlp_down")
"""Names of the matrices that write to a residual path."""


@torch.no_grad()
def initialize_trunk(trunk: nn.Module, num_blocks: int) -> None:
    """Draw the weights of a trunk that starts from nothing; embeddings are tied to the text's classifier."""
    for module in trunk.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    _initialize_matrices(trunk, num_blocks, _TRUNK_RESIDUAL)


@torch.no_grad()
def initialize_visual_parts(model: UnifiedModel) -> None:
    """Draw the weights of projector, places and heads; the trunk and the code vectors stand already."""
    core = model.model
    embedding_size = _size(model.get_input_embeddings().get_parameter("weight"))
    _initialize_matrices(core.visual_projector)
    core.visual_projector.out.weight.mul_(embedding_size / _size(_projected(core)))
    if core.visual_positions is not None:
        for table in (core.visual_positions.rows, core.visual_positions.columns):
            nn.init.normal_(table.weight, std=PLACE_SIZE * embedding_size)
    for head in model.heads.values():
        assert isinstance(head, DepthHead)
        _initialize_matrices(head, len(head.blocks), _HEAD_RESIDUAL)


def _initialize_matrices(module: nn.Module, num_blocks: int = 1, residual: tuple[str, ...] = ()) -> None:
    """Draw the matrices of all linear layers; `residual` are names of those that write to a residual path."""
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        deviation = layer.in_features**-0.5
        if any(part in residual for part in name.split(".")):
            # Two of each block's layers add to the path.
            deviation /= math.sqrt(2 * num_blocks)
        nn.init.normal_(layer.weight, std=deviation)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _projected(core: DualTokenMllmModel) -> Tensor:
    """Return what the projector makes of random codes, (positions, channels)."""
    config = core.config
    codes: dict[str, Tensor] = {}
    for stream in config.inputs:
        shape = (MEASURED_POSITIONS, config.depth)
        codes[stream] = torch.randint(config.num_codes[stream], shape)
    sums = core.code_sums(codes)
    return core.visual_projector(torch.cat([sums[stream][:, -1] for stream in config.inputs], dim=1))


def _size(values: Tensor) -> float:
    """Return the root of the mean square."""
    return float(values.square().mean().sqrt())
