"""Towers by name: shapes known before anything is built, taps, what runs after a block, and tokenizers on top."""

import itertools
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dualtoken.model.config.open_clip import OPENAI, input_statistics, model_config, model_names, tower_shape
from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import (
    DecoderConfig,
    NamedTower,
    TokenizerConfig,
    TowerConfig,
    default_pixel_block,
)
from dualtoken.model.config.training import LossConfig, Phase
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.trainable import freeze
from dualtoken.model.vision.towers import (
    build_tower_like,
    checkpoint_gradients,
    forward_from_block,
    forward_taps,
    num_prefix_tokens,
    tower_depth,
)
from tests.model.training.steps import training

from open_clip.pretrained import get_pretrained_cfg, list_pretrained, list_pretrained_tags_by_model  # isort: skip  (after model.vision.towers)

CLIP, PE = "ViT-S-32-alt", "PE-Core-T-16-384"
KINDS = {CLIP: 1, PE: 1, "ViTamin-S": 0, "EVA02-B-16": 1, "ViT-B-32-SigLIP2-256": 0}
"""Native, rotary with an attention pool, hybrid, rotary, and SigLIP: each with its number of prefix tokens."""


def known() -> list[str]:
    return [name for name in model_names() if refusal(name) is None]


def refusal(name: str) -> str | None:
    try:
        tower_shape(name)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("model", "approximate"),
    [
        ("ViT-SO400M-14-SigLIP-384", "none"),
        ("ViT-L-16-SigLIP-256", "none"),
        ("ViT-B-16-SigLIP2", "none"),
        ("ViT-SO400M-16-SigLIP2-256", "tanh"),
    ],
)
def test_a_siglip_tower_by_name_has_the_activation_that_the_readme_says(model: str, approximate: str) -> None:
    with torch.device("meta"):
        tower = build_tower_like(NamedTower(model=model), 256)
    values = torch.linspace(-3, 3, 99)
    found = [module(values) for name, module in tower.named_modules() if name.endswith("mlp.act")]
    assert found
    assert all(torch.equal(one, torch.nn.functional.gelu(values, approximate=approximate)) for one in found)


def tokenizer_config(model: str, **tower: object) -> TokenizerConfig:
    quantizer = QuantizerConfig(num_codes=32, depth=2, width=8)
    return TokenizerConfig.model_validate(
        {
            "image_size": 64,
            "tower": {"model": model, **tower},
            "pixel": quantizer,
            "semantic": quantizer,
            "decoder": DecoderConfig(
                latent_size=4,
                latent_width=16,
                width=8,
                multipliers=(1, 1, 2, 2, 2),
                num_res_blocks=1,
                norm_groups=4,
            ),
        }
    )


def test_every_tower_of_open_clip_is_known_or_refused_with_a_reason() -> None:
    refused = [message for name in model_names() if (message := refusal(name))]
    assert len(known()) > 100
    assert all(
        "no tokens" in text or "grid" in text or "positions" in text or "queries" in text for text in refused
    )


def test_the_shapes_are_those_of_the_towers_themselves() -> None:
    # One name per shape and family; building says whether it is the right shape.
    families = itertools.groupby(sorted(known(), key=family), key=family)
    for _, names in families:
        name = next(names)
        config = NamedTower(model=name)
        with torch.device("meta"):
            tower = build_tower_like(config, 4 * config.patch_size)
            pixels = torch.empty(1, 3, 4 * config.patch_size, 4 * config.patch_size)
            assert forward_taps(tower, pixels, [1])[1].tokens.shape == (1, 16, config.width), name


def family(name: str) -> tuple[str, ...]:
    vision = model_config(name)["vision_cfg"]
    timm_name = vision.get("timm_model_name", "native").rsplit("_", 1)[0]
    return (
        timm_name.replace("patch14", "patch16"),
        *map(str, tower_shape(name)[1:] if timm_name == "native" else ()),
    )


@pytest.mark.parametrize("depth_and_block", [(27, 6), (24, 6), (12, 3), (32, 8), (6, 2), (3, 2), (2, 1)])
def test_the_pixel_block_ends_the_first_quarter(depth_and_block: tuple[int, int]) -> None:
    assert default_pixel_block(depth_and_block[0]) == depth_and_block[1]


