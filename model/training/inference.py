"""What a tokenizer under training gives, without a step: for its reconstructions, codes and held-out losses.

B images of S by S pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.state import TrainState


@contextmanager
def inference(state: TrainState) -> Iterator[DualTokenizer]:
    """Give the block the model that the steps so far make, without gradients, in the training's precision.

    It runs as it stands, without torch.compile: other batches would compile it anew. A sharded model is to be
    called by all ranks.
    """
    tokenizer = state.result
    was_training = tokenizer.training
    tokenizer.eval()
    try:
        with torch.no_grad(), state.autocast(), _uncompiled(state):
            yield tokenizer
    finally:
        tokenizer.train(was_training)


@contextmanager
def _uncompiled(state: TrainState) -> Iterator[None]:
    if not state.config.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
