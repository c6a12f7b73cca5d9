"""The model card that is saved beside weights: what the tokenizer's codes cost, its shapes, and how to use it."""

import math
from typing import Any

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

One vision tokenizer with two vocabularies ([arXiv 2503.14324](https://arxiv.org/abs/2503.14324)): pixel codes give images back,
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

From a shell: `dualtoken tokenize . IMAGE... --out codes.safetensors`, `dualtoken reconstruct . IMAGE... --out pictures`.
"""


def bits_per_image(quantizer: Any, grid_size: int) -> float:  # noqa: ANN401
    """Return the bits of one stream's codes of an image, were all codes as likely; `quantizer` has `num_codes` and `depth`."""
    return grid_size**2 * quantizer.depth * math.log2(quantizer.num_codes)


def card(
    config: TokenizerConfig, transform: Transform, parameters: dict[str, int], fingerprint: str | None
) -> str:
    """Return README.md; `parameters` counts them per part of the network."""
    size, grid, taps = (
        config.image_size,
        config.grid_size,
        f"{config.pixel_block} (pixel) and {config.semantic_block} (semantic)",
    )
    rows = [
        "| stream | codes per image | codebook | bits per image | bits per pixel |",
        "|---|---|---|---|---|",
    ]
    bits = {
        name: bits_per_image(quantizer, grid)
        for name, quantizer in (("semantic", config.semantic), ("pixel", config.pixel))
    }
    for name, quantizer in (("semantic", config.semantic), ("pixel", config.pixel)):
        shape = f"{grid} x {grid} x {quantizer.depth}"
        rows.append(
            f"| {name} | {shape} | {quantizer.num_codes:,} | {bits[name]:,.0f} | {bits[name] / size**2:.4f} |"
        )
    total = sum(bits.values())
    rows.append(f"| both | | | {total:,.0f} | {total / size**2:.4f} |")
    facts = [
        f"* Input: {size} x {size} pixels; {transform}.",
        f"* Tower: {grid**2} tokens of {config.tower.width} channels, tapped after blocks {taps}.",
        f"* Parameters: {sum(parameters.values()):,} ({', '.join(f'{name} {count:,}' for name, count in parameters.items() if count)}).",
    ]
    if fingerprint:
        facts.append(
            f"* Fingerprint: `{fingerprint}`, the SHA-256 of `config.json` followed by `model.safetensors`."
        )
    return (
        _HEAD.format(size=size)
        + "\n"
        + "\n".join(rows)
        + "\n\n"
        + "\n".join(facts)
        + "\n"
        + _USAGE.format(size=size)
    )
