"""Zero-shot classes against open_clip, and nearest neighbours against lists that are sorted in Python."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dualtoken.model.metrics import classification
from dualtoken.model.metrics.classification import (
    _nearest,
    class_embeddings,
    is_in_top,
    is_neighbour_class,
    neighbour_classes,
    zero_shot_prompts,
    zero_shot_scores,
)
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from open_clip import build_zero_shot_classifier

CLASSES = ["cat", "dog", "red panda", "tench", "crane", "drake", "kite"]
TEMPLATES = ["a photo of a {}.", "a drawing of the {}.", "{}"]


class LetterTower:
    """A text tower that embeds the letters of a text, as open_clip's own loop calls it."""

    def __init__(self) -> None:
        self.letters = torch.randn(128, 24, generator=torch.Generator().manual_seed(0))

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([list(text.ljust(40).encode("ascii")) for text in texts])

    def encode_text(self, tokens: Tensor, *, normalize: bool = False) -> Tensor:
        places = torch.linspace(0.5, 2, tokens.shape[1])[:, None]
        embedded = (self.letters[tokens] * places).sum(dim=1)
        return F.normalize(embedded, dim=-1) if normalize else embedded


def embeddings(seed: int, num_rows: int, num_channels: int = 24) -> Tensor:
    return torch.randn(num_rows, num_channels, generator=torch.Generator().manual_seed(seed))


def test_zero_shot_classes_are_those_of_open_clip_sample_by_sample() -> None:
    tower = LetterTower()
    expected = build_zero_shot_classifier(tower, tower.tokenize, CLASSES, TEMPLATES)
    texts = tower.encode_text(tower.tokenize(zero_shot_prompts(CLASSES, TEMPLATES)))
    classes = class_embeddings(texts.unflatten(0, (len(CLASSES), len(TEMPLATES))))
    torch.testing.assert_close(classes.T, expected.double(), rtol=1e-5, atol=1e-6)
    images = embeddings(1, 500)
    logits = 100 * F.normalize(images, dim=-1) @ expected
    labels = torch.randint(0, len(CLASSES), (500,), generator=torch.Generator().manual_seed(2))
    scores = zero_shot_scores(images, classes)
    for k in (1, 5):
        is_right = (logits.topk(k).indices == labels[:, None]).any(dim=1)
        assert is_in_top(scores, labels, k).tolist() == is_right.tolist()
        assert 0 < is_right.double().mean() < 1


def test_prompts_are_all_templates_of_each_class_in_turn() -> None:
    assert zero_shot_prompts(["a", "b"], ["{} x", "y {}"]) == ["a x", "y a", "b x", "y b"]
    with pytest.raises(ValueError, match="template 'a photo' has no place for the class name"):
        zero_shot_prompts(["a"], ["{}", "a photo"])


def test_of_equal_scores_the_first_class_is_in_the_top_and_no_number_never_is() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [math.nan, 1.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    assert is_in_top(scores, labels, 1).tolist() == [True, False, False]
    assert is_in_top(scores, labels, 2).tolist() == [True, True, False]
    assert is_in_top(scores, labels, 5).tolist() == [True, True, False]


def test_labels_of_no_class_are_refused() -> None:
    for label in (-1, 3):
        with pytest.raises(ValueError, match=f"label {label} of row 1 is none of 3 classes"):
            is_in_top(torch.zeros(2, 3), torch.tensor([0, label]), 1)


def sorted_votes(images: Tensor, known: Tensor, labels: list[int], k: int) -> list[int]:
    """Vote by sorting a list for each image."""
    directions = F.normalize(known.double(), dim=-1)
    found = []
    for image in F.normalize(images.double(), dim=-1):
        similarities = (directions @ image).tolist()
        nearest = sorted(range(len(labels)), key=lambda row: (-similarities[row], row))[:k]
        # most_common is stable: of equal counts it gives the class that was met first.
        found.append(Counter(labels[row] for row in nearest).most_common(1)[0][0])
    return found


@pytest.mark.parametrize("k", [1, 2, 5, 20, 60])
def test_neighbours_vote_as_sorted_lists_do_with_ties_and_in_blocks(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "QUERY_BLOCK", 7)
    generator = torch.Generator().manual_seed(3)
    # Few directions along the axes: many known images are equally near, with unlike labels.
    known = torch.eye(6)[torch.randint(0, 6, (60,), generator=generator)]
    labels = torch.randint(0, 4, (60,), generator=generator)
    images = torch.eye(6)[torch.randint(0, 6, (30,), generator=generator)] * 3
    found = neighbour_classes(images, known, labels, k)
    assert found.tolist() == sorted_votes(images, known, labels.tolist(), k)
    truth = torch.randint(0, 4, (30,), generator=generator)
    is_right = is_neighbour_class(images, truth, known, labels, k)
    assert is_right.tolist() == (found == truth).tolist()


def test_the_nearest_are_those_of_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(4)
    for num_values in (3, 50, 1000):
        similarities = torch.randint(0, num_values, (20, 300), generator=generator).double()
        order = similarities.argsort(dim=1, descending=True, stable=True)
        for k in (1, 7, 100, 299, 300):
            assert torch.equal(_nearest(similarities, k), order[:, :k])


def test_neighbours_are_by_angle_and_not_by_length() -> None:
    known = torch.tensor([[100.0, 100.0], [0.1, 0.0]])
    assert neighbour_classes(torch.tensor([[1.0, 0.1]]), known, torch.tensor([7, 8]), 1).tolist() == [8]


def test_an_image_that_is_not_finite_has_no_class_and_known_ones_must_be() -> None:
    images = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [math.inf, 0.0]])
    known = torch.eye(2)
    assert neighbour_classes(images, known, torch.tensor([0, 1]), 1).tolist() == [0, -1, -1]
    known[1, 1] = math.inf
    with pytest.raises(ValueError, match="known images: row 1 holds values that are not finite"):
        neighbour_classes(images, known, torch.tensor([0, 1]), 1)


def test_more_neighbours_than_known_images_are_refused() -> None:
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k={k} with 2 known images: take from 1 to 2"):
            neighbour_classes(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), k)
