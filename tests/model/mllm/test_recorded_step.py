"""A recorded step of drawing: Python runs it twice, and the picture is the one of steps run plainly."""

import pytest
import torch
from torch import Tensor

from dualtoken.model.mllm.generation import draw_codes
from dualtoken.model.mllm.recorded_step import RecordedStep, Step, run_plainly
from dualtoken.model.mllm.sampling import Sampling
from tests.helpers.tape import record_on_tape
from tests.model.mllm.test_generation import LONG, SHORT, START, noise, trained_model


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0), Sampling(0.7, top_k=3, top_p=0.9)])
def test_a_recorded_step_draws_the_same_picture(scale: float, sampling: Sampling) -> None:
    model = trained_model()
    unread = torch.rand(2, model.config.image_positions, generator=torch.Generator().manual_seed(0)) < 0.5
    drawn: list[dict[str, Tensor]] = []
    for record in (run_plainly, record_on_tape):
        drawn.append(
            draw_codes(
                model,
                [SHORT, LONG],
                noise(model, 0, 1),
                unconditional=[START],
                guidance_scale=scale,
                sampling=sampling,
                unread=unread,
                record=record,
            )
        )
    plain, recorded = drawn
    for stream, codes in plain.items():
        assert torch.equal(codes, recorded[stream])


def test_the_step_itself_runs_twice_however_often_it_is_called() -> None:
    runs: list[int] = []
    total = torch.zeros(1)

    def step(added: Tensor) -> Tensor:
        runs.append(1)
        return total.add_(added).clone()

    recorded = RecordedStep(step, record_on_tape)
    results = [recorded(torch.tensor([float(number)])) for number in (1, 2, 3, 4)]
    assert torch.cat(results).tolist() == [1, 3, 6, 10], "earlier results are not overwritten"
    assert len(runs) == 2


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda codes: codes + int(codes.sum()), id="reads a value"),
        pytest.param(lambda codes: codes[codes > 0], id="sizes by values"),
        pytest.param(lambda codes: codes + torch.tensor(1), id="copies from Python"),
    ],
)
def test_the_tape_refuses_what_a_graph_can_not_hold(step: Step) -> None:
    recorded = RecordedStep(step, record_on_tape)
    recorded(torch.ones(2))
    with pytest.raises(AssertionError):
        recorded(torch.ones(2))


@pytest.mark.gpu
def test_a_graph_draws_the_same_picture_on_a_gpu() -> None:
    model = trained_model()
    torch.nn.Module.to(model, "cuda")
    unread = torch.rand(2, model.config.image_positions) < 0.5
    plain, recorded = (
        draw_codes(
            model,
            [SHORT, LONG],
            noise(model, 0, 1),
            unconditional=[START],
            guidance_scale=3.0,
            unread=unread,
            record=record,
        )
        for record in (run_plainly, None)
    )
    for stream, codes in plain.items():
        assert torch.equal(codes, recorded[stream])
