"""What codes say of an image, in the teacher's space of words, beside what the teacher itself says.

B images a batch without its padding, T texts, C classes, E channels of an embedding.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dualtoken.model.metrics.classification import class_embeddings, zero_shot_prompts, zero_shot_scores
from dualtoken.pipelines.evaluation.closeness import as_picture
from dualtoken.pipelines.evaluation.evaluated_batch import EvaluatedBatch
from dualtoken.pipelines.images.scene_generator import Attribute
from dualtoken.pipelines.inference.networks import TeacherRunner, TokenizerRunner
from dualtoken.pipelines.inference.scene_questions import SceneQuestions
from dualtoken.pipelines.inference.text_embeddings import TextEmbeddings


class Understanding:
    """Embeds images, by codes or by the teacher, and texts; each text once."""

    def __init__(
        self,
        tokenizer: TokenizerRunner,
        teacher: TeacherRunner,
        class_names: Sequence[str],
        templates: Sequence[str],
    ) -> None:
        self._tokenizer = tokenizer
        self._teacher = teacher
        self._class_names = class_names
        self._templates = templates
        self._texts = TextEmbeddings(teacher.texts)
        self._classes: Tensor | None = None

    def images(self, batch: EvaluatedBatch, *, by_teacher: bool) -> Float[Tensor, "B E"]:
        """Return unit embeddings of images: the teacher's own, or those of their semantic codes."""
        if by_teacher:
            embeddings = self._teacher.images(self._teacher.levels(batch.pictures))
        else:
            embeddings = self._teacher.project(self._tokenizer.embed(batch.codes.semantic))
        return embeddings[: batch.size].cpu()

    def reconstructions(self, batch: EvaluatedBatch) -> Float[Tensor, "B E"]:
        """Return the teacher's unit embeddings of reconstructions."""
        pictures = [as_picture(image) for image in batch.reconstructions]
        return self._teacher.images(self._teacher.levels(pictures))[: batch.size].cpu()

    def texts(self, captions: Sequence[str]) -> Float[Tensor, "T E"]:
        """Return unit embeddings of texts."""
        return self._texts.of(captions)

    def attribute_shares(
        self, batch: EvaluatedBatch, images: Float[Tensor, "B E"], attribute: Attribute
    ) -> np.ndarray[Any, Any]:
        """Return the share of each scene's objects whose caption is nearest of some with other words."""
        descriptions = [json.loads(sample.description) for sample in batch.samples]
        questions = SceneQuestions(descriptions, (attribute,))
        return questions.shares(images, self.texts(questions.captions))[attribute].numpy()

    def is_class_right(self, batch: EvaluatedBatch, images: Float[Tensor, "B E"]) -> np.ndarray[Any, Any]:
        """Return 1 for each image whose own class is the nearest of all by name, else 0."""
        if self._classes is None:
            prompts = zero_shot_prompts(self._class_names, self._templates)
            self._classes = class_embeddings(self.texts(prompts).unflatten(0, (len(self._class_names), -1)))
        labels = torch.tensor([sample.label for sample in batch.samples])
        nearest = zero_shot_scores(images, self._classes).argmax(dim=1)
        return (nearest == labels).double().numpy()
