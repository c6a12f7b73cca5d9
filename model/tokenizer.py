"""DualToken's tokenizer (arXiv 2503.14324, section 3): one tower, a pixel and a semantic codebook, one decoder.

B images of S by S pixels, N = H*W tokens, W channels of the tower, E = W channels of an embedding, D depths. The pixel
tokens leave the tower at a shallow block; the semantic tokens leave it late, are quantised, and run through the rest of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import TokenizerConfig
from model.decoder import Decoder, PostQuantBlock
from model.projection import AttnProjection
from model.quantize import Quantized, Quantizer, build_quantizer, encode_streams
from model.tower import build_tower

FORMAT_VERSION = 1
"""Of a saved folder."""


class Codes(NamedTuple):
    """The tokens of images, in raster order."""

    semantic: Int[Tensor, "B H W D"]  # in [0, semantic.num_codes)
    pixel: Int[Tensor, "B H W D"]  # in [0, pixel.num_codes)


class SemanticFeatures(NamedTuple):
    """What semantic codes mean to the tower."""

    tokens: Float[Tensor, "B N W"]  # stand in for the output of the semantic block
    pooled: Float[Tensor, "B E"]  # the image embedding, of any length


class TokenizerOutput(NamedTuple):
    """All that a loss needs."""

    reconstruction: Float[Tensor, "B 3 S S"]  # about -1 to 1, not bounded
    semantic_tokens: Float[Tensor, "B N W"]  # as SemanticFeatures.tokens
    pooled: Float[Tensor, "B E"]  # as SemanticFeatures.pooled
    pixel: Quantized
    semantic: Quantized


class DualTokenizer(nn.Module):
    """Images to two streams of codes, pixel codes to images, semantic codes to features.

    `forward` changes no state: a training step moves the codebooks by calling their `update`.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.tower.width
        self.tower = build_tower(config.tower, config.image_size)
        self.reduce_pixel = AttnProjection(width, config.pixel.width, causal=False)
        self.reduce_shortcut = AttnProjection(width, config.pixel.width, causal=False) if config.shortcut else None
        self.reduce_semantic = AttnProjection(width, config.semantic.width, causal=False)
        self.quantize_pixel = build_quantizer(config.pixel)
        self.quantize_semantic = build_quantizer(config.semantic)
        self.expand_pixel = AttnProjection(config.pixel.width, width, causal=True)
        self.expand_semantic = AttnProjection(config.semantic.width, width, causal=True)
        self.post_quant = PostQuantBlock(width, config.decoder.latent_width, config.decoder.norm_groups)
        self.decoder = Decoder(config.decoder)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> TokenizerOutput:
        """Encode and decode images of -1 to 1."""
        pixel, semantic = (quantize(tokens) for quantize, tokens in self._streams(images))
        features = self._semantic_features(semantic.vectors)
        return TokenizerOutput(self._decode(pixel.vectors), features.tokens, features.pooled, pixel, semantic)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Codes:
        """Return both streams' codes of images of -1 to 1; runs the blocks up to the semantic one, and no decoder."""
        pixel, semantic = encode_streams(self._streams(images))
        grid = (self.config.grid_size, self.config.grid_size)
        return Codes(semantic=semantic.unflatten(1, grid), pixel=pixel.unflatten(1, grid))

    @torch.no_grad()
    def decode(self, pixel: Int[Tensor, "B H W D"]) -> Float[Tensor, "B 3 S S"]:
        """Return the images that pixel codes say, about -1 to 1; `images.to_uint8` rounds and clamps them."""
        return self._decode(self.quantize_pixel.lookup(pixel.flatten(1, 2)))

    @torch.no_grad()
    def semantic_features(self, semantic: Int[Tensor, "B H W D"]) -> SemanticFeatures:
        """Return token features and the image embedding that semantic codes say."""
        return self._semantic_features(self.quantize_semantic.lookup(semantic.flatten(1, 2)))

    def _streams(
        self, images: Float[Tensor, "B 3 S S"]
    ) -> tuple[tuple[Quantizer, Float[Tensor, "B N P"]], tuple[Quantizer, Float[Tensor, "B N Q"]]]:
        """Return each stream's quantiser and tokens at code width, pixel first."""
        shortcut = self.config.shortcut
        blocks = sorted({self.config.pixel_block, self.config.semantic_block} | ({shortcut.block} if shortcut else set()))
        # timm counts blocks from 0, our configs from 1, as the paper.
        taps = self.tower.forward_intermediates(
            images, indices=[block - 1 for block in blocks], intermediates_only=True, stop_early=True, output_fmt="NLC"
        )
        at = dict(zip(blocks, taps, strict=True))
        pixel = self.reduce_pixel(at[self.config.pixel_block])
        if shortcut and self.reduce_shortcut:
            pixel = pixel + shortcut.weight * self.reduce_shortcut(at[shortcut.block])
        semantic = self.reduce_semantic(at[self.config.semantic_block])
        return (self.quantize_pixel, pixel), (self.quantize_semantic, semantic)

    def _semantic_features(self, vectors: Float[Tensor, "B N Q"]) -> SemanticFeatures:
        tokens = self.expand_semantic(vectors)
        remaining = cast("nn.Sequential", self.tower.blocks)[self.config.semantic_block :]
        return SemanticFeatures(tokens, self.tower.forward_head(self.tower.norm(remaining(tokens))))

    def _decode(self, vectors: Float[Tensor, "B N P"]) -> Float[Tensor, "B 3 S S"]:
        grid = self.expand_pixel(vectors).transpose(1, 2).unflatten(2, (self.config.grid_size, self.config.grid_size))
        if (side := self.config.decoder.latent_size) != self.config.grid_size:
            grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
        return self.decoder(self.post_quant(grid))

    def init_tower(self, weights: nn.Module | Mapping[str, Tensor]) -> None:
        """Start from the vision tower of a teacher of the same shape: the module itself or its state dict.

        Raises ValueError if names or shapes differ.
        """
        state = weights.state_dict() if isinstance(weights, nn.Module) else weights
        _load(self.tower, state, f"a tower of {self.config.tower!r}, image_size={self.config.image_size}")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a local folder, made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        saved = {"format": "dualtoken", "format_version": FORMAT_VERSION, "config": self.config.model_dump(mode="json")}
        (folder / "config.json").write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> "DualTokenizer":
        """Read a folder of `save_pretrained`, ready for inference. Raises ValueError if it holds something else."""
        folder = Path(folder)
        if missing := [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]:
            raise ValueError(f"{folder} has no {missing[0]}: name a folder that DualTokenizer.save_pretrained wrote")
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (found := (saved.get("format"), saved.get("format_version"))) != ("dualtoken", FORMAT_VERSION):
            raise ValueError(f"{folder}/config.json has format and format_version {found}: this reads ('dualtoken', {FORMAT_VERSION})")
        # On meta, since initial weights that the file replaces would cost seconds for a large tower.
        with torch.device("meta"):
            tokenizer = cls(TokenizerConfig.model_validate(saved["config"]))
        _load(tokenizer, load_file(folder / "model.safetensors", device=str(device)), f"the model of {folder}/config.json", assign=True)
        return tokenizer.eval()


def _load(module: nn.Module, state: Mapping[str, Tensor], expected: str, *, assign: bool = False) -> None:
    """Load weights; a name or shape that differs is a ValueError that says what was expected."""
    ours = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if differ := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        name = differ[0]
        raise ValueError(
            f"weights do not fit {expected}: {len(differ)} tensors differ; {name} has shape {theirs.get(name)}, not {ours.get(name)}"
        )
    module.load_state_dict(state, assign=assign)
