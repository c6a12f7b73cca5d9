"""Asks the unified model questions about images, and compares its answers word for word.

The likeliest answer is the expected one just where each of its ids is the likeliest after those before it, so
one pass over the expected answers tells which are right, without generating any.

B images, N positions of an image, D depths; R documents of T ids that are read together, A of them the
answer's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from dualtoken.model.mllm.saved import OpenedMllm
from dualtoken.pipelines.evaluation.examination import Score
from dualtoken.pipelines.evaluation.scene_oracle import ReadObject
from dualtoken.pipelines.evaluation.scene_readings import oracle_answer
from dualtoken.pipelines.images.image_questions import Asked, one_of_each_kind
from dualtoken.pipelines.images.samples import batched
from dualtoken.pipelines.inference.unified import MAX_ANSWER_IDS, ImageCodes, require_room
from dualtoken.pipelines.training.heldout_tokens import HeldoutTokens

BATCH_SIZE = 64
"""Questions that are read together where nothing else is said."""
_ID_STEP = 32
"""Documents are padded to a multiple of so many ids."""
_ANSWER_STEP = 8
"""Answers likewise."""


class AskedQuestion(NamedTuple):
    """A question about a sample."""

    sample: int
    asked: Asked


def chosen_questions(heldout: HeldoutTokens) -> list[AskedQuestion]:
    """Return one question of each kind about each sample."""
    chosen: list[AskedQuestion] = []
    for sample, questions in enumerate(heldout.questions):
        for asked in one_of_each_kind(questions, heldout.keys[sample]):
            chosen.append(AskedQuestion(sample, asked))
    return chosen


def question_scores(
    opened: OpenedMllm,
    heldout: HeldoutTokens,
    questions: Sequence[AskedQuestion],
    readings: Sequence[Sequence[ReadObject]],
) -> tuple[Score, ...]:
    """Return the accuracy by kind of question; `readings` are the oracle's of the reconstructions."""
    num_samples = len(heldout.captions)
    asked_all = [question.asked for question in questions]
    own = are_answered(opened, heldout.codes(), asked_all, [question.sample for question in questions])
    other = [(question.sample + 1) % num_samples for question in questions]
    shuffled = are_answered(opened, heldout.codes(), asked_all, other)
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


class _Document(NamedTuple):
    """A question about an image with its answer, as ids."""

    place: int
    """Place of the question among all."""
    ids: list[int]
    num_answer: int
    """Ids of the answer and its end, the last ones."""

    def shape(self) -> tuple[int, int]:
        """Return the numbers of ids that document and answer are padded to."""
        return _rounded_up(len(self.ids), _ID_STEP), _rounded_up(self.num_answer, _ANSWER_STEP)


@torch.no_grad()
def are_answered(
    opened: OpenedMllm,
    codes: ImageCodes,
    questions: Sequence[Asked],
    images: Sequence[int],
    batch_size: int = BATCH_SIZE,
) -> list[bool]:
    """Tell of each question whether the expected answer is the likeliest, asked about these images.

    Documents are read in batches of one shape, which follows from the document alone, so that an answer does
    not depend on the questions beside it.
    """
    by_shape: dict[tuple[int, int], list[_Document]] = {}
    for place, asked in enumerate(questions):
        document = _document(opened, place, asked)
        by_shape.setdefault(document.shape(), []).append(document)
    are_right = [False] * len(questions)
    for shape, documents in by_shape.items():
        for batch in batched(documents, batch_size):
            padded = [*batch, *[batch[-1]] * (batch_size - len(batch))]
            of_batch = torch.tensor([images[document.place] for document in padded])
            read = {stream: codes[stream][of_batch] for stream in opened.model.config.inputs}
            for document, is_right in zip(batch, _answered(opened, read, padded, *shape), strict=False):
                are_right[document.place] = is_right
    return are_right


def _document(opened: OpenedMllm, place: int, asked: Asked) -> _Document:
    processor = opened.processor
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    prompt = processor.prompt_ids(processor.chat_prompt(asked.question))
    require_room(opened, len(prompt) + MAX_ANSWER_IDS, f"the question {asked.question[:40]!r}")
    answer = tokenizer.encode(asked.answer, add_special_tokens=False)
    answer += processor.markers.turn_end[:1] or (processor.markers.end,)
    return _Document(place, [*prompt, *answer], len(answer))


def _answered(
    opened: OpenedMllm,
    codes: ImageCodes,
    documents: Sequence[_Document],
    num_ids: int,
    num_answer: int,
) -> list[bool]:
    """Tell of each document whether each id of its answer is the likeliest, padded to these numbers."""
    model = opened.model
    padding = opened.processor.markers.end
    rows = [document.ids + [padding] * (num_ids - len(document.ids)) for document in documents]
    ids = torch.tensor(rows, device=model.device)
    own = {stream: of_stream.flatten(0, 1).to(model.device) for stream, of_stream in codes.items()}
    embedded = model.model.embed(ids, ids == model.config.image_token_id, model.model.code_sums(own))
    # What follows a document is padding, which a causal trunk does not see before it.
    hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    firsts = torch.tensor([len(document.ids) - document.num_answer for document in documents])
    places = firsts[:, None] + torch.arange(num_answer)
    is_answer = torch.arange(num_answer) < torch.tensor([[document.num_answer] for document in documents])
    # Places beyond the end belong to no answer.
    places = places.clamp(max=num_ids - 1).to(model.device)
    wanted = ids.gather(1, places)
    before = hidden.gather(1, (places - 1)[..., None].expand(-1, -1, hidden.shape[-1]))
    logits = model.lm_head(before)
    logits[..., _never_said(opened)] = -torch.inf
    is_hit: Bool[Tensor, "R A"] = logits.argmax(dim=2) == wanted
    return (is_hit | ~is_answer.to(model.device)).all(dim=1).tolist()


def _never_said(opened: OpenedMllm) -> list[int]:
    """Return the ids that the model's generation of text leaves out: the markers of images."""
    config = opened.model.generation_config
    assert config is not None
    return list(config.suppress_tokens or ())


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step
