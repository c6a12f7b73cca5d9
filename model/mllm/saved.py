"""Saves and opens the folder of a model: weights, both tokenizers and the card, in Hugging Face's layout.

config.json  generation_config.json  model.safetensors  README.md
tokenizer.json  tokenizer_config.json  chat_template.jinja
vision_tokenizer/{config.json, model.safetensors}
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from dualtoken.model.config.mllm import MODEL_TYPE
from dualtoken.model.hub.json_files import read_json
from dualtoken.model.hub.model_name import CONFIG, VISION_FOLDER, WEIGHTS
from dualtoken.model.hub.saved_model import CARD, find_folder
from dualtoken.model.mllm.card import mllm_card
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.processing import DualTokenProcessor
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers import GenerationConfig, PreTrainedTokenizerBase
    from transformers.utils import logging as transformers_logging


class OpenedMllm(NamedTuple):
    """A model ready for use."""

    model: DualTokenForConditionalGeneration
    processor: DualTokenProcessor


def save_mllm(
    folder: Path,
    model: DualTokenForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    vision_folder: Path,
    *,
    trained_on: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Write a model's folder; `vision_folder` is that of the vision tokenizer, which is copied whole."""
    model.generation_config = answering_config(model)
    with _no_progress_bar():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    target = folder / VISION_FOLDER
    target.mkdir()
    for name in (CONFIG, WEIGHTS, CARD):
        if (vision_folder / name).is_file():
            shutil.copyfile(vision_folder / name, target / name)
    card = mllm_card(model, trained_on=trained_on, metrics=metrics or {})
    (folder / CARD).write_text(card, encoding="utf-8")


def answering_config(model: DualTokenForConditionalGeneration) -> GenerationConfig:
    """Return how a saved model answers by default: the likeliest text, without markers of images."""
    config = model.config
    images = [config.image_token_id, config.image_start_id, config.image_end_id]
    return GenerationConfig(
        do_sample=False,
        eos_token_id=[config.eos_token_id, *config.turn_end_ids],
        pad_token_id=config.pad_token_id,
        suppress_tokens=images,
        guidance_scale=None,
        max_new_tokens=64,
    )


def open_mllm(name: str, device: str | torch.device = "cpu") -> OpenedMllm:
    """Open a folder or hub repository of `save_mllm`.

    Raises ValueError where it is none, lacks a part, or holds parts of two models.
    """
    folder = find_folder(name)
    values = read_json(folder / CONFIG)
    if values.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{folder}/{CONFIG} has model_type {values.get('model_type')!r}, not {MODEL_TYPE!r}: "
            "name the folder of a unified model, such as what `dualtoken mllm` wrote"
        )
    processor = DualTokenProcessor.from_pretrained(folder)
    with _no_progress_bar():
        model = DualTokenForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        )
    found = vision_digest(folder / VISION_FOLDER)
    if found != model.config.vision_tokenizer:
        raise ValueError(
            f"{folder} reads codes of tokenizer {model.config.vision_tokenizer[:12]}, its {VISION_FOLDER} is "
            f"{found[:12]}: fetch the folder again"
        )
    vision = processor.vision
    assert vision is not None
    vision.to(device)
    torch.nn.Module.to(model, device)
    return OpenedMllm(model.eval(), processor)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers' bars over files of a moment from the terminal."""
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()


def vision_digest(folder: Path) -> str:
    """Return the SHA-256 of a vision tokenizer's weights, by which models name it."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
