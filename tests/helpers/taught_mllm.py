"""The canary's unified model, taught answers about a few scenes and their captions by heart, in seconds."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dualtoken.infra.storage import Store
from dualtoken.model.mllm.saved import OpenedMllm, open_mllm, save_mllm
from dualtoken.pipelines.evaluation.canary import write_canary
from dualtoken.pipelines.evaluation.canary_mllm import write_canary_mllm
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace
from dualtoken.pipelines.images.scene_generator import caption, questions, render, scene

SCENES = 4
"""Held-out scenes of seed 0 that the model is taught about, the first ones."""
_STEPS = 60


class Lesson(NamedTuple):
    """A question about a scene with its answer."""

    scene: int
    question: str
    """Empty where a description is asked for."""
    answer: str


def lessons() -> list[Lesson]:
    """Return the questions for shape, colour and size about all scenes."""
    found: list[Lesson] = []
    for number in range(SCENES):
        for asked in questions(scene("heldout", 0, number)):
            if asked["kind"] in ("shape", "colour", "size"):
                found.append(Lesson(number, asked["question"], asked["answer"]))
    return found


def _descriptions() -> list[Lesson]:
    """Return each scene's caption, which is what a description should be."""
    return [Lesson(number, "", caption(scene("heldout", 0, number))) for number in range(SCENES)]


def lesson_image(number: int) -> Image.Image:
    """Return the picture of a scene."""
    return render(scene("heldout", 0, number))


def canary_mllm(folder: Path) -> ModelPlace:
    """Write the canary's unified model, which knows little."""
    tokenizer, teacher = write_canary(folder)
    return ModelPlace("canary", Store(str(write_canary_mllm(folder, tokenizer))), Store(str(teacher)))


def taught_mllm(folder: Path) -> ModelPlace:
    """Write the same model, taught."""
    place = canary_mllm(folder)
    opened = open_mllm(place.folder.url)
    _teach(opened)
    tokenizer = opened.processor.tokenizer
    assert tokenizer is not None
    save_mllm(folder / "taught", opened.model, tokenizer, Path(place.folder.url) / "vision_tokenizer")
    return place._replace(name="taught", folder=Store(str(folder / "taught")))


def _teach(opened: OpenedMllm) -> None:
    model, processor = opened
    codes = processor.encode_images([lesson_image(number) for number in range(SCENES)])
    taught = [*lessons(), *_descriptions()]
    ids, is_answer = documents(opened, taught)
    images = torch.tensor([lesson.scene for lesson in taught])
    semantic = codes.semantic.flatten(1, 2)[images]
    pixel = codes.pixel.flatten(1, 2)[images]
    targets = ids[:, 1:].masked_fill(~is_answer[:, 1:], -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(_STEPS):
        logits = model(ids, semantic, pixel).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def documents(opened: OpenedMllm, taught: list[Lesson]) -> tuple[Tensor, Tensor]:
    """Return the ids of questions with their answers, padded behind, and which of them are answers'."""
    processor = opened.processor
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    rows: list[Tensor] = []
    marks: list[Tensor] = []
    for lesson in taught:
        prompt = processor.prompt_ids(processor.chat_prompt(lesson.question or None))
        words = tokenizer.encode(lesson.answer, add_special_tokens=False)
        answer = [*words, processor.markers.turn_end[0]]
        rows.append(torch.tensor(prompt + answer))
        marks.append(torch.tensor([False] * len(prompt) + [True] * len(answer)))
    pad = torch.nn.utils.rnn.pad_sequence
    return (
        pad(rows, batch_first=True, padding_value=processor.markers.end),
        pad(marks, batch_first=True, padding_value=False),
    )
