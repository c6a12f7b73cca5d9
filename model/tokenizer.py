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
from model.encoder import ConvEncoder
from model.projection import AttnProjection
from model.quantize import Quantized, ResidualQuantizer
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
    """All that a loss needs; None for a stream that was not asked for."""

    reconstruction: Float[Tensor, "B 3 S S"] | None  # about -1 to 1, not bounded
    semantic_tokens: Float[Tensor, "B N W"] | None  # as SemanticFeatures.tokens
    pooled: Float[Tensor, "B E"] | None  # as SemanticFeatures.pooled
    pixel: Quantized | None
    semantic: Quantized | None  # with a shared codebook the same object as `pixel`


class DualTokenizer(nn.Module):
    """Images to two streams of codes, pixel codes to images, semantic codes to features.

    `forward` changes no state: a training step moves the codebooks by calling their `update`.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.tower.width
        self.tower = build_tower(config.tower, config.image_size)
        self.pixel_encoder = ConvEncoder(config.pixel_encoder, config.pixel.width) if config.pixel_encoder else None
        own_tap = not (config.shared_codebook or config.pixel_encoder)
        self.reduce_pixel = AttnProjection(width, config.pixel.width, causal=False) if own_tap else None
        self.reduce_shortcut = AttnProjection(width, config.pixel.width, causal=False) if config.shortcut else None
        self.reduce_semantic = AttnProjection(width, config.semantic.width, causal=False)
        self.quantize_pixel: ResidualQuantizer
        if not config.shared_codebook:
            self.quantize_pixel = ResidualQuantizer(config.pixel)
        self.quantize_semantic = ResidualQuantizer(config.semantic)
        if config.shared_codebook:
            # Past nn.Module's register, so that a state dict, and a folder, holds the codebook once.
            object.__setattr__(self, "quantize_pixel", self.quantize_semantic)
        self.expand_pixel = AttnProjection(config.pixel.width, width, causal=True)
        self.expand_semantic = AttnProjection(config.semantic.width, width, causal=True)
        self.post_quant = PostQuantBlock(width, config.decoder.latent_width, config.decoder.norm_groups)
        self.decoder = Decoder(config.decoder)

    def forward(self, images: Float[Tensor, "B 3 S S"], *, pixel: bool = True, semantic: bool = True) -> TokenizerOutput:
        """Encode and decode images of -1 to 1; a stream not asked for is not computed."""
        shown, meant = self._quantize(images, pixel=pixel, semantic=semantic)
        reconstruction = None if shown is None else self._decode(shown.vectors)
        tokens, pooled = (None, None) if meant is None else self._semantic_features(meant.vectors)
        return TokenizerOutput(reconstruction, tokens, pooled, shown, meant)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Codes:
        """Return both streams' codes of images of -1 to 1; runs the blocks up to the semantic one, and no decoder."""
        pixel, semantic = self._quantize(images)
        assert pixel is not None
        assert semantic is not None
        grid = (self.config.grid_size, self.config.grid_size)
        return Codes(semantic=semantic.ids.unflatten(1, grid), pixel=pixel.ids.unflatten(1, grid))

    @torch.no_grad()
    def decode(self, pixel: Int[Tensor, "B H W D"]) -> Float[Tensor, "B 3 S S"]:
        """Return the images that pixel codes say, about -1 to 1; `images.to_uint8` rounds and clamps them."""
        return self._decode(self.quantize_pixel.lookup(pixel.flatten(1, 2)))

    @torch.no_grad()
    def semantic_features(self, semantic: Int[Tensor, "B H W D"]) -> SemanticFeatures:
        """Return token features and the image embedding that semantic codes say."""
        return self._semantic_features(self.quantize_semantic.lookup(semantic.flatten(1, 2)))

    def _quantize(
        self, images: Float[Tensor, "B 3 S S"], *, pixel: bool = True, semantic: bool = True
    ) -> tuple[Quantized | None, Quantized | None]:
        """Return each stream's codes, pixel first; None for a stream not asked for."""
        config = self.config
        if config.shared_codebook:
            tokens = self._tap(images, {config.semantic_block})[config.semantic_block]
            both = self.quantize_semantic(self.reduce_semantic(tokens))
            return both if pixel else None, both if semantic else None
        blocks = {config.semantic_block} if semantic else set()
        if pixel and self.reduce_pixel:
            blocks |= {config.pixel_block} | ({config.shortcut.block} if config.shortcut else set())
        at = self._tap(images, blocks)
        return (
            self.quantize_pixel(self._pixel_tokens(images, at)) if pixel else None,
            self.quantize_semantic(self.reduce_semantic(at[config.semantic_block])) if semantic else None,
        )

    def _tap(self, images: Float[Tensor, "B 3 S S"], blocks: set[int]) -> dict[int, Float[Tensor, "B N W"]]:
        """Return the tower's tokens after some blocks; none after the last of them runs."""
        if not blocks:
            return {}
        # timm counts blocks from 0, our configs from 1, as the paper.
        taps = self.tower.forward_intermediates(
            images, indices=[block - 1 for block in sorted(blocks)], intermediates_only=True, stop_early=True, output_fmt="NLC"
        )
        return dict(zip(sorted(blocks), cast("list[Tensor]", taps), strict=True))

    def _pixel_tokens(self, images: Float[Tensor, "B 3 S S"], at: Mapping[int, Float[Tensor, "B N W"]]) -> Float[Tensor, "B N P"]:
        if self.pixel_encoder:
            return self.pixel_encoder(images)
        assert self.reduce_pixel is not None
        tokens = self.reduce_pixel(at[self.config.pixel_block])
        if (shortcut := self.config.shortcut) and self.reduce_shortcut:
            tokens = tokens + shortcut.weight * self.reduce_shortcut(at[shortcut.block])
        return tokens

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
