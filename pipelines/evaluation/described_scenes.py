"""Lets the unified model describe held-out images, and reads its captions by the scenes' grammar."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dualtoken.model.mllm.saved import OpenedMllm
from dualtoken.pipelines.evaluation.examination import Score
from dualtoken.pipelines.evaluation.scene_readings import CHANCE, AttributeCounter
from dualtoken.pipelines.images.samples import batched
from dualtoken.pipelines.images.scene_grammar import parse_caption
from dualtoken.pipelines.inference.unified import ImageCodes
from dualtoken.pipelines.training.heldout_tokens import HeldoutTokens

MAX_IDS = 64
"""Ids of a description at most."""
BATCH_SIZE = 64
"""Images that are described together."""


def describe(opened: OpenedMllm, codes: ImageCodes, batch_size: int = BATCH_SIZE) -> list[str]:
    """Return the likeliest description of each image.

    The last batch is padded by images that are dropped, so that each is described as in any other batch.
    """
    model, processor = opened
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    prompt = torch.tensor(processor.prompt_ids(processor.chat_prompt(None)), device=model.device)
    ids = prompt.expand(batch_size, -1)
    descriptions: list[str] = []
    for batch in batched(range(len(next(iter(codes.values())))), batch_size):
        images = torch.tensor([*batch, *[batch[-1]] * (batch_size - len(batch))])
        of_batch = {stream: of_stream[images].to(model.device) for stream, of_stream in codes.items()}
        generated = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_IDS,
            generation_mode="text",
            **of_batch,
        )
        assert isinstance(generated, Tensor)
        texts = tokenizer.batch_decode(generated[: len(batch), ids.shape[1] :], skip_special_tokens=True)
        descriptions += [text.strip() for text in texts]
    return descriptions


def description_scores(
    descriptions: Sequence[str], heldout: HeldoutTokens
) -> tuple[tuple[Score, ...], float]:
    """Return the share of objects whose attributes are named at their place, and that of whole captions.

    A description that the grammar does not know names nothing.
    """
    own = AttributeCounter()
    shuffled = AttributeCounter()
    num_parsed = 0
    for sample, text in enumerate(descriptions):
        parsed = parse_caption(text)
        num_parsed += parsed is not None
        other = (sample + 1) % len(descriptions)
        own.add(parsed or (), heldout.descriptions[sample]["objects"])
        shuffled.add(parsed or (), heldout.descriptions[other]["objects"])
    scores: list[Score] = []
    for name, chance in CHANCE.items():
        score = Score(
            name=name,
            accuracy=own.accuracy(name),
            shuffled=shuffled.accuracy(name),
            chance=chance,
            count=own.num_objects,
        )
        scores.append(score)
    return tuple(scores), num_parsed / len(descriptions)