def test_blocks_follow_the_paper_s_rule_unless_given() -> None:
    config = tokenizer_config("ViT-SO400M-14-SigLIP2-378").model_dump()
    assert (config["pixel_block"], config["semantic_block"]) == (6, 26)
    again = TokenizerConfig.model_validate(config | {"pixel_block": 7})
    assert (again.pixel_block, again.semantic_block, again.tower.width) == (7, 26, 1152)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-SO400M-14-SigLIP2-387", "is unknown to open_clip: did you mean ViT-SO400M-14-SigLIP2-378?"),
        ("../secrets", "is unknown to open_clip: set one of open_clip.list_models"),
        ("RN50", "has a ResNet for a tower"),
        ("convnext_base", "its stages change the grid"),
        ("coca_ViT-B-32", "pools by CoCa's many queries"),
    ],
)
def test_a_tower_that_cannot_serve_is_refused_by_name(model: str, message: str) -> None:
    with pytest.raises(ValidationError, match=f"model={model} ") as error:
        NamedTower(model=model)
    assert message in str(error.value)


@pytest.mark.parametrize("model", KINDS)
def test_tapping_and_finishing_is_running_the_tower(model: str) -> None:
    torch.manual_seed(0)
    side = 2 * tower_shape(model).patch_size
    tower = build_tower_like(NamedTower(model=model), side).eval()
    images = torch.randn(2, 3, side, side)
    assert num_prefix_tokens(tower) == KINDS[model]
    with torch.no_grad():
        pooled, taps = tower(images), forward_taps(tower, images, [tower_depth(tower) - 1, 3])
        for block, (tokens, prefix) in taps.items():
            assert (tokens.shape[1], prefix.shape[1]) == (4, KINDS[model])
            torch.testing.assert_close(forward_from_block(tower, tokens, block, prefix), pooled)


def test_a_tap_runs_no_block_behind_it() -> None:
    tower = build_tower_like(NamedTower(model=CLIP), 64)
    ran = []
    for name, module in tower.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    forward_taps(tower, torch.zeros(1, 3, 64, 64), [2])
    assert "transformer.resblocks.1" in ran
    assert not [name for name in ran if name.startswith(("transformer.resblocks.2", "ln_post"))]


@pytest.mark.parametrize("model", KINDS)
def test_a_checkpointed_tower_keeps_less_and_has_the_same_gradients(model: str) -> None:
    torch.manual_seed(0)
    tower, images = build_tower_like(NamedTower(model=model), 64), torch.randn(2, 3, 64, 64)
    block, runs = tower_depth(tower) - 1, []
    for _ in range(2):
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            tokens = forward_taps(tower, images, [block])[block].tokens
        gradients = torch.autograd.grad(tokens.square().sum(), list(tower.parameters()), allow_unused=True)
        runs.append((kept.numbers, [tokens, *(gradient for gradient in gradients if gradient is not None)]))
        checkpoint_gradients(tower)
    (all_numbers, expected), (few_numbers, found) = runs
    assert few_numbers < all_numbers / 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


class Kept:
    """Counts the numbers that a graph keeps for its backward pass."""

    def __init__(self) -> None:
        self.numbers = 0

    def add(self, tensor: Tensor) -> Tensor:
        self.numbers += tensor.numel()
        return tensor


@pytest.mark.parametrize("model", [CLIP, PE])
def test_a_tokenizer_on_a_tower_with_a_class_token_works_from_codes_alone(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    grid = 64 // tower_shape(model).patch_size
    config = tokenizer_config(model)
    tokenizer, images = DualTokenizer(config).eval(), torch.rand(2, 3, 64, 64) * 2 - 1
    # torch has a faster path for attention without gradients, whose last bits differ.
    with torch.no_grad():
        output, codes = tokenizer(images), tokenizer.encode(images)
    assert codes.semantic.shape == (2, grid, grid, 2)
    assert torch.equal(tokenizer.semantic_features(codes.semantic).pooled, output.pooled)
    tokenizer(images).pooled.sum().backward()
    assert tokenizer.prefix is not None
    assert tokenizer.prefix.grad is not None
    tokenizer.save_pretrained(tmp_path)
    loaded = DualTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images).pooled, output.pooled)
    assert not [
        name for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()) if tensor.is_meta
    ]


