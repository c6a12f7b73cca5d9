"""Operations of a training's steps, and the share of a GPU's rate that they use."""

from typing import NamedTuple

import pytest
import torch

from dualtoken.model.config.step_costs import training_step
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.runtime.expected_speed import named_device
from dualtoken.pipelines.training.step_cost import flop_utilization, tokenizer_step_cost
from dualtoken.pipelines.training.task import StepCost


class Rank(NamedTuple):
    rank: int
    world_size: int
    device: torch.device


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("core", None),
    ],
)
def test_a_card_is_known_by_its_name_and_its_slower_variants_are_not(name: str, device: str | None) -> None:
    found = named_device(name)
    assert (found and found.name) == device


def test_operations_are_those_of_the_model_for_the_whole_batch() -> None:
    recipe = load_recipe("paper-384")
    assert recipe.train.checkpoint_tower
    whole = tokenizer_step_cost(recipe, with_gan=True)
    assert whole is not None
    once = recipe.train.model_copy(update={"checkpoint_tower": False})
    online = not recipe.targets.read_by_training
    flop = sum(part.cost.flop for part in training_step(recipe.tokenizer, once, online=online))
    assert whole == StepCost(recipe.train.batch_size * flop, "bfloat16")
    before_gan = tokenizer_step_cost(recipe, with_gan=False)
    assert before_gan is not None
    assert before_gan.flop < whole.flop


@pytest.mark.parametrize(
    "override",
    [
        "train.freeze_tower=true",
        "train.losses={semantic: 0, pooled: 0}",
        "train.parameters=[{pattern: 'tower.*', freeze: true}]",
    ],
)
def test_what_is_not_counted_has_no_share(override: str) -> None:
    assert tokenizer_step_cost(load_recipe("scenes", [override]), with_gan=False) is None


def test_a_share_is_of_all_workers_rates_on_cards_whose_rate_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cost = StepCost(989e12, "bfloat16")
    assert flop_utilization(cost, 1.0, Rank(0, 1, torch.device("cpu"))) is None
    names = iter(["NVIDIA H200", "NVIDIA H200", "Another"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: next(names))
    gpu = torch.device("cuda")
    assert flop_utilization(cost, 1.0, Rank(0, 2, gpu)) == pytest.approx(0.5)
    assert flop_utilization(cost._replace(precision="float32"), 0.01, Rank(0, 1, gpu)) == pytest.approx(
        0.01 * 989 / 67
    )
    assert flop_utilization(cost, 1.0, Rank(0, 1, gpu)) is None
