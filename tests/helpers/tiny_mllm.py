"""A unified model so small that a test builds it in a moment, and packed documents for it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dualtoken.model.config.mllm import DepthHeadConfig, MllmTrainingConfig, TrunkShape
from dualtoken.model.mllm.build import build_mllm
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.losses import MllmBatch
from dualtoken.model.mllm.segments import Segments, separate_turns
from dualtoken.model.mllm.text_tokenizer import text_markers, train_text_tokenizer
from dualtoken.model.randomness import seeded_weights
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config

TEXTS = [
    "a small red ring at the top left and a large blue cross at the top right",
    "what shape is at the top left?",
    "ring",
] * 20
TEXT = train_text_tokenizer(TEXTS, 300)
MARKERS = text_markers(TEXT)
VISION_SHA256 = "5" * 64


def tiny_vision() -> DualTokenizer:
    with seeded_weights(1):
        return DualTokenizer(tiny_tokenizer_config()).eval()


def tiny_config(**changes: object) -> MllmTrainingConfig:
    values: dict[str, object] = {
        "trunk": TrunkShape(width=16, depth=2, num_heads=2, num_key_value_heads=1, mlp_width=32),
        "head": DepthHeadConfig(width=8, num_layers=2, num_heads=2),
        "visual_position": "learned",
        "steps": 4,
        "warmup_steps": 0,
        "learning_rate": 0.01,
    }
    return MllmTrainingConfig.model_validate(values | changes)


def tiny_model(config: MllmTrainingConfig | None = None) -> DualTokenForConditionalGeneration:
    return build_mllm(config or tiny_config(), tiny_vision(), VISION_SHA256, TEXT, seed=2).eval()


class Piece(NamedTuple):
    """A part of a document: ids of text, or an image."""

    ids: Sequence[int] = ()
    """Text; none for an image."""
    is_target: bool = False


IMAGE = Piece()
"""An image that is read."""
DRAWN = Piece(is_target=True)
"""An image whose codes are targets."""


def text(*ids: int) -> Piece:
    return Piece(ids)


def target(*ids: int) -> Piece:
    return Piece(ids, is_target=True)


START = text(MARKERS.image_start)
END = text(MARKERS.image_end)
DRAW = (text(270, 271), START, DRAWN, END)
DESCRIBE = (START, IMAGE, END, target(272, 273, 274))
WORDS = (text(275), target(276, 277))
[USER] = MARKERS.user
FIRST_TURN = (text(USER, 270, 271), target(272))
SECOND_TURN = (text(USER, 273), target(274, 275, 276))
READ = (START, IMAGE, END)


class Document(NamedTuple):
    """A document with the codes of its images, (positions, depth) by stream."""

    pieces: tuple[Piece, ...]
    semantic: Tensor
    pixel: Tensor


def documents(model: DualTokenForConditionalGeneration, *all_pieces: tuple[Piece, ...]) -> list[Document]:
    """Return documents with codes drawn from one seed, the same whatever the model's weights are."""
    generator = torch.Generator().manual_seed(3)
    config = model.config
    made: list[Document] = []
    for pieces in all_pieces:
        num_positions = config.image_positions * sum(not piece.ids for piece in pieces)
        codes: dict[str, Tensor] = {}
        for stream in ("semantic", "pixel"):
            shape = (num_positions, config.depth)
            codes[stream] = torch.randint(config.num_codes[stream], shape, generator=generator)
        made.append(Document(pieces, codes["semantic"], codes["pixel"]))
    return made


def apart_turns(batch: MllmBatch) -> MllmBatch:
    """Return a batch in which turns, which begin with the user's marker, do not see each other."""
    [user] = MARKERS.user
    turns = (batch.input_ids.flatten() == user).nonzero().squeeze(1)
    return batch._replace(segments=separate_turns(batch.segments.cu_seqlens, turns))


def packed(
    model: DualTokenForConditionalGeneration,
    rows: Sequence[Sequence[Document]],
    length: int | None = None,
) -> MllmBatch:
    """Lay out rows of documents, each row padded to one length; all targets are trained at all depths."""
    num_positions = model.config.image_positions
    longest_row = length or max(sum(_length(model, document) for document in row) for row in rows)
    ids: list[int] = []
    is_visual: list[bool] = []
    is_target: list[bool] = []
    visual_targets: list[bool] = []
    bounds = [0]
    for number, row in enumerate(rows, start=1):
        for document in row:
            for piece in document.pieces:
                if piece.ids:
                    ids += piece.ids
                    is_visual += [False] * len(piece.ids)
                    is_target += [piece.is_target] * len(piece.ids)
                else:
                    ids += [MARKERS.end] * num_positions
                    is_visual += [True] * num_positions
                    is_target += [False] * num_positions
                    visual_targets += [piece.is_target] * num_positions
            bounds.append(len(ids))
        padding = number * longest_row - len(ids)
        if padding:
            ids += [MARKERS.end] * padding
            is_visual += [False] * padding
            is_target += [False] * padding
            bounds.append(len(ids))
    shape = (len(rows), longest_row)
    every = [document for row in rows for document in row] or documents(model, ())
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    return MllmBatch(
        input_ids=torch.tensor(ids).view(shape),
        is_visual=torch.tensor(is_visual).view(shape),
        codes={
            "semantic": torch.cat([document.semantic for document in every]),
            "pixel": torch.cat([document.pixel for document in every]),
        },
        segments=Segments(cu_seqlens, int(cu_seqlens.diff().max())),
        text_targets=torch.tensor(is_target).view(shape),
        visual_targets=torch.tensor(visual_targets, dtype=torch.bool),
        all_depths=torch.tensor(visual_targets, dtype=torch.bool),
    )


def _length(model: DualTokenForConditionalGeneration, document: Document) -> int:
    return sum(len(piece.ids) or model.config.image_positions for piece in document.pieces)
