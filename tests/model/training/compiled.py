"""Compiles encoding, and the parts of a training step, each as one graph, or a few among workers.

test_compile.py runs it.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[3])]

import torch._dynamo  # noqa: E402

from dualtoken.model.config.quantizer import (  # noqa: E402
    QuantizerConfig,
    ScalarQuantizerConfig,
    SplitQuantizerConfig,
)
from dualtoken.model.config.training import GanConfig, LpipsConfig  # noqa: E402
from dualtoken.model.quantize import build_quantizer  # noqa: E402
from dualtoken.model.training import state as training_state  # noqa: E402
from dualtoken.model.training.lpips import Lpips  # noqa: E402
from dualtoken.model.training.step import forward_losses  # noqa: E402
from dualtoken.model.vision.towers import checkpoint_gradients  # noqa: E402
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config  # noqa: E402
from tests.model.training.steps import (  # noqa: E402
    assert_same_steps,
    batch,
    data_parallel,
    fresh_state,
    run,
    training,
)

CONFIG = tiny_tokenizer_config()


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without a C compiler; a graph break is an error."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def encode() -> None:
    tokenizer = fresh_state(CONFIG).tokenizer
    images, _ = batch(0, CONFIG)
    expected = tokenizer.encode(images)
    found = whole(tokenizer.encode)(images)
    assert torch.equal(found.pixel, expected.pixel)
    assert torch.equal(found.semantic, expected.semantic)
    print("encode")


def autocast(perceptual: Lpips) -> None:
    losses = []
    for compiled in (True, False):
        config = training(precision="bfloat16", perceptual=LpipsConfig(kind="lpips"))
        state = fresh_state(CONFIG, config, perceptual)

        def loss(*inputs: Any) -> torch.Tensor:
            return forward_losses(state, *inputs)[1].total  # noqa: B023  (called in this turn)

        function = whole(loss) if compiled else loss
        total = function(*batch(0, CONFIG))
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
        quantizer = build_quantizer(config)
        found_tokens = tokens.clone().requires_grad_()
        expected_tokens = tokens.clone().requires_grad_()
        found = whole(quantizer.forward)(found_tokens)
        expected = quantizer(expected_tokens)
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(whole(quantizer.encode)(tokens), quantizer.encode(tokens))
        for quantized in (found, expected):
            (quantized.vectors.square().sum() + quantized.commitment).backward()
        assert found_tokens.grad is not None
        torch.testing.assert_close(found_tokens.grad, expected_tokens.grad)
        print(config.kind)


def switch(perceptual: Lpips) -> None:
    """`compile` compiles a step once, LPIPS, GAN and a checkpointed tower too; each step stays the same.

    Each step starts from the same state. Left to themselves, two runs drift apart from rounding alone:
    where a gradient is nearly 0, its sign depends on the order of sums, and Adam's first step is that sign.
    """
    training_state.COMPILER = "aot_eager"
    plain = training(
        perceptual=LpipsConfig(kind="lpips"), gan=GanConfig(width=32, learning_rate=1e-3), learning_rate=1e-4
    )
    expected = fresh_state(CONFIG, plain, perceptual)
    found = fresh_state(CONFIG, plain.model_copy(update={"compile": True}), perceptual)
    checkpoint_gradients(found.tokenizer.tower)
    for step in range(3):
        found.load_state_dict(copy.deepcopy(expected.state_dict()))  # an optimizer keeps the tensors it loads
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            run(found, 1)
        run(expected, 1)
        assert_same_steps(found, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    print("train.compile")


def by_blocks() -> None:
    """`compile: blocks` compiles each kind of block, and gives the eager step."""
    gan = GanConfig(width=32, learning_rate=1e-3)
    plain = training(gan=gan, learning_rate=1e-4)
    expected = fresh_state(CONFIG, plain)
    found = fresh_state(CONFIG, plain.model_copy(update={"compile": "blocks"}))
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert found.tokenizer.state_dict().keys() == expected.tokenizer.state_dict().keys()
    torch._dynamo.utils.counters.clear()
    run(found, 1)
    run(expected, 1)
    assert_same_steps(found, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 3
    print("blocks")


def passes() -> None:
    """A step goes back through each network once, compiled or not."""
    counts: list[dict[str, int]] = []
    for compile_step in (False, True):
        config = training(gan=GanConfig(width=32), compile=compile_step, checkpoint_tower=False)
        state = fresh_state(CONFIG, config)
        run(state, 1)
        with torch.profiler.profile() as profile:
            run(state, 1)
        counted = {event.key: event.count for event in profile.key_averages()}
        counts.append({name: counted[name] for name in BACKWARD})
    eager, compiled = counts
    assert compiled == eager, (compiled, eager)
    state = fresh_state(CONFIG)
    tokenizer_norms = [module for module in state.tokenizer.modules() if isinstance(module, nn.LayerNorm)]
    assert eager["aten::native_layer_norm_backward"] == len(tokenizer_norms), eager
    print("passes")


BACKWARD = (
    "aten::native_layer_norm_backward",
    "aten::native_group_norm_backward",
    "aten::convolution_backward",
)


def wrapped() -> None:
    """One worker of several compiles the parts of a step, and its steps are those of a run without it."""
    plain = training(learning_rate=1e-4)
    with tempfile.NamedTemporaryFile() as meeting:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting.name}", rank=0, world_size=1
        )
        try:
            expected = fresh_state(CONFIG, plain, wrap=data_parallel)
            found = fresh_state(CONFIG, plain.model_copy(update={"compile": True}), wrap=data_parallel)
            run(expected, 2)
            run(found, 2)
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
    passes()
    by_blocks()
    wrapped()
