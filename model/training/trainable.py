"""What each stage of the tokenizer's training trains (the released DualToken code's stages 0, 1 and 2).

Stage 0 trains what the tower lacks beside a tower that is frozen up to the semantic block. Stage 1 trains everything.
Stage 2 refines the semantic stream alone. The released one freezes blocks up to the shortcut's only, so that blocks
between it and the pixel block drift under a frozen pixel path, and it moves the pixel codes of every image; ours freezes
all blocks that pixel tokens come from: after stage 2 the pixel codes and pictures are what they were, to the bit.
"""

import re
from typing import NamedTuple

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.config.training import TrainingConfig
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

_BLOCK = re.compile(r"tower\.(?:blocks|transformer\.resblocks)\.(\d+)\.")
_TOWER_END = ("tower.norm.", "tower.attn_pool.", "tower.fc_norm.", "tower.head.", "tower.ln_post.")
_PIXEL_PATH = (
    "pixel_encoder.",
    "reduce_pixel.",
    "reduce_shortcut.",
    "expand_pixel.",
    "post_quant.",
    "decoder.",
)
_SEMANTIC_PATH = ("reduce_semantic.", "expand_semantic.")


class Streams(NamedTuple):
    """Which streams a run trains: those that some loss is for."""

    pixel: bool
    semantic: bool


def streams_in_training(settings: TrainingConfig) -> Streams:
    """Return the streams that have a loss; the other one is not run, and its codebook stays."""
    return Streams(
        pixel=settings.stage != 2 and settings.trains_pictures,
        semantic=settings.trains_meaning,
    )


def freeze(tokenizer: DualTokenizer, settings: TrainingConfig) -> None:
    """Let only those parameters have gradients that the stage trains; call it before any wrapping.

    Raises ValueError if the stage trains nothing of this tokenizer, or cannot keep its streams apart.
    """
    if settings.stage == 2 and tokenizer.config.shared_codebook:
        raise ValueError(
            "train.stage=2 leaves the pixel stream as it is, but shared_codebook=true has one for both: set another stage"
        )
    trained = [is_trained(name, tokenizer.config, settings) for name, _ in tokenizer.named_parameters()]
    if not any(trained):
        raise ValueError("train.losses has no weight above 0: set one, there is nothing to train")
    for parameter, trains in zip(tokenizer.parameters(), trained, strict=True):
        parameter.requires_grad_(trains)


def is_trained(name: str, config: TokenizerConfig, settings: TrainingConfig) -> bool:
    """Tell whether a parameter of a DualTokenizer moves in these settings."""
    streams = streams_in_training(settings)
    if name.startswith("tower."):
        return not settings.freeze_tower and _tower_trains(name, config, settings, streams)
    if name == "prefix":  # stands for a class token, from the semantic block on
        return settings.losses.pooled > 0
    if config.shared_codebook and name.startswith("reduce_semantic."):
        return any(streams)
    if name.startswith(_PIXEL_PATH):
        return streams.pixel
    assert name.startswith(_SEMANTIC_PATH), f"{name} belongs to no stream"
    return streams.semantic


def _tower_trains(name: str, config: TokenizerConfig, settings: TrainingConfig, streams: Streams) -> bool:
    pixel_block = 0 if config.pixel_encoder else config.pixel_block
    lowest = {0: config.semantic_block, 1: 0, 2: pixel_block}[settings.stage]
    # What lies beyond the last token that some loss needs would have no gradient.
    reached = (
        [pixel_block] * streams.pixel
        + [config.semantic_block] * streams.semantic
        + [config.tower.depth] * (settings.losses.pooled > 0)
    )
    highest = max(reached, default=0)
    if match := _BLOCK.match(name):
        return lowest <= int(match[1]) < highest
    if name.startswith(_TOWER_END):
        return settings.losses.pooled > 0
    return lowest == 0 < highest  # patches and positions
