"""Fresh weights keep the size of signals, and let neither codes nor text drown the other."""

import math

import pytest
import torch
from torch import Tensor, nn

from dualtoken.model.config.mllm import DepthHeadConfig, TrunkShape
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.initialization import PLACE_SIZE, initialize_visual_parts
from dualtoken.model.randomness import seeded_weights
from tests.helpers.tiny_mllm import tiny_config, tiny_model

WIDTHS = [32, 128]
DEPTH = 2
HEAD_DEPTH = 3


def fresh_model(width: int) -> DualTokenForConditionalGeneration:
    trunk = TrunkShape(width=width, depth=DEPTH, num_heads=2, mlp_width=3 * width)
    head = DepthHeadConfig(width=2 * width, num_layers=HEAD_DEPTH, num_heads=2)
    return tiny_model(tiny_config(trunk=trunk, head=head))


def size(values: Tensor) -> float:
    return float(values.detach().square().mean().sqrt())


def deviations(module: nn.Module) -> dict[str, float]:
    """Return the size of each linear layer's weights over the root of its inputs' number."""
    return {
        name: size(layer.weight) * layer.in_features**0.5
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.numel() > 500
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_matrices_have_the_variance_of_their_inputs_number(width: int) -> None:
    model = fresh_model(width)
    of_trunk = deviations(model.model.language_model)
    of_heads = deviations(model.heads)
    assert of_trunk
    assert of_heads
    for name, deviation in of_trunk.items():
        is_residual = name.endswith(("o_proj", "down_proj"))
        expected = 1 / math.sqrt(2 * DEPTH) if is_residual else 1
        assert deviation == pytest.approx(expected, rel=0.12), name
    for name, deviation in of_heads.items():
        is_residual = "attention_out" in name or "mlp_down" in name
        expected = 1 / math.sqrt(2 * HEAD_DEPTH) if is_residual else 1
        assert deviation == pytest.approx(expected, rel=0.12), name


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_images_are_of_the_size_of_words_whatever_that_of_code_vectors(scale: float) -> None:
    model = fresh_model(32)
    core = model.model
    for stream in model.config.inputs:
        core.code_vectors(stream).table.mul_(scale)
    with seeded_weights(3):
        initialize_visual_parts(model)
    words = size(model.get_input_embeddings().get_parameter("weight"))
    generator = torch.Generator().manual_seed(0)
    codes = {
        stream: torch.randint(model.config.num_codes[stream], (512, model.config.depth), generator=generator)
        for stream in model.config.inputs
    }
    sums = core.code_sums(codes)
    vectors = torch.cat([sums[stream][:, -1] for stream in model.config.inputs], dim=1)
    assert size(core.visual_projector(vectors)) == pytest.approx(words, rel=0.1)
    assert core.visual_positions is not None
    assert size(core.visual_positions.rows.weight) == pytest.approx(PLACE_SIZE * words, rel=0.3)


def test_fresh_weights_depend_on_their_seed_alone() -> None:
    first = fresh_model(32).state_dict()
    torch.manual_seed(5)
    second = fresh_model(32).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
