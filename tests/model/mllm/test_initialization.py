"""Fresh weights keep the size of signals, and let neither codes nor text drown the other."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualtoken.model.config.mllm import DepthHeadConfig, TrunkShape
from dualtoken.model.mllm.build import build_mllm
from dualtoken.model.mllm.code_vectors import CodeVectors
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.initialization import (
    PLACE_SIZE,
    initialize_heads,
    initialize_places,
    initialize_visual_parts,
)
from dualtoken.model.mllm.modeling import GridPositions
from dualtoken.model.randomness import seeded_weights
from tests.helpers.tiny_mllm import TEXT, VISION_SHA256, tiny_config, tiny_model, tiny_vision

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


def test_places_begin_like_their_neighbours_and_unlike_the_other_half() -> None:
    with seeded_weights(4):
        places = GridPositions(8, 16, 128)
        initialize_places(places.rows.weight, 0.3)
        initialize_places(places.columns.weight, 0.3)
    for table in (places.rows.weight, places.columns.weight):
        assert size(table) == pytest.approx(0.3)
        centred = table.detach() - table.detach().mean(dim=0)
        alike = F.cosine_similarity(centred[:-1], centred[1:])
        halves = F.cosine_similarity(centred, centred.flip(0))
        assert alike.min() > 0.3
        assert halves.mean() < -0.3
        assert bool((alike.mean() > halves).all())


def test_a_side_of_one_place_tells_nothing() -> None:
    places = GridPositions(1, 4, 16)
    initialize_places(places.rows.weight, 0.3)
    assert bool((places.rows.weight == 0).all())


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_codes_of_like_vectors_begin_with_like_classifiers(num_codebooks: int) -> None:
    model = fresh_model(128)
    generator = torch.Generator().manual_seed(0)
    for stream in model.config.targets:
        vectors = CodeVectors(num_codebooks, model.config.num_codes[stream], 40)
        vectors.table.copy_(torch.randn(vectors.table.shape, generator=generator) + 3)
        model.model.codebooks[stream] = vectors
    initialize_heads(model, 0.5)
    for stream in model.config.targets:
        tables = model.model.code_vectors(stream).table
        for depth, weight in enumerate(model.head(stream).classifier_weights()):
            assert size(weight) == pytest.approx(weight.shape[1] ** -0.5, rel=0.1)
            own = tables[depth if num_codebooks > 1 else 0]
            assert likeness(own, weight) > 0.6
            if num_codebooks > 1:
                assert abs(likeness(tables[depth - 1], weight)) < 0.3


def likeness(vectors: Tensor, weights: Tensor) -> float:
    """Return the correlation of two sets of rows' products with each other, each row with all others."""
    centred = [rows.detach() - rows.detach().mean(dim=0) for rows in (vectors, weights)]
    above = torch.ones(len(vectors), len(vectors)).triu(1).bool()
    return float(torch.stack([(rows @ rows.T)[above] for rows in centred]).corrcoef()[0, 1])


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_code_vectors_of_given_images_are_standardized(num_codebooks: int) -> None:
    vectors = CodeVectors(num_codebooks, 40, 5)
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.01, 1.0, 30.0, 1.0, 0.0])
    table = torch.randn(vectors.table.shape, generator=generator) * scale
    vectors.table.copy_(table + torch.tensor([0.0, 7.0, 0.0, -2.0, 3.0]))
    codes = torch.randint(40, (600, 3), generator=generator)
    vectors.standardize(codes)
    sums = vectors(codes)[:, -1]
    torch.testing.assert_close(sums.mean(dim=0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(sums.std(dim=0), torch.tensor([1.0, 1, 1, 1, 0]), atol=1e-4, rtol=0)


def test_a_model_is_made_for_the_codes_that_it_is_given() -> None:
    vision = tiny_vision()
    # Few codes of many, as real images have.
    codes = {stream: torch.arange(300).view(100, 3) % 4 for stream in ("semantic", "pixel")}
    model = build_mllm(tiny_config(), vision, VISION_SHA256, TEXT, codes=codes)
    core = model.model
    sums = core.code_sums(codes)
    for of_codes in sums.values():
        torch.testing.assert_close(
            of_codes[:, -1].mean(dim=0), torch.zeros(of_codes.shape[-1]), atol=1e-4, rtol=0
        )
    vectors = torch.cat([of_codes[:, -1] for of_codes in sums.values()], dim=1)
    words = size(model.get_input_embeddings().get_parameter("weight"))
    assert size(core.visual_projector(vectors)) == pytest.approx(words, rel=1e-4)


def test_fresh_weights_depend_on_their_seed_alone() -> None:
    first = fresh_model(32).state_dict()
    torch.manual_seed(5)
    second = fresh_model(32).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
