"""The transformer decoder: shapes, what a pixel depends on, and its place in a tokenizer."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from dualtoken.model.config.tokenizer import DecoderConfig, TokenizerConfig
from dualtoken.model.config.training import GanConfig
from dualtoken.model.config.transformer_decoder import TransformerDecoderConfig
from dualtoken.model.convert.reference import to_reference
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.tokenizer.transformer_decoder import Block, TransformerDecoder
from tests.model.training.steps import fresh_state, run, training

DECODER = {
    "kind": "transformer",
    "latent_size": 4,
    "patch_size": 4,
    "width": 24,
    "depth": 2,
    "num_heads": 2,
    "mlp_width": 48,
}


@pytest.fixture
def transformer_config(config: TokenizerConfig) -> TokenizerConfig:
    return TokenizerConfig.model_validate(config.model_dump() | {"decoder": DECODER})


def test_a_tokenizer_decodes_with_it(transformer_config: TokenizerConfig, images: Tensor) -> None:
    tokenizer = DualTokenizer(transformer_config)
    assert isinstance(tokenizer.decoder, TransformerDecoder)
    output = tokenizer(images)
    assert output.reconstruction.shape == images.shape
    assert torch.equal(tokenizer.decode(tokenizer.encode(images).pixel), output.reconstruction)


def test_each_token_gives_its_own_square_of_pixels() -> None:
    torch.manual_seed(0)
    config = TransformerDecoderConfig.model_validate(DECODER | {"depth": 1})
    decoder = TransformerDecoder(config, in_width=8)
    # Without blocks and the last convolution, a token reaches its own square only.
    decoder.blocks = torch.nn.Sequential()
    decoder.conv_out = torch.nn.Conv2d(3, 3, 1)
    latent = torch.zeros(1, 8, 4, 4)
    before = decoder(latent)
    latent[:, :, 1, 2] = 1.0
    changed = (decoder(latent) != before).any(dim=1)[0]
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 8:12] = True
    assert torch.equal(changed, expected)


def test_images_are_the_written_out_layers_of_the_latent() -> None:
    torch.manual_seed(0)
    config = TransformerDecoderConfig.model_validate(DECODER)
    decoder = TransformerDecoder(config, in_width=8)
    assert len(decoder.blocks) == config.depth
    latent = torch.randn(1, 8, 4, 4)
    # Token 4 r + c stands at row r, column c.
    tokens = torch.stack([latent[0, :, row, column] for row in range(4) for column in range(4)])
    hidden = decoder.proj_in(tokens)[None] + decoder.pos_embed
    for block in decoder.blocks:
        assert isinstance(block, Block)
        assert block.attn.num_heads == config.num_heads
        assert len(block.get_submodule("attn.qkv").get_parameter("bias")) == 3 * config.width
        assert len(block.get_submodule("mlp.fc1").get_parameter("weight")) == config.mlp_width
        hidden = block(hidden)
    patches = decoder.patches(F.layer_norm(hidden, [config.width]))[0]
    pixels = torch.zeros(config.patch_channels, 16, 16)
    for index, patch in enumerate(patches):
        row, column = divmod(index, 4)
        square = patch.reshape(config.patch_channels, 4, 4)
        pixels[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = square
    expected = F.conv2d(pixels[None], decoder.conv_out.weight, decoder.conv_out.bias, padding=1)
    torch.testing.assert_close(decoder(latent), expected)


def test_fresh_positions_are_small_and_differ() -> None:
    torch.manual_seed(0)
    decoder = TransformerDecoder(TransformerDecoderConfig.model_validate(DECODER), in_width=8)
    # 16 positions of 24 channels: the deviation of 384 numbers is known to 4 %.
    assert decoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.15)


def test_a_saved_folder_keeps_it(transformer_config: TokenizerConfig, images: Tensor, tmp_path: Path) -> None:
    tokenizer = DualTokenizer(transformer_config).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = DualTokenizer.from_pretrained(tmp_path)
    assert loaded.config == transformer_config
    assert torch.equal(loaded(images).reconstruction, tokenizer(images).reconstruction)


def test_it_trains_with_a_gan(transformer_config: TokenizerConfig) -> None:
    gan = GanConfig(width=32).model_dump()
    metrics = run(fresh_state(transformer_config, training(gan=gan, optimizer="muon")), 12)
    assert metrics[-1].reconstruction is not None
    assert metrics[0].reconstruction is not None
    assert metrics[-1].reconstruction < 0.8 * metrics[0].reconstruction


def test_a_decoder_without_a_kind_is_convolutional(config: TokenizerConfig) -> None:
    assert isinstance(config.decoder, DecoderConfig)
    assert "kind" not in config.identity()["decoder"]


def test_a_decoder_of_another_size_than_the_images_is_refused(config: TokenizerConfig) -> None:
    values = config.model_dump() | {"decoder": DECODER | {"patch_size": 8}}
    message = "latent_size=4 with patch_size=8 decodes 32 pixels, image_size=16: make them equal"
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig.model_validate(values)


def test_the_released_code_has_no_such_decoder(transformer_config: TokenizerConfig) -> None:
    with pytest.raises(ValueError, match=r"decoder\.kind=transformer: it cannot be written"):
        to_reference({}, transformer_config)
