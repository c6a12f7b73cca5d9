"""A trained tokenizer goes on at another image size: positions are resampled, all else is what it was."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.tokenizer.resolution import at_resolution

TRANSFORMER = {
    "kind": "transformer",
    "patch_size": 4,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_width": 32,
}


def with_size(config: TokenizerConfig, scale: int, **changes: Any) -> TokenizerConfig:
    values = config.model_dump() | changes
    values["image_size"] *= scale
    values["decoder"] = values["decoder"] | {"latent_size": values["decoder"]["latent_size"] * scale}
    return TokenizerConfig.model_validate(values)


def with_transformer(config: TokenizerConfig) -> TokenizerConfig:
    decoder = TRANSFORMER | {"latent_size": config.image_size // 4}
    return TokenizerConfig.model_validate(config.model_dump() | {"decoder": decoder})


@pytest.mark.parametrize("transformer", [False, True])
def test_weights_are_kept_and_positions_are_those_of_a_larger_grid(
    config: TokenizerConfig, *, transformer: bool
) -> None:
    if transformer:
        config = with_transformer(config)
    trained = DualTokenizer(config)
    resized = at_resolution(trained, with_size(config, 2))
    before = trained.state_dict()
    changed = {name for name, tensor in resized.state_dict().items() if tensor.shape != before[name].shape}
    assert changed == {"tower.pos_embed"} | ({"decoder.pos_embed"} if transformer else set())
    for name, tensor in resized.state_dict().items():
        if name not in changed:
            assert torch.equal(tensor, before[name]), name

    side = config.grid_size
    grid = before["tower.pos_embed"].reshape(side, side, -1).permute(2, 0, 1)[None]
    larger = F.interpolate(grid, size=(2 * side, 2 * side), mode="bicubic", antialias=True)
    found = resized.state_dict()["tower.pos_embed"].reshape(2 * side, 2 * side, -1).permute(2, 0, 1)[None]
    assert torch.allclose(found, larger, atol=1e-6)

    images = torch.rand(2, 3, 2 * config.image_size, 2 * config.image_size) * 2 - 1
    codes = resized.encode(images)
    assert codes.pixel.shape[1:3] == (2 * side, 2 * side)
    assert resized.decode(codes.pixel).shape == images.shape


def test_the_same_size_gives_the_same_codes(
    config: TokenizerConfig, tokenizer: DualTokenizer, images: torch.Tensor
) -> None:
    tokenizer.eval()
    again = at_resolution(tokenizer, config).eval()
    assert torch.equal(again.encode(images).pixel, tokenizer.encode(images).pixel)


def test_a_tokenizer_that_differs_in_more_is_named_by_its_key(
    config: TokenizerConfig, tokenizer: DualTokenizer
) -> None:
    other = with_size(config, 2, pixel=config.pixel.model_dump() | {"num_codes": 7})
    with pytest.raises(ValueError, match=r"tokenizer.pixel.num_codes is another one"):
        at_resolution(tokenizer, other)
