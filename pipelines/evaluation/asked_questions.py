"""Asks the unified model questions about held-out images, and compares its answers word for word.

The likeliest answer is the expected one just where each of its ids is the likeliest after those before it, so
one pass over the expected answers tells which are right, without generating any.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dualtoken.model.mllm.attention import Segments
from dualtoken.model.mllm.saved import OpenedMllm
from dualtoken.pipelines.evaluation.examination import Score
from dualtoken.pipelines.evaluation.scene_oracle import ReadObject
from dualtoken.pipelines.evaluation.scene_readings import oracle_answer
from dualtoken.pipelines.training.heldout_tokens import Asked, HeldoutTokens

BATCH_POSITIONS = 16384
"""Positions that are read together."""


class AskedQuestion(NamedTuple):
    """A question about a sample."""

    sample: int
    asked: Asked


def chosen_questions(heldout: HeldoutTokens) -> list[AskedQuestion]:
    """Return one question of each kind about each sample, in turn the first, the second and so on."""
    chosen: list[AskedQuestion] = []
    for sample, questions in enumerate(heldout.questions):
        by_kind: dict[str, list[Asked]] = {}
        for asked in questions:
            by_kind.setdefault(asked.kind, []).append(asked)
        for of_kind in by_kind.values():
            chosen.append(AskedQuestion(sample, of_kind[sample % len(of_kind)]))
    return chosen


def question_scores(
    opened: OpenedMllm,
    heldout: HeldoutTokens,
    questions: Sequence[AskedQuestion],
    readings: Sequence[Sequence[ReadObject]],
) -> tuple[Score, ...]:
    """Return the accuracy by kind of question; `readings` are the oracle's of the reconstructions."""
    num_samples = len(heldout.captions)
    own = are_answered(opened, heldout, questions, [asked.sample for asked in questions])
    other = [(asked.sample + 1) % num_samples for asked in questions]
    shuffled = are_answered(opened, heldout, questions, other)
    kinds = sorted({asked.asked.kind for asked in questions})
    scores: list[Score] = []
    for kind in kinds:
        places = [place for place, asked in enumerate(questions) if asked.asked.kind == kind]
        answers = {questions[place].asked.answer for place in places}
        score = Score(
            name=kind or "answer",
            accuracy=_share(own, places),
            shuffled=_share(shuffled, places),
            chance=1 / len(answers),
            ceiling=_ceiling([questions[place] for place in places], readings),
            count=len(places),
        )
        scores.append(score)
    return tuple(scores)


def _share(are_right: Sequence[bool], places: Sequence[int]) -> float:
    return sum(are_right[place] for place in places) / len(places)


def _ceiling(questions: Sequence[AskedQuestion], readings: Sequence[Sequence[ReadObject]]) -> float | None:
    """Return how often the oracle's reading answers; None for kinds that it cannot answer."""
    if not readings:
        return None
    num_right = 0
    for sample, asked in questions:
        answer = oracle_answer(readings[sample], asked.kind, asked.question)
        if answer is None:
            return None
        num_right += answer == asked.answer
    return num_right / len(questions)


@torch.no_grad()
def are_answered(
    opened: OpenedMllm, heldout: HeldoutTokens, questions: Sequence[AskedQuestion], images: Sequence[int]
) -> list[bool]:
    """Tell of each question whether the expected answer is the likeliest, asked about these images."""
    are_right: list[bool] = []
    for batch in _batches(opened, questions):
        first = len(are_right)
        chosen = torch.tensor(list(images[first : first + len(batch)]))
        are_right += _answered(opened, heldout, batch, chosen)
    return are_right


class _Document(NamedTuple):
    """A question with its answer, as ids."""

    ids: list[int]
    num_answer: int
    """Ids of the answer and its end, the last ones."""


def _batches(opened: OpenedMllm, questions: Sequence[AskedQuestion]) -> Iterator[list[_Document]]:
    batch: list[_Document] = []
    num_positions = 0
    for _, asked in questions:
        document = _document(opened, asked)
        if batch and num_positions + len(document.ids) > BATCH_POSITIONS:
            yield batch
            batch, num_positions = [], 0
        batch.append(document)
        num_positions += len(document.ids)
    if batch:
        yield batch


def _document(opened: OpenedMllm, asked: Asked) -> _Document:
    processor = opened.processor
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    prompt = processor.prompt_ids(processor.chat_prompt(asked.question))
    answer = tokenizer.encode(asked.answer, add_special_tokens=False)
    answer += processor.markers.turn_end[:1] or (processor.markers.end,)
    return _Document([*prompt, *answer], len(answer))


def _answered(
    opened: OpenedMllm, heldout: HeldoutTokens, documents: Sequence[_Document], images: Tensor
) -> list[bool]:
    model = opened.model
    lengths = [len(document.ids) for document in documents]
    ids = torch.tensor([id_ for document in documents for id_ in document.ids], device=model.device)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int().to(model.device)
    codes: dict[str, Tensor] = {}
    for stream in model.config.inputs:
        codes[stream] = heldout.codes()[stream][images].flatten(0, 1).to(model.device)
    hidden = model.hidden_states(
        ids[None], (ids == model.config.image_token_id)[None], codes, Segments(bounds, max(lengths))
    )[0]
    is_answer = torch.zeros(len(ids), dtype=torch.bool)
    for end, document in zip(bounds[1:].tolist(), documents, strict=True):
        is_answer[end - document.num_answer : end] = True
    places = is_answer.nonzero().squeeze(1).to(model.device)
    likeliest = model.lm_head(hidden[places - 1]).argmax(dim=1)
    is_hit = (likeliest == ids[places]).tolist()
    are_right: list[bool] = []
    first = 0
    for document in documents:
        are_right.append(all(is_hit[first : first + document.num_answer]))
        first += document.num_answer
    return are_right
