"""What each phase of the tokenizer's training trains (the released DualToken code's phases 0, 1 and 2).

Phase 0 trains what the tower lacks beside a tower that is frozen up to the semantic block. Phase 1 trains
everything. Phase 2 refines the semantic stream alone. The released phase 2 freezes blocks up to the
shortcut's only: blocks between it and the pixel block drift under a frozen pixel path, and the pixel codes of
every image move. Ours freezes all blocks that pixel tokens come from: after phase 2 the pixel codes and
pictures are what they were, to the bit.

A recipe sets the phase by its key `train.stage`.
"""

import re
from typing import NamedTuple

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.config.training import TrainingConfig
from dualtoken.model.optimizer import freeze_groups
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

_BLOCK = re.compile(r"tower\.(?:blocks|transformer\.resblocks)\.(\d+)\.")
"""Parameter of a block, with the block's index, 0 the first."""
_TOWER_END = ("tower.norm.", "tower.attn_pool.", "tower.fc_norm.", "tower.head.", "tower.ln_post.")
"""Parameters of the tower behind its last block."""
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
    """The streams that a run trains: those that some loss is for."""

    pixel: bool
    """Whether pixel tokens are quantised and decoded."""
    semantic: bool
    """Whether semantic tokens are quantised and run through the rest of the tower."""


def streams_in_training(config: TrainingConfig) -> Streams:
    """Return the streams that have a loss; the other one is not run, and its codebook stays."""
    refines_meaning = config.stage == 2
    return Streams(pixel=config.trains_pictures and not refines_meaning, semantic=config.trains_meaning)


def freeze(tokenizer: DualTokenizer, config: TrainingConfig) -> None:
    """Let only those parameters have gradients that the phase trains, and that no group freezes.

    `TrainState` calls it, before it wraps the model. Raises ValueError if nothing of this tokenizer is left
    to train, if the phase cannot keep its streams apart, and for a group that no parameter belongs to.
    """
    if config.stage == 2 and tokenizer.config.shared_codebook:
        raise ValueError(
            "train.stage=2 leaves the pixel stream as it is, but shared_codebook=true has one for both: "
            "set another stage"
        )
    trained = [is_trained(name, tokenizer.config, config) for name, _ in tokenizer.named_parameters()]
    if not any(trained):
        raise ValueError("train.losses has no weight above 0: set one, there is nothing to train")
    for parameter, trains in zip(tokenizer.parameters(), trained, strict=True):
        parameter.requires_grad_(trains)
    freeze_groups(tokenizer, config.parameters)


def is_trained(name: str, tokenizer_config: TokenizerConfig, config: TrainingConfig) -> bool:
    """Tell whether a parameter of a DualTokenizer moves in this training."""
    streams = streams_in_training(config)
    if name.startswith("tower."):
        return not config.freeze_tower and _tower_trains(name, tokenizer_config, config, streams)
    if name == "prefix":  # stands for a class token, from the semantic block on
        return config.losses.pooled > 0
    if tokenizer_config.shared_codebook and name.startswith("reduce_semantic."):
        return any(streams)
    if name.startswith(_PIXEL_PATH):
        return streams.pixel
    assert name.startswith(_SEMANTIC_PATH), f"{name} belongs to no stream"
    return streams.semantic


def _tower_trains(
    name: str, tokenizer_config: TokenizerConfig, config: TrainingConfig, streams: Streams
) -> bool:
    pools = config.losses.pooled > 0
    first = _num_frozen_blocks(tokenizer_config, config)
    end = _num_reached_blocks(tokenizer_config, streams, pools=pools)
    block = _BLOCK.match(name)
    if block:
        return first <= int(block[1]) < end
    if name.startswith(_TOWER_END):
        return pools
    # Patches and positions, which come before the first block.
    return first == 0 < end


def _num_frozen_blocks(tokenizer_config: TokenizerConfig, config: TrainingConfig) -> int:
    """Return how many blocks, from the first on, the phase keeps as they are."""
    if config.stage == 0:
        return tokenizer_config.semantic_block
    if config.stage == 1:
        return 0
    return _pixel_block(tokenizer_config)


def _num_reached_blocks(tokenizer_config: TokenizerConfig, streams: Streams, *, pools: bool) -> int:
    """Return how many blocks, from the first on, some loss needs: those beyond would have no gradient."""
    if pools:
        return tokenizer_config.tower.depth
    if streams.semantic:
        return tokenizer_config.semantic_block
    if streams.pixel:
        return _pixel_block(tokenizer_config)
    return 0


def _pixel_block(tokenizer_config: TokenizerConfig) -> int:
    """Return the last block that pixel tokens come from; 0 where they do not come from the tower."""
    return 0 if tokenizer_config.pixel_encoder else tokenizer_config.pixel_block
