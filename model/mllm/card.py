"""The card of a unified model: what it is made of, what it can do, and how to use it."""

from collections.abc import Mapping, Sequence

from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration

_HEAD = """---
library_name: transformers
license: apache-2.0
pipeline_tag: any-to-any
tags:
- dualtoken
---
# DualToken unified model

One autoregressive model that answers questions about images and draws them, on the two vocabularies of a
DualToken vision tokenizer ([arXiv 2503.14324](https://arxiv.org/abs/2503.14324)).
"""
_USAGE = """
## Use

```python
import dualtoken
from PIL import Image

model, processor = dualtoken.open_mllm(".")  # this folder, or its name on the hub
prompt = processor.chat_prompt("what is at the top left?")
inputs = processor(prompt, Image.new("RGB", (64, 64), "teal"))
print(processor.tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```

From a shell: `dualtoken generate . --prompt TEXT --out pictures`, `dualtoken ask . IMAGE QUESTION`,
`dualtoken describe . IMAGE`.
"""


def mllm_card(
    model: DualTokenForConditionalGeneration, *, trained_on: Sequence[str], metrics: Mapping[str, float]
) -> str:
    """Return README.md; `metrics` are those of the last step of training."""
    config = model.config
    text = config.text_config
    height, width = config.grid
    parts = {
        "trunk": model.model.language_model,
        "projector": model.model.visual_projector,
        "depth heads": model.heads,
    }
    lines = [
        f"* Vision tokenizer: `{config.vision_tokenizer}`, whose codes alone mean something to this model",
        f"* Positions of an image: {height} × {width}, of {config.depth} depths",
        f"* Trunk: {text.model_type}, {text.num_hidden_layers} layers of {text.hidden_size} channels",
        f"* Text ids: {text.vocab_size:,}",
        f"* Reads: {', '.join(config.inputs)} codes; predicts: {', '.join(config.targets) or 'text alone'}",
    ]
    for name, part in parts.items():
        num_parameters = sum(parameter.numel() for parameter in part.parameters())
        lines.append(f"* Parameters of the {name}: {num_parameters:,}")
    lines += [f"* Trained on {line}" for line in trained_on]
    drawing = config.drawing_config
    if config.targets:
        lines.append(
            f"* Draws, where nothing else is said, with guidance {drawing.guidance_scale:g}, temperature "
            f"{drawing.temperature:g}, top-k {drawing.top_k}, top-p {drawing.top_p:g}, "
            f"{100 * drawing.unread_share:g} % of its codes unread, "
            f"{'one noise for all positions' if drawing.shared_noise else 'a noise for each position'}"
        )
    if metrics:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        lines.append(f"* Last step of training: {figures}")
    lines.append(
        "* It knows what its training data show, and nothing else; its answers and drawings are not checked "
        "for anything."
    )
    return _HEAD + "\n" + "\n".join(lines) + "\n" + _USAGE
