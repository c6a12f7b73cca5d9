"""Questions about scenes are right where an embedding says just what was drawn."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from dualtoken.pipelines.images.scene_generator import canonical_caption, describe, scene
from dualtoken.pipelines.inference.scene_questions import SceneQuestions
from dualtoken.pipelines.inference.text_embeddings import TEXT_BATCH, TextEmbeddings

SCENES = [scene("heldout", 0, index) for index in range(4)]


def one_hot(captions: list[str], known: list[str]) -> torch.Tensor:
    """Embed each caption as a direction of its own."""
    return F.one_hot(torch.tensor([known.index(caption) for caption in captions]), len(known)).float()


def test_an_image_that_says_its_caption_is_right_and_one_that_says_anothers_is_not() -> None:
    questions = SceneQuestions([describe(drawn) for drawn in SCENES])
    captions = questions.captions
    assert len(captions) == len(set(captions)) == 27 * len(SCENES)
    true = [canonical_caption(drawn.objects) for drawn in SCENES]
    texts = one_hot(captions, captions)
    of_true = questions.shares(one_hot(true, captions), texts)
    assert {attribute: shares.tolist() for attribute, shares in of_true.items()} == {
        "shape": [1, 1, 1, 1],
        "colour": [1, 1, 1, 1],
        "size": [1, 1, 1, 1],
    }

    # As if the first object of the second scene were drawn in another shape.
    first = SCENES[1].objects[0]
    other = first._replace(shape="ring" if first.shape != "ring" else "cross")
    wrong = [true[0], canonical_caption([other, *SCENES[1].objects[1:]]), *true[2:]]
    found = questions.shares(one_hot(wrong, captions) + 0.5 * one_hot(true, captions), texts)
    assert found["shape"].tolist() == [1, 0.5, 1, 1]


def test_questions_about_one_attribute_need_its_captions_alone_and_are_answered_alike() -> None:
    descriptions = [describe(drawn) for drawn in SCENES]
    questions = SceneQuestions(descriptions)
    of_colour = SceneQuestions(descriptions, ("colour",))
    known = questions.captions
    assert set(of_colour.captions) < set(known)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(SCENES), len(known), generator=generator)
    shares = of_colour.shares(images, one_hot(of_colour.captions, known))
    assert list(shares) == ["colour"]
    assert torch.equal(shares["colour"], questions.shares(images, one_hot(known, known))["colour"])


def test_each_text_is_embedded_once_in_batches_of_one_size() -> None:
    asked: list[list[str]] = []

    def embed(texts: Sequence[str]) -> torch.Tensor:
        asked.append(list(texts))
        return torch.tensor([[float(text)] for text in texts])

    embeddings = TextEmbeddings(embed)
    numbers = [str(number) for number in range(TEXT_BATCH + 1)]
    assert embeddings.of(["1", "0", "1"]).flatten().tolist() == [1, 0, 1]
    assert embeddings.of(numbers).flatten().tolist() == list(range(TEXT_BATCH + 1))
    assert [len(batch) for batch in asked] == [TEXT_BATCH, TEXT_BATCH]
    assert not {"0", "1"} & set(asked[1])
