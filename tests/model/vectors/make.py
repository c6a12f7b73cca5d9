"""Makes the vectors beside this file: what a tiny tokenizer with random weights computes, pinned.

    python -m tests.model.vectors.make

They let test_parity.py run where the reference's own vectors are missing, and show a change of the
mathematics that both models share. To be made anew only when a change is meant, and only while test_parity.py
passes on the reference's vectors, which is what makes these trustworthy. Weights are random, rounded to
bfloat16 (exact in float32, half the bytes), under the reference's names; outputs are float32, CPU, eval mode,
one thread. The codebook update comes from the plain loop below, not from the quantiser. Files have the names
and meaning of the reference's.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import DecoderConfig, ShortcutConfig, TokenizerConfig, TowerConfig
from dualtoken.model.convert.reference import to_reference
from dualtoken.model.quantize import ResidualQuantizer
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer, TokenizerOutput
from dualtoken.model.vision.towers import forward_taps

VECTORS = Path(__file__).parent
QUANTIZER = QuantizerConfig(num_codes=32, depth=2, width=8, restart_below=None)
CONFIG = TokenizerConfig(
    image_size=16,
    tower=TowerConfig(patch_size=5, width=24, depth=4, num_heads=2, mlp_width=32),
    pixel_block=2,
    semantic_block=3,
    shortcut=ShortcutConfig(block=1),
    pixel=QUANTIZER,
    semantic=QUANTIZER,
    decoder=DecoderConfig(
        latent_size=4, latent_width=16, width=8, multipliers=(1, 2, 2), num_res_blocks=1, norm_groups=4
    ),
)
"""Patches do not divide the image, and the grid differs from the decoder's: both on purpose, as in the
384-pixel model."""


def losses(output: TokenizerOutput, images: Tensor) -> Tensor:
    """The sum whose gradients are recorded."""
    assert output.pixel is not None
    assert output.semantic is not None
    assert output.reconstruction is not None
    assert output.pooled is not None
    assert output.semantic_tokens is not None
    return (
        5 * (output.reconstruction - images).square().mean()
        + 5 * (output.pixel.commitment + output.semantic.commitment)
        + output.pooled.square().mean()
        + output.semantic_tokens.square().mean()
    )


def make() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = DualTokenizer(CONFIG).eval()
    for tensor in (*tokenizer.parameters(), *tokenizer.buffers()):
        # Away from the initial zeros and ones, which would hide what a bias or a norm does.
        tensor.data.add_(0.05 * torch.randn_like(tensor)).copy_(tensor.bfloat16().float())
    pixel = tokenizer.quantize_pixel
    assert isinstance(pixel, ResidualQuantizer)
    pixel.counts.uniform_(1, 4)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    output, codes = tokenizer(images), tokenizer.encode(images)
    losses(output, images).backward()
    taps = forward_taps(tokenizer.tower, images, [CONFIG.pixel_block, CONFIG.semantic_block])
    pixel.counts.copy_(pixel.counts.bfloat16().float())
    expected = {
        "image": images,
        "hidden_recon": taps[CONFIG.pixel_block].tokens,
        "hidden_sem": taps[CONFIG.semantic_block].tokens,
        "pixel_codes": codes.pixel,
        "semantic_codes": codes.semantic,
        "pixel_quantized": output.pixel.vectors,
        "semantic_features": output.semantic_tokens,
        "pooled": output.pooled,
        "reconstruction": output.reconstruction,
        "pixel_commitment": output.pixel.commitment[None],
        "semantic_commitment": output.semantic.commitment[None],
        **codebook_update(pixel),
    }
    gradients = tokenizer.state_dict() | {
        name: parameter.grad for name, parameter in tokenizer.named_parameters() if parameter.grad is not None
    }
    named = to_reference(gradients, CONFIG)
    norms = {
        name: tensor.norm().item()
        for name, tensor in named.items()
        if ".codebooks." not in name and not name.endswith("zero_k_bias")
    }
    weights = {
        name: tensor.bfloat16() for name, tensor in to_reference(tokenizer.state_dict(), CONFIG).items()
    }
    save_file(weights, VECTORS / "official_state_dict.safetensors")
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in expected.items()},
        VECTORS / "expected.safetensors",
    )
    saved = {"tokenizer": CONFIG.model_dump(mode="json"), "gradient_norms": norms}
    (VECTORS / "config.json").write_text(json.dumps(saved, indent=1) + "\n")


def codebook_update(start: ResidualQuantizer, decay: float = 0.99) -> dict[str, Tensor]:
    """Move the pixel codebook after each depth, as the reference does, vector by vector, in float64."""
    codes, counts, sums = start.codes.double(), start.counts.double(), start.sums.double()
    tokens = torch.randn(2, 3, 3, QUANTIZER.width)
    residual, chosen = tokens.double().flatten(0, 2), []
    for _ in range(QUANTIZER.depth):
        ids = torch.stack([(codes - vector).square().sum(dim=1).argmin() for vector in residual])
        counts, sums = counts * decay, sums * decay
        for vector, code in zip(residual, ids, strict=True):
            counts[code] += 1 - decay
            sums[code] += (1 - decay) * vector
        residual = residual - codes[ids]
        smoothed = counts.sum() * (counts + 1e-5) / (counts.sum() + len(counts) * 1e-5)
        codes = sums / smoothed[:, None]
        chosen.append(ids)
    return {
        "ema_in": tokens,
        "ema_out_codes": torch.stack(chosen, -1).unflatten(0, (2, 3, 3)),
        "ema_out_quantized": tokens - residual.float().view_as(tokens),
        "ema_out_cluster_size": counts.float(),
        "ema_out_embed": sums.float(),
        "ema_out_weight": torch.cat((codes, codes.new_zeros(1, QUANTIZER.width))).float(),
    }


if __name__ == "__main__":
    make()
