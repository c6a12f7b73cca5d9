"""The whole tokenizer: what runs, what depends on what, and what a folder keeps."""

import json
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import DecoderConfig, ShortcutConfig, TokenizerConfig, TowerConfig
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.tokenizer.projection import AttnProjection
from dualtoken.model.vision.towers import build_tower_like
from dualtoken.model.vision.transform import Transform
from tests.model.training.steps import snapshot


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    if first.keys() != second.keys():
        return False
    return all(torch.equal(first[name], second[name]) for name in first)


def test_codes_do_not_depend_on_the_batch(tokenizer: DualTokenizer, images: Tensor) -> None:
    together = tokenizer.encode(images)
    for index in range(len(images)):
        alone = tokenizer.encode(images[index : index + 1])
        assert torch.equal(alone.pixel[0], together.pixel[index])
        assert torch.equal(alone.semantic[0], together.semantic[index])


def test_encode_gives_the_codes_of_forward(tokenizer: DualTokenizer, images: Tensor) -> None:
    output = tokenizer(images)
    codes = tokenizer.encode(images)
    assert codes.pixel.shape == codes.semantic.shape == (4, 3, 3, 3)
    assert torch.equal(codes.pixel.flatten(1, 2), output.pixel.ids)
    assert torch.equal(codes.semantic.flatten(1, 2), output.semantic.ids)


def test_codes_say_all_that_forward_says(tokenizer: DualTokenizer, images: Tensor) -> None:
    output = tokenizer(images)
    codes = tokenizer.encode(images)
    features = tokenizer.semantic_features(codes.semantic)
    assert torch.equal(tokenizer.decode(codes.pixel), output.reconstruction)
    assert torch.equal(features.tokens, output.semantic_tokens)
    assert torch.equal(features.pooled, output.pooled)


def test_encode_runs_neither_the_last_block_nor_the_decoder(tokenizer: DualTokenizer, images: Tensor) -> None:
    ran = []
    for name, module in tokenizer.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    tokenizer.encode(images)
    assert {"tower.blocks.0", "tower.blocks.2"} <= set(ran)
    idle = (
        "tower.blocks.3",
        "tower.norm.",
        "tower.attn_pool",
        "decoder",
        "post_quant",
        "expand_pixel",
        "expand_semantic",
    )
    assert not [name for name in ran if f"{name}.".startswith(idle)]


def test_streams_leave_the_tower_after_their_own_block(tokenizer: DualTokenizer, images: Tensor) -> None:
    before = tokenizer.encode(images)
    with torch.no_grad():
        tokenizer.tower.get_parameter("blocks.2.mlp.fc2.bias").add_(torch.randn(32) * 100)
    after = tokenizer.encode(images)
    assert torch.equal(before.pixel, after.pixel)
    assert not torch.equal(before.semantic, after.semantic)


def test_forward_changes_no_state_in_training(tokenizer: DualTokenizer, images: Tensor) -> None:
    before = snapshot(tokenizer)
    tokenizer.train()(images)
    assert same(before, tokenizer.state_dict())


def test_every_parameter_gets_a_gradient(tokenizer: DualTokenizer, images: Tensor) -> None:
    output = tokenizer(images)
    loss = (
        output.reconstruction.square().mean()
        + output.pooled.square().mean()
        + output.semantic_tokens.square().mean()
    )
    loss.backward()
    assert not [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None]


def test_the_shortcut_is_optional(config: TokenizerConfig, images: Tensor) -> None:
    without = DualTokenizer(config.model_copy(update={"shortcut": None}))
    assert not [name for name in without.state_dict() if "reduce_shortcut" in name]
    assert without(images).reconstruction.shape == images.shape


def test_a_causal_projection_sees_no_later_token() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(1, 6, 8)
    changed = tokens.clone()
    changed[:, 3] *= -2
    for causal, num_unmoved in ((True, 3), (False, 0)):
        projection = AttnProjection(8, 24, causal=causal)
        moved = (projection(tokens) != projection(changed)).any(-1)[0]
        assert moved.tolist() == [False] * num_unmoved + [True] * (6 - num_unmoved)


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="widths 32 and 12: make one a multiple of the other"):
        AttnProjection(32, 12, causal=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pixel": {"width": 12, "depth": 3}},
            "pixel.width=12, tower.width=32: make one a multiple of the other",
        ),
        ({"tower": {"width": 30}}, "pixel.width=8, tower.width=30"),
        (
            {"decoder": {"norm_groups": 3, "latent_width": 6, "width": 6}},
            "decoder.norm_groups=3 does not divide tower.width=32",
        ),
    ],
)
def test_widths_that_do_not_fit_are_refused_before_anything_is_built(
    config: TokenizerConfig, change: dict, message: str
) -> None:
    values = config.model_dump()
    for part, fields in change.items():
        values[part] |= fields
    with pytest.raises(ValueError, match=message):
        TokenizerConfig.model_validate(values)


def test_saving_and_loading_keeps_every_bit(tokenizer: DualTokenizer, images: Tensor, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = DualTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.config == tokenizer.config
    assert same(snapshot(tokenizer), loaded.state_dict())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(images).reconstruction, tokenizer(images).reconstruction)


