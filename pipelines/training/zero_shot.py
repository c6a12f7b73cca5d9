"""Zero-shot accuracy of held-out scenes while a model trains: whether embeddings tell their attributes.

It is that of the report (`pipelines/inference/scene_questions.py`). B scenes, T captions, E channels of an
embedding, W of a tower.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from dualtoken.model.teacher.teacher import load_teacher
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.inference.scene_questions import OBJECTS_PER_SCENE, SceneQuestions
from dualtoken.pipelines.inference.text_embeddings import EmbedTexts, TextEmbeddings
from dualtoken.pipelines.training.heldout_images import HeldoutBatch, sums_of
from dualtoken.pipelines.training.task import Sum

ZERO_SHOT = "zero_shot"
"""Name of the mean over the attributes; each attribute's own is `zero_shot_` with its name."""


def zero_shot_sums(
    batch: HeldoutBatch, images: Float[Tensor, "B E"], embed_texts: EmbedTexts
) -> dict[str, Sum]:
    """Return the accuracy on the scenes of a batch, over their objects; none where it has no scenes.

    `images` are the embeddings of all its images. Asks for the embeddings of at most 27 texts a scene.
    """
    if not batch.scenes:
        return {}
    questions = SceneQuestions(batch.descriptions)
    texts = embed_texts(questions.captions)
    scenes = images[torch.tensor(batch.scenes, device=images.device)].float()
    shares = questions.shares(scenes.to(texts.device), texts)
    means = {f"{ZERO_SHOT}_{attribute}": of_scenes.mean().item() for attribute, of_scenes in shares.items()}
    means[ZERO_SHOT] = sum(means.values()) / len(means)
    return sums_of(means, OBJECTS_PER_SCENE * len(batch.scenes))


class FrozenTeacher:
    """The teacher that a tokenizer is judged by: it stays on the CPU once it has embedded the texts."""

    def __init__(self, job: StageJob, device: torch.device, scratch: Path) -> None:
        # Its weights are drawn before they are read.
        with torch.random.fork_rng(devices=()):
            self._teacher = load_teacher(job.input("teacher").local_folder(scratch / "teacher"))
        self._device = device
        self._texts = TextEmbeddings(self._teacher.embed_texts)

    def embed(self, batches: Sequence[HeldoutBatch]) -> None:
        """Embed all captions that batches ask for, on the device."""
        self._teacher.to(self._device)
        for batch in batches:
            if batch.scenes:
                self._texts.of(SceneQuestions(batch.descriptions).captions)
        self._teacher.cpu()

    def sums(self, batch: HeldoutBatch, pooled: Float[Tensor, "B W"]) -> dict[str, Sum]:
        """Return the accuracy of a tokenizer's pooled outputs, as `zero_shot_sums`."""
        return zero_shot_sums(batch, self._teacher.project(pooled.float().cpu()), self._texts.of)
