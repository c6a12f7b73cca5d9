"""Zero-shot questions about scenes: which of some captions, unlike in one attribute of one object, is true.

B scenes, T unlike captions, Q questions of C captions each, E channels of an embedding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dualtoken.pipelines.images.scene_generator import Attribute, attribute_choices

ATTRIBUTES: tuple[Attribute, ...] = ("shape", "colour", "size")
OBJECTS_PER_SCENE = 2


class _Questions(NamedTuple):
    """Questions about one attribute: one for each object, scene after scene."""

    candidates: Int[Tensor, "Q C"]
    """Numbers of the captions to choose from."""
    right: Int[Tensor, " Q"]
    """Place of the true one, 0 to C - 1."""


class SceneQuestions:
    """Questions about attributes of every object of scenes."""

    def __init__(
        self, descriptions: Sequence[dict[str, Any]], attributes: Sequence[Attribute] = ATTRIBUTES
    ) -> None:
        self._number_by_caption: dict[str, int] = {}
        self._questions: dict[Attribute, _Questions] = {}
        for attribute in attributes:
            self._questions[attribute] = self._about(descriptions, attribute)

    def _about(self, descriptions: Sequence[dict[str, Any]], attribute: Attribute) -> _Questions:
        candidates: list[list[int]] = []
        right: list[int] = []
        for description in descriptions:
            for index in range(OBJECTS_PER_SCENE):
                captions, place = attribute_choices(description, index, attribute)
                candidates.append([self._number(caption) for caption in captions])
                right.append(place)
        return _Questions(torch.tensor(candidates), torch.tensor(right))

    def _number(self, caption: str) -> int:
        return self._number_by_caption.setdefault(caption, len(self._number_by_caption))

    @property
    def captions(self) -> list[str]:
        """The unlike captions of all questions, 27 a scene at most, whose embeddings `shares` takes."""
        return list(self._number_by_caption)

    def shares(
        self, images: Float[Tensor, "B E"], captions: Float[Tensor, "T E"]
    ) -> dict[Attribute, Float64[Tensor, " B"]]:
        """Return by attribute the share of each scene's objects whose true caption is nearest to its image.

        Chance is 1/6 for shape, 1/8 for colour and 1/2 for size. The shares are on the CPU.
        """
        of_objects = images.repeat_interleave(OBJECTS_PER_SCENE, dim=0)
        found: dict[Attribute, Float64[Tensor, " B"]] = {}
        for attribute, questions in self._questions.items():
            candidates = captions[questions.candidates.to(captions.device)].double()
            nearest = torch.einsum("qce,qe->qc", candidates, of_objects.double()).argmax(dim=1)
            is_right = (nearest.cpu() == questions.right).double()
            found[attribute] = is_right.unflatten(0, (-1, OBJECTS_PER_SCENE)).mean(dim=1)
        return found
