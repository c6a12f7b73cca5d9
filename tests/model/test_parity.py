"""Our model computes what the reference implementation computed for the same weights."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.config import DecoderConfig, QuantizerConfig, ShortcutConfig, TokenizerConfig, TowerConfig
from model.convert import convert_official
from model.quantize import ResidualQuantizer
from model.tokenizer import DualTokenizer

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "parity" / "tiny"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no parity vectors: {FOLDER} is missing")


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return load_file(FOLDER / "official_state_dict.safetensors")


@pytest.fixture(scope="module")
def tokenizer(official: dict[str, Tensor]) -> DualTokenizer:
    saved = json.loads((FOLDER / "config.json").read_text())["config"]
    vision, decoder, grid = saved["siglip"]["vision"], saved["ddconfig"], saved["vq_pix"]["code_shape"]
    quantizer = QuantizerConfig(
        num_codes=saved["vq_pix"]["n_embed"], depth=grid[-1], width=saved["vq_pix"]["embed_dim"], restart_below=None
    )
    config = TokenizerConfig(
        image_size=vision["image_size"],
        tower=TowerConfig(
            patch_size=vision["patch_size"], width=vision["hidden_size"], depth=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"], mlp_width=vision["intermediate_size"],
        ),
        pixel_block=saved["layer_recon"],
        semantic_block=saved["layer_sem"],
        shortcut=ShortcutConfig(block=saved["layer_shortcut"], weight=saved["weight_shortcut"]),
        pixel=quantizer,
        semantic=quantizer,
        decoder=DecoderConfig(
            latent_size=saved["decoder_latent_shape"][0], latent_width=decoder["decoder_in_channels"], width=decoder["ch"],
            multipliers=decoder["ch_mult"], num_res_blocks=decoder["num_res_blocks"],
        ),
    )  # fmt: skip
    tokenizer = DualTokenizer(config)
    tokenizer.load_state_dict(convert_official(official))
    return tokenizer.eval()


def test_codes_are_the_reference_codes(tokenizer: DualTokenizer, expected: dict[str, Tensor]) -> None:
    codes = tokenizer.encode(expected["image"])
    assert torch.equal(codes.pixel, expected["pixel_codes"].long())
    assert torch.equal(codes.semantic, expected["semantic_codes"].long())


def test_features_and_images_are_those_of_the_reference(tokenizer: DualTokenizer, expected: dict[str, Tensor]) -> None:
    output = tokenizer(expected["image"])
    for ours, theirs in (
        (output.pixel.vectors, "pixel_quantized"),
        (output.semantic_tokens, "semantic_features"),
        (output.pooled, "pooled"),
        (output.reconstruction, "reconstruction"),
        (output.pixel.commitment[None], "pixel_commitment"),
        (output.semantic.commitment[None], "semantic_commitment"),
    ):
        torch.testing.assert_close(ours, expected[theirs], atol=1e-5, rtol=1e-5, msg=lambda text, theirs=theirs: f"{theirs}: {text}")


def test_gradients_have_the_reference_norms(tokenizer: DualTokenizer, expected: dict[str, Tensor]) -> None:
    norms = json.loads((FOLDER / "config.json").read_text())["gradient_norms"]
    output = tokenizer(expected["image"])
    loss = (
        5 * (output.reconstruction - expected["image"]).square().mean()
        + 5 * (output.pixel.commitment + output.semantic.commitment)
        + output.pooled.square().mean()
        + output.semantic_tokens.square().mean()
    )
    loss.backward()
    gradients = {name: parameter.grad.norm().item() for name, parameter in tokenizer.named_parameters() if parameter.grad is not None}
    tokenizer.zero_grad()
    # Those that are one parameter on both sides: we join or part the matrices of attention.
    single = [name for name in norms if not re.search(r"self_attn\.[qkv]_proj|in_proj", name)]
    pairs = {ours: norms[theirs] for theirs in single for ours in convert_official({theirs: torch.zeros(1)}) if ours in gradients}
    assert len(pairs) > 200
    assert {name: gradients[name] for name in pairs} == pytest.approx(pairs, rel=1e-3, abs=1e-5)


def test_a_codebook_update_is_the_reference_update(expected: dict[str, Tensor], official: dict[str, Tensor]) -> None:
    # The reference's pixel quantiser moves its codebook after each depth, so here each depth is a step of one depth.
    state = {name.removeprefix("quantize_pixel."): tensor for name, tensor in convert_official(official).items()}
    codes = state["codes"]
    quantizer = ResidualQuantizer(QuantizerConfig(num_codes=len(codes), depth=1, width=codes.shape[1], restart_below=None))
    quantizer.load_state_dict({name: state[name] for name in ("codes", "counts", "sums")})
    residual, ids = expected["ema_in"].flatten(1, 2), []
    for _ in range(expected["ema_out_codes"].shape[-1]):
        quantized = quantizer(residual)
        ids.append(quantized.ids)
        residual = residual - quantized.vectors
        quantizer.update(quantized, torch.Generator())
    assert torch.equal(torch.cat(ids, -1), expected["ema_out_codes"].flatten(1, 2).long())
    torch.testing.assert_close(expected["ema_in"].flatten(1, 2) - residual, expected["ema_out_quantized"].flatten(1, 2))
    torch.testing.assert_close(quantizer.counts, expected["ema_out_cluster_size"])
    torch.testing.assert_close(quantizer.sums, expected["ema_out_embed"])
    torch.testing.assert_close(quantizer.codes, expected["ema_out_weight"][:-1])
