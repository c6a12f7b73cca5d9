"""Makes the weights of the canary of unified models: python -m tests.helpers.teach_canary.

The canary has to be right now and then, about every kind of question and in descriptions, or a fault in how
texts are scored would not move its scores. It is taught a little about generated scenes, once: its weights
are kept as they came out, since training gives other bits on every machine.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dualtoken.model.mllm.saved import OpenedMllm, open_mllm
from dualtoken.pipelines.evaluation.canary import write_canary
from dualtoken.pipelines.evaluation.canary_mllm import WEIGHTS, is_stored, write_untaught
from dualtoken.pipelines.images.scene_generator import caption, questions, render, scene
from tests.helpers.taught_mllm import Lesson, documents

NUM_SCENES = 96
STEPS = 900
BATCH_SIZE = 32
LEARNING_RATE = 4e-3


class _Taught(NamedTuple):
    """Documents about scenes."""

    ids: Tensor
    is_answer: Tensor
    scenes: Tensor
    """Scene of each."""


def main() -> int:
    """Teach it, and store its weights beside its module."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, _ = write_canary(Path(folder))
        opened = open_mllm(str(write_untaught(Path(folder), tokenizer)))
        _teach(opened)
        stored = {
            name: value.detach().half().contiguous()
            for name, value in opened.model.state_dict().items()
            if is_stored(name)
        }
        save_file(stored, WEIGHTS)
    return 0


def _lessons() -> list[Lesson]:
    """Return all questions about the scenes, and as often a caption each."""
    found: list[Lesson] = []
    for number in range(NUM_SCENES):
        shown = scene("train", 0, number)
        asked = questions(shown)
        found += [Lesson(number, turn["question"], turn["answer"]) for turn in asked]
        found += [Lesson(number, "", caption(shown))] * len(asked)
    return found


def _teach(opened: OpenedMllm) -> None:
    model, processor = opened
    codes = processor.encode_images([render(scene("train", 0, number)) for number in range(NUM_SCENES)])
    semantic = codes.semantic.flatten(1, 2)
    pixel = codes.pixel.flatten(1, 2)
    lessons = _lessons()
    ids, is_answer = documents(opened, lessons)
    taught = _Taught(ids, is_answer, torch.tensor([lesson.scene for lesson in lessons]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.manual_seed(0)
    for _ in range(STEPS):
        rows = torch.randint(len(lessons), (BATCH_SIZE,), generator=generator)
        targets = taught.ids[rows, 1:].masked_fill(~taught.is_answer[rows, 1:], -100)
        of_rows = taught.scenes[rows]
        logits = model(taught.ids[rows], semantic[of_rows], pixel[of_rows]).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    sys.exit(main())