def test_loading_says_what_is_wrong_with_a_folder(tokenizer: DualTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        DualTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {"format_version": 99}))
    with pytest.raises(ValueError, match=r"\('dualtoken', 99\)"):
        DualTokenizer.from_pretrained(tmp_path)
    saved["config"]["pixel"]["num_codes"] = 64
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(
        ValueError, match=r"3 tensors differ; quantize_pixel.codes has shape \(32, 8\), not \(64, 8\)"
    ):
        DualTokenizer.from_pretrained(tmp_path)


def test_a_tower_of_the_same_shape_can_be_the_start(
    tokenizer: DualTokenizer, config: TokenizerConfig
) -> None:
    trunk = build_tower_like(config.tower, config.image_size)
    tokenizer.init_tower(trunk)
    assert same(snapshot(trunk), tokenizer.tower.state_dict())
    narrow = build_tower_like(config.tower.model_copy(update={"mlp_width": 40}), config.image_size)
    with pytest.raises(
        ValueError, match=r"15 tensors differ; attn_pool.mlp.fc1.bias has shape \(40,\), not \(48,\)"
    ):
        tokenizer.init_tower(narrow.state_dict())


def test_the_paper_s_largest_model_has_the_published_size() -> None:
    quantizer = QuantizerConfig()
    config = TokenizerConfig(
        image_size=384,
        tower=TowerConfig(patch_size=14, width=1152, depth=27, num_heads=16, mlp_width=4304),
        pixel_block=6,
        semantic_block=26,
        shortcut=ShortcutConfig(),
        pixel=quantizer,
        semantic=quantizer,
        decoder=DecoderConfig(),
    )
    with torch.device("meta"):
        tokenizer = DualTokenizer(config)
    millions = {}
    for name, module in tokenizer.named_children():
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        millions[name] = round(num_parameters / 1e6, 2)
    assert config.grid_size == 27
    assert millions == {
        "tower": 428.23,
        "reduce_pixel": 4.03,
        "reduce_shortcut": 4.03,
        "reduce_semantic": 4.03,
        "quantize_pixel": 0,
        "quantize_semantic": 0,
        "expand_pixel": 9.45,
        "expand_semantic": 9.45,
        "post_quant": 11.80,
        "decoder": 168.45,
    }


def test_codes_as_files_hold_them_are_codes(tokenizer: DualTokenizer, images: Tensor) -> None:
    codes = tokenizer.encode(images)
    pixel = codes.pixel.to(torch.uint16)
    semantic = codes.semantic.to(torch.uint16)
    assert torch.equal(tokenizer.decode(pixel), tokenizer.decode(codes.pixel))
    expected = tokenizer.semantic_features(codes.semantic)
    assert torch.equal(tokenizer.semantic_features(semantic).pooled, expected.pooled)


def test_no_images_have_no_codes(tokenizer: DualTokenizer, images: Tensor) -> None:
    codes_shape = tokenizer.encode(images).pixel.shape[1:]
    assert tokenizer.encode(images[:0]).pixel.shape == (0, *codes_shape)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Leave out the checks that these tests alone have, to meet what users meet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("without_shape_checks")
def test_images_and_codes_of_another_shape_are_refused(tokenizer: DualTokenizer, images: Tensor) -> None:
    size = tokenizer.config.image_size
    for wrong in (images[0], images[:, :2], images[..., 1:], (images * 127).to(torch.uint8)):
        with pytest.raises(ValueError, match=rf"pass floats of -1 to 1, \(images, 3, {size}, {size}\)"):
            tokenizer.encode(wrong)
    codes = tokenizer.encode(images).pixel
    for wrong in (codes[0], codes[:, 1:], codes[..., :1]):
        with pytest.raises(ValueError, match=r"codes have shape .*: pass \(images, "):
            tokenizer.decode(wrong)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (1.5, "values of -?[0-9.]+ to 1.5"),
        (-7.0, "values of -7 to "),
        (float("nan"), "NaN"),
        (float("inf"), "values of .* to inf"),
        (-float("inf"), "values of -inf to "),
    ],
)
def test_values_that_no_picture_gives_are_refused_by_name(
    value: float, named: str, tokenizer: DualTokenizer, images: Tensor
) -> None:
    images = images.clone()
    images[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=rf"images hold {named}.*: pass floats of -1 to 1"):
        tokenizer.encode(images)
    tokenizer.encode(images, check_values=False)


def test_the_range_of_values_is_that_of_the_model_s_own_transform(
    tokenizer: DualTokenizer, images: Tensor
) -> None:
    tokenizer.transform = Transform(
        image_size=tokenizer.config.image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 0.25)
    )
    levels = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    tokenizer.encode(tokenizer.transform.normalize(levels))
    with pytest.raises(ValueError, match=r"images hold values of .*: pass floats of 0 to 4"):
        tokenizer.encode(images * 5)


@pytest.mark.usefixtures("without_shape_checks")
def test_levels_other_layouts_and_single_pictures_are_refused_by_name(
    tokenizer: DualTokenizer, images: Tensor
) -> None:
    levels = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    for wrong in (levels, levels.float(), images.movedim(1, -1), images[0], images[..., :-1]):
        with pytest.raises(ValueError, match=r"\Aimages .*: pass floats of -1 to 1"):
            tokenizer.encode(wrong)
