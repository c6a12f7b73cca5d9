"""Training of the tokenizer: losses, what each phase trains, GAN, LPIPS, and one step on one process or many.

May import every room of `model` but `convert`. It computes on the device that the model is on. The only files it reads
are LPIPS' weights, on local disk; it touches no network, and checkpoints are the caller's to write.
"""

from dualtoken.model.training.losses import Perceptual, TokenizerLoss, tokenizer_loss
from dualtoken.model.training.lpips import Lpips, load_lpips
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import TrainMetrics, train_step

__all__ = [
    "Lpips",
    "Perceptual",
    "TokenizerLoss",
    "TrainMetrics",
    "TrainState",
    "load_lpips",
    "tokenizer_loss",
    "train_step",
]