@pytest.mark.parametrize("model", KINDS)
def test_every_phase_knows_the_parts_of_every_tower(model: str) -> None:
    with torch.device("meta"):
        tokenizer = DualTokenizer(config := tokenizer_config(model))
    expected: tuple[tuple[Phase, int], ...] = ((0, config.semantic_block), (1, 0), (2, config.pixel_block))
    for phase, lowest in expected:
        losses = LossConfig(reconstruction=0.0 if phase == 2 else 5.0, pooled=1.0)
        freeze(tokenizer, training(stage=phase, start_from="a trained tokenizer", losses=losses))
        trained = {name for name, parameter in tokenizer.named_parameters() if parameter.requires_grad}
        blocks = {
            name.split("blocks.")[1].split(".")[0]
            for name in trained
            if "blocks." in name and name.startswith("tower.")
        }
        if model != "ViTamin-S":  # its convolutional stages come before its blocks
            assert blocks == {str(block) for block in range(lowest, config.tower.depth)}
        assert ("prefix" in trained) == bool(KINDS[model]), (
            "what stands for the class token is trained with what is pooled"
        )
    freeze(tokenizer, training(losses=LossConfig(pooled=0.0)))
    assert not [
        name
        for name, parameter in tokenizer.named_parameters()
        if parameter.requires_grad and "ln_post" in name
    ]


def test_the_image_s_own_class_token_is_put_back_on_demand() -> None:
    torch.manual_seed(0)
    tokenizer, images = DualTokenizer(tokenizer_config(CLIP, prefix="tower")).eval(), torch.rand(1, 3, 64, 64)
    output = tokenizer(images)
    prefix = forward_taps(tokenizer.tower, seen_by(tokenizer, images), [11])[11].prefix
    assert torch.equal(output.pooled, forward_from_block(tokenizer.tower, output.semantic_tokens, 11, prefix))
    with pytest.raises(ValueError, match=r"tower\.prefix=tower: codes lack"):
        tokenizer.semantic_features(tokenizer.encode(images).semantic)


def test_the_statistics_are_those_of_some_published_weights() -> None:
    for name in {name for name, _ in list_pretrained()} & set(known()):
        published = [get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name)]
        pairs = [
            (tuple(one.get("mean") or OPENAI[0]), tuple(one.get("std") or OPENAI[1])) for one in published
        ]
        assert input_statistics(name) in pairs, name


def seen_by(tokenizer: DualTokenizer, images: Tensor) -> Tensor:
    seen = []
    first = "conv1" if hasattr(tokenizer.tower, "conv1") else "patch_embed.proj"
    hook = tokenizer.tower.get_submodule(first).register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0])
    )
    tokenizer.encode(images)
    hook.remove()
    return seen[0]


def test_each_tower_sees_images_normalised_as_its_weights_expect() -> None:
    levels = torch.rand(1, 3, 64, 64)
    clip = seen_by(DualTokenizer(tokenizer_config(CLIP)), levels * 2 - 1)
    torch.testing.assert_close(clip[:, 0], (levels[:, 0] - 0.48145466) / 0.26862954)
    own = seen_by(DualTokenizer(tokenizer_config(CLIP, mean=(0, 0, 0), std=(1, 1, 1))), levels * 2 - 1)
    torch.testing.assert_close(own, levels)
    siglip = DualTokenizer(tokenizer_config("ViT-B-32-SigLIP2-256"))
    assert siglip.input_scale is None
    assert torch.equal(seen_by(siglip, levels), levels)


def test_our_own_shape_is_read_as_before() -> None:
    tower = {"patch_size": 8, "width": 8, "depth": 3, "num_heads": 2, "mlp_width": 8}
    others = tokenizer_config(CLIP).model_dump(exclude={"pixel_block", "semantic_block"})
    config = TokenizerConfig.model_validate(others | {"tower": tower})
    assert isinstance(config.tower, TowerConfig)
    with pytest.raises(ValidationError, match=r"tower\.TowerConfig\.deph"):
        TokenizerConfig.model_validate(config.model_dump() | {"tower": {**tower, "deph": 3}})


def test_causality_of_the_widening_projections_is_a_choice_per_stream() -> None:
    both = DualTokenizer(tokenizer_config(CLIP))
    full = DualTokenizer(tokenizer_config(CLIP).model_copy(update={"causal_pixel": False}))
    assert [part.attn.causal for part in (both.expand_pixel, both.expand_semantic)] == [True, True]
    assert [part.attn.causal for part in (full.expand_pixel, full.expand_semantic)] == [False, True]
