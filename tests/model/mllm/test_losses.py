"""Losses of packed documents: nothing leaks, packing changes nothing, and sums weigh every target alike."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dualtoken.model.config.base import Precision
from dualtoken.model.config.mllm import MllmLossWeights
from dualtoken.model.mllm import losses as losses_module
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.losses import (
    MOST_LOGITS,
    LossSums,
    MllmBatch,
    PackedLosses,
    TargetCounts,
    step_size,
    target_losses,
)
from dualtoken.model.mllm.trainer import split_batch
from dualtoken.model.precision import tower_precision
from tests.helpers.tiny_mllm import (
    DESCRIBE,
    DRAW,
    DRAWN,
    END,
    FIRST_TURN,
    IMAGE,
    READ,
    SECOND_TURN,
    START,
    WORDS,
    apart_turns,
    documents,
    packed,
    target,
    text,
    tiny_config,
    tiny_model,
)

COUNTS = TargetCounts(text=10, visual=100)
INTERLEAVED = (text(270), START, IMAGE, END, target(271), text(272, 273), START, DRAWN, END, target(274))


def losses(model: DualTokenForConditionalGeneration, batch: MllmBatch, **weights: float) -> LossSums:
    return PackedLosses(model, MllmLossWeights(**weights))(batch, COUNTS)


def gradients(model: DualTokenForConditionalGeneration, *batches: MllmBatch) -> dict[str, Tensor]:
    model.zero_grad()
    for batch in batches:
        losses(model, batch).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def flat_hidden(model: DualTokenForConditionalGeneration, batch: MllmBatch) -> Tensor:
    hidden = model.hidden_states(batch.input_ids, batch.is_visual, dict(batch.codes), batch.segments)
    return hidden.detach().flatten(0, 1)


def test_packed_documents_are_documents_one_by_one() -> None:
    model = tiny_model()
    first, second, third = documents(model, DRAW, DESCRIBE, INTERLEAVED)
    together = gradients(model, packed(model, [[first, second], [third]]))
    alone = gradients(model, *(packed(model, [[document]]) for document in (first, second, third)))
    assert_close(together, alone)


def test_a_document_sees_neither_its_neighbours_nor_the_padding() -> None:
    model = tiny_model()
    first, second = documents(model, DRAW, DESCRIBE)
    both = flat_hidden(model, packed(model, [[first, second]], length=80))
    alone = flat_hidden(model, packed(model, [[second]]))
    begin = len(both) - 80 + sum(len(piece.ids) or model.config.image_positions for piece in DRAW)
    torch.testing.assert_close(both[begin : begin + len(alone)], alone, rtol=1e-4, atol=1e-5)
    assert bool(both.isfinite().all())


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # a norm's, in bfloat16
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_turns_apart_are_documents_of_a_turn_each(precision: Precision) -> None:
    model = tiny_model()
    draw, asked, words, once = documents(
        model, DRAW, (*READ, *FIRST_TURN, *SECOND_TURN), WORDS, (*READ, *SECOND_TURN)
    )
    first = asked._replace(pieces=(*READ, *FIRST_TURN))
    second = asked._replace(pieces=(*READ, *SECOND_TURN))
    with tower_precision(torch.device("cpu"), precision):
        together = gradients(model, apart_turns(packed(model, [[draw, asked], [once, words]])))
        alone = gradients(model, *(packed(model, [[each]]) for each in (draw, first, second, once, words)))
    if precision == "float32":
        assert_close(together, alone)
    for name, gradient in together.items():
        assert float((gradient - alone[name]).norm()) <= 0.05 * float(alone[name].norm()) + 1e-6, name


def test_a_step_costs_what_turns_that_are_apart_read() -> None:
    model = tiny_model()
    [asked] = documents(model, (*READ, *FIRST_TURN, *SECOND_TURN))
    image = 2 + model.config.image_positions
    first, second = (sum(len(piece.ids) for piece in turn) for turn in (FIRST_TURN, SECOND_TURN))
    attended = image**2 + first * (image + first) + second * (image + second)
    assert step_size(apart_turns(packed(model, [[asked]]))).attended == attended


def test_parts_of_a_batch_keep_their_turns_apart() -> None:
    model = tiny_model()
    asked, draw, once = documents(model, (*READ, *FIRST_TURN, *SECOND_TURN), DRAW, (*READ, *SECOND_TURN))
    batch = apart_turns(packed(model, [[draw, asked], [once, draw]]))
    whole = gradients(model, batch)
    in_parts = gradients(model, *split_batch(batch, 2))
    assert_close(in_parts, whole)


@pytest.mark.parametrize("stream", ["semantic", "pixel"])
def test_codes_move_nothing_before_their_own_position(stream: str) -> None:
    model = tiny_model()
    [document] = documents(model, DRAW)
    batch = packed(model, [[document]])
    before = flat_hidden(model, batch)
    visual = batch.is_visual.flatten().nonzero().squeeze(1)
    for place in (0, 3, model.config.image_positions - 1):
        for depth in range(model.config.depth):
            codes = {name: ids.clone() for name, ids in batch.codes.items()}
            codes[stream][place, depth] = (codes[stream][place, depth] + 1) % model.config.num_codes[stream]
            after = flat_hidden(model, batch._replace(codes=codes))
            position = int(visual[place])
            assert torch.equal(after[:position], before[:position])
            assert not torch.equal(after[position], before[position]), "every depth is read"


def test_codes_that_are_unread_move_no_state_and_are_predicted_all_the_same() -> None:
    model = tiny_model()
    [document] = documents(model, DRAW)
    batch = packed(model, [[document]])
    unread = torch.zeros(model.config.image_positions, dtype=torch.bool)
    unread[2] = True

    def states_and_loss(code: int) -> tuple[Tensor, float]:
        codes = {name: ids.clone() for name, ids in batch.codes.items()}
        codes["pixel"][2, 0] = code
        hidden = model.hidden_states(batch.input_ids, batch.is_visual, codes, batch.segments, unread)
        return hidden, losses(model, batch._replace(codes=codes, unread=unread)).total.item()

    first_states, first_loss = states_and_loss(1)
    other_states, other_loss = states_and_loss(2)
    assert torch.equal(first_states, other_states)
    assert first_loss != other_loss
    read = model.hidden_states(batch.input_ids, batch.is_visual, dict(batch.codes), batch.segments)
    assert not torch.equal(first_states, read)


@pytest.mark.parametrize("stream", ["semantic", "pixel"])
def test_a_depth_sees_own_codes_before_it_and_never_the_other_stream(stream: str) -> None:
    model = tiny_model()
    head = model.head(stream)
    codes = torch.tensor([[1, 2, 3]])
    hidden = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))

    def states(ids: Tensor) -> Tensor:
        return head(hidden, model.model.code_vectors(stream)(ids)[:, :-1])[0]

    first = states(codes)
    later = states(torch.tensor([[1, 2, 7]]))
    earlier = states(torch.tensor([[1, 4, 3]]))
    assert torch.equal(later, first), "the last code is nobody's input"
    assert torch.equal(earlier[:2], first[:2])
    assert not torch.equal(earlier[2], first[2])


def test_the_state_before_an_image_is_that_of_its_start_marker() -> None:
    """Also where a text, another image and another text come before it."""
    model = tiny_model()
    [document] = documents(model, INTERLEAVED)
    batch = packed(model, [[document]])
    hidden = flat_hidden(model, batch)
    num_positions = model.config.image_positions
    start = 1 + 1 + num_positions + 1 + 1 + 2  # text, marker, image, marker, target, two words
    own = document.pixel[num_positions:]
    before = hidden[start : start + num_positions]
    head = model.head("pixel")
    states = head(before, model.model.code_vectors("pixel")(own)[:, :-1])
    expected = 0.0
    for depth, weight in enumerate(head.classifier_weights()):
        expected += F.cross_entropy((states[:, depth] @ weight.T), own[:, depth], reduction="sum").item()
    found = losses(model, batch).terms["pixel"].item() * COUNTS.visual * model.config.depth
    assert found == pytest.approx(expected, rel=1e-5)


def test_only_targets_have_loss() -> None:
    model = tiny_model()
    for pieces in (DRAW, DESCRIBE, WORDS):
        [document] = documents(model, pieces)
        found = losses(model, packed(model, [[document]])).terms
        assert (found["text"] > 0) == any(piece.ids and piece.is_target for piece in pieces)
        assert (found["pixel"] > 0) == any(piece is DRAWN for piece in pieces)


@pytest.mark.parametrize("pieces", [DRAW, DESCRIBE, WORDS])
def test_all_parameters_have_gradients_whatever_a_batch_holds(pieces: tuple) -> None:
    """A rank without images, or without text, must not leave the others waiting for its gradients."""
    model = tiny_model()
    [document] = documents(model, pieces)
    found = gradients(model, packed(model, [[document]]))
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


def test_a_batch_of_padding_steps() -> None:
    model = tiny_model()
    batch = packed(model, [[], []], length=10)
    assert losses(model, batch).total.item() == 0
    assert all(bool((gradient == 0).all()) for gradient in gradients(model, batch).values())


def test_parts_of_a_batch_add_up_to_it() -> None:
    model = tiny_model()
    rows = [[document] for document in documents(model, DRAW, DESCRIBE, WORDS, INTERLEAVED)]
    batch = packed(model, rows)
    batch = batch._replace(unread=torch.arange(len(batch.visual_targets)) < len(batch.visual_targets) // 2)
    whole = gradients(model, batch)
    for parts in (2, 4):
        assert_close(gradients(model, *split_batch(batch, parts)), whole)
    with pytest.raises(ValueError, match="accumulate_steps=3 does not divide 4 sequences"):
        list(split_batch(batch, 3))


def test_the_loss_of_some_depths_is_on_average_that_of_all() -> None:
    model = tiny_model()
    [document] = documents(model, DRAW)
    batch = packed(model, [[document]])
    expected = losses(model, batch).total.item()
    # Each position is in half of these two choices, so their mean is exact.
    every_other = torch.arange(len(batch.visual_targets)) % 2 == 0
    sums = PackedLosses(model, MllmLossWeights(), depth_share=0.5)
    found = 0.0
    for chosen in (every_other, ~every_other):
        found += sums(batch._replace(all_depths=chosen), COUNTS).total.item() / 2
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("num_states", "num_classes", "width"), [(40, 64, 8), (3, 5, 8), (0, 64, 8)])
@pytest.mark.parametrize("most_logits", [0, MOST_LOGITS])
def test_target_losses_are_plain_cross_entropy(
    num_states: int, num_classes: int, width: int, most_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses_module, "MOST_LOGITS", most_logits)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(num_states, width, generator=generator, requires_grad=True)
    weight = torch.randn(num_classes, width, generator=generator, requires_grad=True)
    ids = torch.randint(num_classes, (num_states,), generator=generator)
    for z_weight in (0.0, 0.1):
        logits = states @ weight.T
        log_partition = logits.logsumexp(dim=1)
        expected = F.cross_entropy(logits, ids, reduction="none") + z_weight * log_partition.square()
        found = target_losses(states, weight, ids, z_weight)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for of_found, of_expected in zip(
            torch.autograd.grad(found.sum(), (states, weight)),
            torch.autograd.grad(expected.sum(), (states, weight)),
            strict=True,
        ):
            torch.testing.assert_close(of_found, of_expected, rtol=1e-4, atol=1e-5)


def test_weights_and_streams_are_as_configured() -> None:
    model = tiny_model(tiny_config(inputs=["pixel"], targets=["pixel"]))
    [document] = documents(model, INTERLEAVED)
    batch = packed(model, [[document]])
    found = losses(model, batch, text=2.0, pixel=0.5)
    assert found.terms.keys() == {"text", "pixel"}
    assert found.total.item() == pytest.approx(
        2 * found.terms["text"].item() + 0.5 * found.terms["pixel"].item(), rel=1e-6
    )
    codes = {**batch.codes, "semantic": (batch.codes["semantic"] + 1) % 5}
    assert losses(model, batch._replace(codes=codes)).total.item() == pytest.approx(
        losses(model, batch).total.item()
    ), "a stream that is not read moves nothing"
    assert math.isfinite(found.total.item())
