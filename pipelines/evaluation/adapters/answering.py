"""Answers of a unified model to prompts with any number of images, a batch at a time.

L ids of a continuation.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dualtoken.model.mllm.processing import DualTokenProcessor
from dualtoken.model.mllm.saved import OpenedMllm
from dualtoken.model.vision.pixels import opaque
from dualtoken.pipelines.images.samples import batched


class Prompt(NamedTuple):
    """What is asked: images, and a question about them."""

    text: str
    images: tuple[Image.Image, ...] = ()


class Likelihood(NamedTuple):
    """How likely a continuation is."""

    log_probability: float
    """Natural logarithm, summed over the continuation's ids."""
    is_likeliest: bool
    """Whether each id is the likeliest after those before it."""


@torch.no_grad()
def answers(
    opened: OpenedMllm,
    prompts: Sequence[Prompt],
    batch_size: int,
    *,
    until: Sequence[str] = (),
    **options: Any,  # noqa: ANN401  (those of transformers' `generate`)
) -> list[str]:
    """Return the model's answers, each cut before the first of the texts in `until`.

    Prompts of like length are answered together. By default the likeliest answer is given, of as many ids as
    the model's folder says.
    """
    found = [""] * len(prompts)
    texts = [chat_text(opened.processor, prompt) for prompt in prompts]
    longest_first = sorted(range(len(prompts)), key=lambda place: -len(texts[place]))
    for places in batched(longest_first, batch_size):
        batch = [texts[place] for place in places]
        images = [image for place in places for image in pictures(prompts[place])]
        for place, text in zip(places, _generated(opened, batch, images, options), strict=True):
            found[place] = _cut(text, until)
    return found


def chat_text(processor: DualTokenProcessor, prompt: Prompt) -> str:
    """Return a prompt in the model's chat template, its images before the question."""
    content: list[dict[str, str]] = [{"type": "image"} for _ in prompt.images]
    content.append({"type": "text", "text": prompt.text})
    messages = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def pictures(prompt: Prompt) -> Iterator[Image.Image]:
    """Yield the images as the tokenizer reads them: RGB, over white."""
    for image in prompt.images:
        yield opaque(image)


def _generated(
    opened: OpenedMllm, texts: Sequence[str], images: Sequence[Image.Image], options: Mapping[str, Any]
) -> list[str]:
    model, processor = opened
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    inputs = processor(texts, images or None).to(model.device)
    num_ids = inputs["input_ids"].shape[1]
    generated = model.generate(**inputs, generation_mode="text", **options)
    assert isinstance(generated, Tensor)
    decoded = tokenizer.batch_decode(generated[:, num_ids:], skip_special_tokens=True)
    return [text.strip() for text in decoded]


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        if stop:
            text = text.partition(stop)[0]
    return text.strip()


@torch.no_grad()
def likelihood(opened: OpenedMllm, prompt: Prompt, continuation: str) -> Likelihood:
    """Return how likely the model is to go on with a continuation."""
    model, processor = opened
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    ids = torch.tensor([tokenizer.encode(continuation.strip(), add_special_tokens=False)])
    if not ids.numel():
        return Likelihood(0.0, is_likeliest=True)
    inputs = processor(chat_text(processor, prompt), list(pictures(prompt)) or None)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    num_ids = ids.shape[1]
    output = model(**inputs.to(model.device), logits_to_keep=num_ids + 1)
    scores: Float[Tensor, "L K"] = output.logits[0, :-1].float().log_softmax(dim=1).cpu()
    own = scores.gather(1, ids[0][:, None])
    return Likelihood(own.sum().item(), bool((scores.argmax(dim=1) == ids[0]).all()))
