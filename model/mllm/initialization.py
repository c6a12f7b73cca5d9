"""Fresh weights of a unified model, in proportions in which a short training learns.

transformers draws every matrix with a standard deviation of 0.02, made for trunks of thousands of channels.
At 128 channels that is a quarter of what keeps a signal's size, and much of a short training only makes
weights grow (NOTES.md, 2026-11-29). Here a matrix has the variance 1 / fan-in (LeCun et al., "Efficient
BackProp", 1998); what a block adds to its residual path is smaller by the root of their number (GPT-2).

What a position of an image reads is of the size of the trunk's own embeddings, and its place somewhat larger.
Where codes stand out, the trunk learns first how codes follow one another, and only then, if ever, to which
places a caption's words belong. Neighbouring places begin alike, and codes of like vectors may begin with
like classifiers: what is learnt of one is learnt of its neighbours then.

V positions of images, D depths, K codes, C channels of a code, H channels of the trunk, E of a head, P
places along a side.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from dualtoken.model.mllm.configuration import DualTokenMllmConfig
from dualtoken.model.mllm.depth_heads import DepthHead
from dualtoken.model.mllm.modeling import DualTokenMllmModel, UnifiedModel

PLACE_SIZE = 1.7
"""Size of the vectors of a row and of a column, over that of the trunk's embeddings."""
RANDOM_POSITIONS = 1024
"""Positions with random codes that tell the size of what the projector writes, where no codes are given."""

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
def initialize_visual_parts(
    model: UnifiedModel,
    codes: Mapping[str, Integer[Tensor, "V D"]] | None = None,
    *,
    code_likeness: float = 0.0,
) -> None:
    """Draw the weights of projector, places and heads; the trunk and the code vectors stand already.

    `codes` are those of some images, by stream, and random ones where there are none: what the projector
    writes for them gets the size of the trunk's embeddings. `code_likeness` is that of `MllmConfig`.
    """
    core = model.model
    embedding_size = _size(model.get_input_embeddings().get_parameter("weight"))
    _initialize_matrices(core.visual_projector)
    projected = _projected(core, codes or _random_codes(core.config))
    core.visual_projector.out.weight.mul_(embedding_size / _size(projected))
    if core.visual_positions is not None:
        for table in (core.visual_positions.rows, core.visual_positions.columns):
            initialize_places(table.weight, PLACE_SIZE * embedding_size)
    initialize_heads(model, code_likeness)


@torch.no_grad()
def initialize_places(table: Float[Tensor, "P H"], size: float) -> None:
    """Draw the vectors of the P places along a side so that neighbours begin alike, in this size.

    They are sums of cosines in random directions, each of an amplitude that falls as its frequency rises. So
    the halves of a side differ mostly in one direction, which attention finds sooner than P unlike ones
    (NOTES.md, 2026-11-30).
    """
    places = (torch.arange(len(table)) + 0.5) / len(table)
    frequencies = torch.arange(1, len(table))
    if not len(frequencies):
        # A side of one place has nothing to tell.
        nn.init.zeros_(table)
        return
    cosines = torch.cos(math.pi * places[:, None] * frequencies) / frequencies
    vectors = cosines @ torch.randn(len(frequencies), table.shape[1])
    table.copy_(vectors * (size / _size(vectors)))


@torch.no_grad()
def initialize_heads(model: UnifiedModel, code_likeness: float = 0.0) -> None:
    """Draw the weights of the heads for the code vectors that stand in the model."""
    for stream in model.config.targets:
        head = model.head(stream)
        _initialize_matrices(head, len(head.blocks), _HEAD_RESIDUAL)
        if code_likeness:
            _liken_classifiers(head, model.model.code_vectors(stream).table, code_likeness)


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


def _liken_classifiers(head: DepthHead, table: Float[Tensor, "G K C"], likeness: float) -> None:
    """Let the classifiers of codes resemble each other as the codes' vectors do; their size stays."""
    for place, weight in enumerate(head.classifier_weights()):
        vectors = table[place if len(table) > 1 else 0]
        centred = vectors - vectors.mean(dim=0)
        projected = centred @ torch.randn(vectors.shape[1], weight.shape[1])
        size = _size(projected)
        if size:
            like_vectors = projected * (_size(weight) / size)
            weight.mul_(math.sqrt(1 - likeness)).add_(like_vectors, alpha=math.sqrt(likeness))


def _random_codes(config: DualTokenMllmConfig) -> dict[str, Int[Tensor, "V D"]]:
    codes: dict[str, Tensor] = {}
    for stream in config.inputs:
        codes[stream] = torch.randint(config.num_codes[stream], (RANDOM_POSITIONS, config.depth))
    return codes


def _projected(core: DualTokenMllmModel, codes: Mapping[str, Integer[Tensor, "V D"]]) -> Float[Tensor, "V H"]:
    """Return what the projector makes of codes."""
    sums = core.code_sums({stream: codes[stream] for stream in core.config.inputs})
    return core.visual_projector(torch.cat([of_codes[:, -1] for of_codes in sums.values()], dim=1))


def _size(values: Tensor) -> float:
    """Return the root of the mean square."""
    return float(values.square().mean().sqrt())
