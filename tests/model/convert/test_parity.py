"""Our model computes what the reference implementation computed for the same weights, and for our own pinned weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.convert.reference import from_reference, to_reference
from dualtoken.model.convert.reference_config import config_from_reference
from dualtoken.model.quantize import ResidualQuantizer
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.towers import forward_taps
from tests.model.vectors.make import VECTORS, losses

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "parity" / "tiny"
needs_reference = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no parity vectors: {FOLDER} is missing")


@pytest.fixture(
    params=[pytest.param(FOLDER, id="reference", marks=needs_reference), pytest.param(VECTORS, id="pinned")]
)
def folder(request: pytest.FixtureRequest) -> Path:
    """What the reference gave, and a smaller model whose vectors are kept beside these tests."""
    return request.param


@pytest.fixture
def expected(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "expected.safetensors")


@pytest.fixture
def official(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor.float() for name, tensor in load_file(folder / "official_state_dict.safetensors").items()
    }


@pytest.fixture
def tokenizer(folder: Path, official: dict[str, Tensor]) -> DualTokenizer:
    saved = json.loads((folder / "config.json").read_text())
    config = (
        config_from_reference(saved, official)
        if "config" in saved
        else TokenizerConfig.model_validate(saved["tokenizer"])
    )
    tokenizer = DualTokenizer(config)
    tokenizer.load_state_dict(from_reference(official, config))
    return tokenizer.eval()


def test_codes_are_the_reference_codes(tokenizer: DualTokenizer, expected: dict[str, Tensor]) -> None:
    codes = tokenizer.encode(expected["image"])
    assert torch.equal(codes.pixel, expected["pixel_codes"].long())
    assert torch.equal(codes.semantic, expected["semantic_codes"].long())


def test_features_and_images_are_those_of_the_reference(
    tokenizer: DualTokenizer, expected: dict[str, Tensor]
) -> None:
    output, config = tokenizer(expected["image"]), tokenizer.config
    taps = forward_taps(tokenizer.tower, expected["image"], [config.pixel_block, config.semantic_block])
    for ours, theirs in (
        (taps[config.pixel_block].tokens, "hidden_recon"),
        (taps[config.semantic_block].tokens, "hidden_sem"),
        (output.pixel.vectors, "pixel_quantized"),
        (output.semantic_tokens, "semantic_features"),
        (output.pooled, "pooled"),
        (output.reconstruction, "reconstruction"),
        (output.pixel.commitment[None], "pixel_commitment"),
        (output.semantic.commitment[None], "semantic_commitment"),
    ):
        torch.testing.assert_close(
            ours, expected[theirs], atol=1e-5, rtol=1e-5, msg=lambda text, theirs=theirs: f"{theirs}: {text}"
        )


def test_every_gradient_has_the_reference_norm(
    folder: Path, tokenizer: DualTokenizer, expected: dict[str, Tensor]
) -> None:
    norms = json.loads((folder / "config.json").read_text())["gradient_norms"]
    losses(tokenizer(expected["image"]), expected["image"]).backward()
    gradients = {
        name: tensor.detach()
        for name, tensor in tokenizer.state_dict().items()
        if name.startswith("quantize_")
    }
    gradients |= {
        name: parameter.grad for name, parameter in tokenizer.named_parameters() if parameter.grad is not None
    }
    assert gradients.keys() == tokenizer.state_dict().keys()
    # Under the reference's names, so that attention's joint matrices are parted, or joined, as there.
    theirs = to_reference(gradients, tokenizer.config)
    compared = {
        name: theirs[name].norm().item()
        for name in norms
        if not name.startswith(("siglip_model.text", "siglip_model.logit"))
    }
    codebooks = {name for name in theirs if ".codebooks." in name or name.endswith("zero_k_bias")}
    assert compared.keys() == theirs.keys() - codebooks
    # Keys' biases change no attention, nor do biases before a norm their groups: their gradients are rounding.
    nothing = {name for name in compared if norms[name] < 1e-6}
    assert all(compared[name] < 1e-6 for name in nothing)
    assert {name: compared[name] for name in compared if name not in nothing} == pytest.approx(
        {name: norms[name] for name in compared if name not in nothing}, rel=1e-4, abs=0
    )


def test_a_codebook_update_is_the_reference_update(
    expected: dict[str, Tensor], tokenizer: DualTokenizer
) -> None:
    # The reference's pixel quantiser moves its codebook after each depth, so here each depth is a step of one depth.
    assert isinstance(tokenizer.quantize_pixel, ResidualQuantizer)
    codes = tokenizer.quantize_pixel.codes
    quantizer = ResidualQuantizer(
        QuantizerConfig(num_codes=len(codes), depth=1, width=codes.shape[1], restart_below=None)
    )
    quantizer.load_state_dict(tokenizer.quantize_pixel.state_dict())
    residual, ids = expected["ema_in"].flatten(1, 2), []
    for _ in range(expected["ema_out_codes"].shape[-1]):
        quantized = quantizer(residual)
        ids.append(quantized.ids)
        residual = residual - quantized.vectors
        quantizer.update(quantized, torch.Generator())
    assert torch.equal(torch.cat(ids, -1), expected["ema_out_codes"].flatten(1, 2).long())
    for ours, theirs in (
        (expected["ema_in"].flatten(1, 2) - residual, expected["ema_out_quantized"].flatten(1, 2)),
        (quantizer.counts, expected["ema_out_cluster_size"]),
        (quantizer.sums, expected["ema_out_embed"]),
        (quantizer.codes, expected["ema_out_weight"][:-1]),
    ):
        # The last bits are the processor's: whether it rounds a product before it is added.
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=2 * torch.finfo(torch.float32).eps * theirs.abs().max().item()
        )


def test_there_and_back_changes_no_bit(official: dict[str, Tensor], tokenizer: DualTokenizer) -> None:
    back = to_reference(tokenizer.state_dict(), tokenizer.config)
    kept = {
        name: tensor
        for name, tensor in official.items()
        if not name.startswith(("siglip_model.text_model", "siglip_model.logit"))
    }
    assert back.keys() == kept.keys()
    assert all(torch.equal(back[name], kept[name]) for name in kept)
