"""Schedules of the learning rate, and groups of parameters by patterns of their names."""

import pytest
import torch

from dualtoken.model.config.optimizer import (
    AdamWConfig,
    ConstantSchedule,
    CosineSchedule,
    MuonConfig,
    ParameterGroup,
    WsdSchedule,
)
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.optimizer import Schedule, build_optimizer, learning_rate_at, set_learning_rate
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from tests.model.training.steps import fresh_state, run, training


def rates(schedule: Schedule | None, steps: int = 12) -> list[float]:
    return [
        learning_rate_at(step, peak=2.0, warmup_steps=4, steps=steps, schedule=schedule) for step in range(13)
    ]


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    found = rates(None)
    assert found[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert found[8] == pytest.approx(1.0)
    assert found[12] == 0.0
    assert rates(CosineSchedule()) == found


def test_a_cosine_ends_at_its_final_rate() -> None:
    found = rates(CosineSchedule(final=0.1))
    assert found[8] == pytest.approx(1.1)
    assert found[12] == pytest.approx(0.2)


def test_wsd_stays_at_its_peak_and_falls_linearly_at_the_end() -> None:
    found = rates(WsdSchedule(kind="wsd", decay=0.5, final=0.1))
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    assert found[4:7] == [2.0, 2.0, 2.0]
    assert found[9] == pytest.approx(2.0 * 0.55)
    assert found[12] == pytest.approx(0.2)


def test_a_longer_wsd_run_takes_the_same_steps_before_it_decays() -> None:
    schedule = WsdSchedule(kind="wsd", decay=0.25)
    assert rates(schedule, steps=40)[:10] == rates(schedule)[:10]


def test_a_constant_rate_stays() -> None:
    assert rates(ConstantSchedule(kind="constant")) == [0.5, 1.0, 1.5] + [2.0] * 10


@pytest.mark.parametrize("optimizer", [AdamWConfig(), MuonConfig(kind="muon")])
def test_groups_have_their_own_rate_and_decay(
    config: TokenizerConfig, optimizer: AdamWConfig | MuonConfig
) -> None:
    tokenizer = DualTokenizer(config)
    groups = (
        ParameterGroup(pattern="tower.blocks.0.*", rate=0.1),
        ParameterGroup(pattern="tower.*", rate=0.5, weight_decay=0.3),
    )
    built = build_optimizer(
        tokenizer, optimizer, learning_rate=2.0, betas=(0.9, 0.9), weight_decay=0.1, groups=groups
    )
    set_learning_rate(built, 1.0)
    settings: dict[int, tuple[float, float]] = {}
    for group in built.param_groups:
        for parameter in group["params"]:
            settings[id(parameter)] = (group["lr"], group["weight_decay"])
    by_name = {name: settings[id(parameter)] for name, parameter in tokenizer.named_parameters()}
    assert len(settings) == len(by_name)
    assert by_name["tower.blocks.0.attn.qkv.weight"] == (0.1, 0.1)
    assert by_name["tower.blocks.0.attn.qkv.bias"] == (0.1, 0.0)
    assert by_name["tower.blocks.1.attn.qkv.bias"] == (0.5, 0.3)
    assert by_name["decoder.conv_in.weight"] == (1.0, 0.1)


def test_frozen_groups_stay_as_they_are(config: TokenizerConfig) -> None:
    state = fresh_state(config, training(parameters=[{"pattern": "tower.blocks.*", "freeze": True}]))
    before = {name: tensor.clone() for name, tensor in state.tokenizer.state_dict().items()}
    run(state, 2)
    for name, tensor in state.tokenizer.named_parameters():
        assert torch.equal(tensor, before[name]) == name.startswith("tower.blocks."), name


def test_a_pattern_that_matches_nothing_is_named(config: TokenizerConfig) -> None:
    shadowed = [{"pattern": "tower.*"}, {"pattern": "tower.blocks.*"}]
    for groups, text in (
        ([{"pattern": "towr.*"}], r"parameters\[0\].pattern='towr.\*' matches no parameter"),
        (shadowed, r"parameters\[1\].pattern='tower.blocks.\*' matches no parameter that an earlier pattern"),
        ([{"pattern": "*", "freeze": True}], "parameters freezes all that there is to train"),
    ):
        with pytest.raises(ValueError, match=text):
            fresh_state(config, training(parameters=groups))
