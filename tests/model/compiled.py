"""Compiles encoding, and a training step's forward, loss and backward, as one graph each; test_compile.py runs it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[2])]

from training_steps import Settings, batch, fresh_state  # noqa: E402

from model.adversary import Adversary  # noqa: E402
from model.config import DecoderConfig, QuantizerConfig, ShortcutConfig, TokenizerConfig, TowerConfig  # noqa: E402
from model.lpips import Lpips  # noqa: E402
from model.training import forward_losses  # noqa: E402
from model.training_config import GanConfig, LpipsConfig  # noqa: E402

QUANTIZER = QuantizerConfig(num_codes=32, depth=3, width=8)
CONFIG = TokenizerConfig(
    image_size=16,
    tower=TowerConfig(patch_size=5, width=32, depth=4, num_heads=2, mlp_width=48),
    pixel_block=2,
    semantic_block=3,
    shortcut=ShortcutConfig(block=1),
    pixel=QUANTIZER,
    semantic=QUANTIZER,
    decoder=DecoderConfig(latent_size=4, latent_width=16, width=8, multipliers=(1, 2, 2), num_res_blocks=1, norm_groups=4),
)


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without a C compiler; a graph break is an error."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def encode() -> None:
    tokenizer, (images, _) = fresh_state(CONFIG).tokenizer, batch(0, CONFIG)
    expected, found = tokenizer.encode(images), whole(tokenizer.encode)(images)
    assert torch.equal(found.pixel, expected.pixel)
    assert torch.equal(found.semantic, expected.semantic)
    print("encode")


def step(precision: Literal["float32", "bfloat16"], perceptual: Lpips) -> None:
    losses, gradients = [], []
    for compiled in (True, False):
        state = fresh_state(CONFIG, Settings(precision=precision, perceptual=LpipsConfig(kind="lpips")), perceptual)

        def loss(*inputs: Any) -> torch.Tensor:
            return forward_losses(state, *inputs)[1].total  # noqa: B023  (called in this turn)

        total = (whole(loss) if compiled else loss)(*batch(0, CONFIG))
        total.backward()
        losses.append(total.item())
        gradients.append([parameter.grad for parameter in state.tokenizer.parameters()])
    assert abs(losses[0] / losses[1] - 1) < (1e-5 if precision == "float32" else 1e-2)
    assert all(gradient is not None for gradient in gradients[0])
    if precision == "float32":
        norms = [nn.utils.get_total_norm(part) for part in gradients]
        assert abs(norms[0] / norms[1] - 1) < 1e-3
    print(precision)


def gan() -> None:
    adversary = Adversary(GanConfig(width=32), steps=9, seed=0, device=torch.device("cpu"))
    images, pictures = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    for loss, inputs in ((adversary.generator_loss, (pictures,)), (adversary.discriminator_loss, (images, pictures))):
        torch.testing.assert_close(whole(loss)(*inputs), loss(*inputs))
    print("gan")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(3)
    network = Lpips()
    for head in network.heads:
        nn.init.uniform_(head)
    encode()
    step("float32", network)
    step("bfloat16", network)
    gan()
