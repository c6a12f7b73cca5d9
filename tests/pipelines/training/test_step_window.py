"""What the steps since the last line come to."""

import math
from typing import cast

import torch

from dualtoken.pipelines.training.step_window import StepWindow, WindowOfWorker
from dualtoken.pipelines.training.task import StepCost
from dualtoken.pipelines.training.train_context import SingleProcessContext
from dualtoken.pipelines.training.worker_group import Value, WorkerGroup


class AloneAmongEquals(WorkerGroup):
    """One worker, beside which others have the same values, or none."""

    def __init__(self, other: WindowOfWorker) -> None:
        super().__init__(SingleProcessContext(torch.device("cpu")), 1.0)
        self._other = other

    def gather(self, value: Value) -> list[Value]:
        return [value, cast("Value", self._other)]


def test_a_step_costs_what_the_shares_of_all_workers_do() -> None:
    own = StepCost(3.0, "bfloat16")
    for other, expected in ((StepCost(4.0, "bfloat16"), StepCost(7.0, "bfloat16")), (None, None)):
        group = AloneAmongEquals(WindowOfWorker({}, 0.0, None, other))
        assert StepWindow(group).close(None, own).cost == expected
        assert StepWindow(group).close(None).cost is None


def test_a_mean_is_over_the_steps_that_have_a_finite_value_and_each_window_begins_anew() -> None:
    window = StepWindow(WorkerGroup(SingleProcessContext(torch.device("cpu")), 1.0))
    window.add({"loss": 1.0, "psnr": math.inf, "text": 5.0})
    window.add({"loss": 2.0, "psnr": 20.0})
    window.add({"loss": math.nan, "psnr": 30.0})
    first = window.close(num_lost=None)
    assert first.metrics == {"loss": 1.5, "psnr": 25.0, "text": 5.0}
    window.add({})
    window.add({"loss": math.nan})
    second = window.close(num_lost=7)
    assert math.isnan(second.metrics.pop("loss"))
    assert second.metrics == {}
    assert (second.num_steps, second.num_bad_steps, second.num_lost) == (2, 1, 7)
