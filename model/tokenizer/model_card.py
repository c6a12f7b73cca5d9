"""The model card that is saved beside weights: bits of the codes, shapes, and how to use the model."""

import math

from dualtoken.model.config.quantizer import AnyQuantizerConfig
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.vision.transform import Transform

_HEAD = """---
library_name: dualtoken
license: apache-2.0
pipeline_tag: image-feature-extraction
tags:
- dualtoken
- image-tokenizer
- model_hub_mixin
---
# DualToken tokenizer, {size} px

One vision tokenizer with two vocabularies ([arXiv 2503.14324](https://arxiv.org/abs/2503.14324)): \
pixel codes give images back,
semantic codes give features that a language-aligned teacher's text embeddings can be compared with.
"""
_USAGE = """
## Use

```python
from PIL import Image
from dualtoken import DualTokenizer

tokenizer = DualTokenizer.from_pretrained(".")  # this folder, or its name on the hub
picture = Image.new("RGB", ({size}, {size}), "teal")  # or dualtoken.open_image(path)
codes = tokenizer.encode(tokenizer.transform([picture]))
image = tokenizer.transform.to_uint8(tokenizer.decode(codes.pixel))
print(tuple(codes.semantic.shape), tuple(codes.pixel.shape), tuple(image.shape))
```

From a shell: `dualtoken tokenize . IMAGE... --out codes.safetensors`, \
`dualtoken reconstruct . IMAGE... --out pictures`.
"""


def bits_per_image(quantizer: AnyQuantizerConfig, grid_size: int) -> float:
    """Return the bits of one stream's codes of an image, were all codes equally likely."""
    return grid_size**2 * quantizer.depth * math.log2(quantizer.num_codes)


def card(
    config: TokenizerConfig, transform: Transform, parameters: dict[str, int], fingerprint: str | None
) -> str:
    """Return README.md; `parameters` counts them per part of the network."""
    size = config.image_size
    sections = [
        _HEAD.format(size=size),
        "\n".join(_code_table(config)) + "\n",
        "\n".join(_facts(config, transform, parameters, fingerprint)),
        _USAGE.format(size=size),
    ]
    return "\n".join(sections)


def _code_table(config: TokenizerConfig) -> list[str]:
    """Return the lines of the table of codes and bits."""
    grid = config.grid_size
    num_pixels = config.image_size**2
    lines = [
        "| stream | codes per image | codebook | bits per image | bits per pixel |",
        "|---|---|---|---|---|",
    ]
    total = 0.0
    for name, quantizer in (("semantic", config.semantic), ("pixel", config.pixel)):
        shape = f"{grid} x {grid} x {quantizer.depth}"
        bits = bits_per_image(quantizer, grid)
        lines.append(
            f"| {name} | {shape} | {quantizer.num_codes:,} | {bits:,.0f} | {bits / num_pixels:.4f} |"
        )
        total += bits
    lines.append(f"| both | | | {total:,.0f} | {total / num_pixels:.4f} |")
    return lines


def _facts(
    config: TokenizerConfig, transform: Transform, parameters: dict[str, int], fingerprint: str | None
) -> list[str]:
    """Return the lines of the list below the table."""
    size = config.image_size
    num_tokens = config.grid_size**2
    taps = f"{config.pixel_block} (pixel) and {config.semantic_block} (semantic)"
    parts = [f"{name} {count:,}" for name, count in parameters.items() if count]
    lines = [
        f"* Input: {size} x {size} pixels; {transform}.",
        f"* Tower: {num_tokens} tokens of {config.tower.width} channels, tapped after blocks {taps}.",
        f"* Parameters: {sum(parameters.values()):,} ({', '.join(parts)}).",
    ]
    if fingerprint:
        lines.append(
            f"* Fingerprint: `{fingerprint}`, the SHA-256 of `config.json` followed by `model.safetensors`."
        )
    return lines
