"""Compiles encoding, and a training step's forward, loss and backward, as one graph each, but among workers; test_compile.py runs it."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path[:0] = [str(Path(__file__).parents[3])]

import torch._dynamo  # noqa: E402

from dualtoken.model.config.quantizer import QuantizerConfig, ScalarQuantizerConfig, SplitQuantizerConfig  # noqa: E402
from dualtoken.model.config.tokenizer import DecoderConfig, ShortcutConfig, TokenizerConfig, TowerConfig  # noqa: E402
from dualtoken.model.config.training import GanConfig, LpipsConfig  # noqa: E402
from dualtoken.model.quantize import build_quantizer  # noqa: E402
from dualtoken.model.training import state as train_state  # noqa: E402
from dualtoken.model.training.lpips import Lpips  # noqa: E402
from dualtoken.model.training.state import TrainState  # noqa: E402
from dualtoken.model.training.step import forward_losses  # noqa: E402
from dualtoken.model.vision.towers import checkpoint_gradients  # noqa: E402
from tests.model.training.steps import assert_same_steps, batch, fresh_state, fresh_tokenizer, run, training  # noqa: E402

QUANTIZER = QuantizerConfig(num_codes=32, depth=3, width=8)
CONFIG = TokenizerConfig(
    image_size=16,
    tower=TowerConfig(patch_size=5, width=32, depth=4, num_heads=2, mlp_width=48),
    pixel_block=2,
    semantic_block=3,
    shortcut=ShortcutConfig(block=1),
    pixel=QUANTIZER,
    semantic=QUANTIZER,
    decoder=DecoderConfig(
        latent_size=4, latent_width=16, width=8, multipliers=(1, 2, 2), num_res_blocks=1, norm_groups=4
    ),
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


def autocast(perceptual: Lpips) -> None:
    losses = []
    for compiled in (True, False):
        state = fresh_state(
            CONFIG, training(precision="bfloat16", perceptual=LpipsConfig(kind="lpips")), perceptual
        )

        def loss(*inputs: Any) -> torch.Tensor:
            return forward_losses(state, *inputs)[1].total  # noqa: B023  (called in this turn)

        total = (whole(loss) if compiled else loss)(*batch(0, CONFIG))
        total.backward()
        losses.append(total.item())
        assert all(parameter.grad is not None for parameter in state.tokenizer.parameters())
    assert abs(losses[0] / losses[1] - 1) < 1e-2
    print("bfloat16")


def quantisers() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 10, 8)
    for config in (
        QuantizerConfig(num_codes=40, depth=4, width=8, shared=False, beam=3),
        SplitQuantizerConfig(kind="split", num_codes=40, depth=4, width=8),
        ScalarQuantizerConfig(kind="scalar", levels=(8, 5), depth=4),
    ):
        quantizer, found, expected = (
            build_quantizer(config),
            tokens.clone().requires_grad_(),
            tokens.clone().requires_grad_(),
        )
        ours, theirs = whole(quantizer.forward)(found), quantizer(expected)
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(whole(quantizer.encode)(tokens), quantizer.encode(tokens))
        for one in (ours, theirs):
            (one.vectors.square().sum() + one.commitment).backward()
        assert found.grad is not None
        torch.testing.assert_close(found.grad, expected.grad)
        print(config.kind)


def switch(perceptual: Lpips) -> None:
    """The setting compiles a step once, LPIPS, GAN, a checkpointed tower and all, and its steps are those of a run without it."""
    train_state.COMPILER = "aot_eager"
    plain = training(
        perceptual=LpipsConfig(kind="lpips"), gan=GanConfig(width=32, learning_rate=1e-3), learning_rate=1e-4
    )
    expected, found = (
        fresh_state(CONFIG, settings, perceptual)
        for settings in (plain, plain.model_copy(update={"compile": True}))
    )
    checkpoint_gradients(found.tokenizer.tower)
    run(found, 1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(found, 2)
    run(expected, 3)
    assert_same_steps(found, expected)
    print("train.compile")


def wrapped() -> None:
    """One worker of several compiles the parts of a step, and its steps are those of a run without it."""
    settings = training(learning_rate=1e-4)
    with tempfile.NamedTemporaryFile() as meeting:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting.name}", rank=0, world_size=1
        )
        try:
            expected, found = (
                TrainState(
                    DistributedDataParallel(fresh_tokenizer(CONFIG, one), forward_sync_buffers=False), one
                )
                for one in (settings, settings.model_copy(update={"compile": True}))
            )
            for state in (expected, found):
                run(state, 2)
            assert_same_steps(found, expected)
        finally:
            torch.distributed.destroy_process_group()
    print("workers")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(3)
    network = Lpips()
    for head in network.heads:
        nn.init.uniform_(head)
    encode()
    autocast(network)
    quantisers()
    torch._dynamo.utils.counters.clear()
    switch(network)
    wrapped()
