"""A key that stands twice in one mapping is an error that names both lines, wherever it stands."""

from pathlib import Path

import pytest

from dualtoken.model.hub.json_files import read_json
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.yaml_words import read_yaml
from dualtoken.pipelines.errors import UserError

REPEATED = {
    "train: {steps: 3}\nname: a\ntrain: {seed: 1}": "train stands twice, in lines 2 and 4",
    "corpora:\n  web:\n    source: {seed: 1,\n      seed: 2}": (
        "corpora.web.source.seed stands twice, in lines 4 and 5"
    ),
    "filter:\n  rules:\n    - rule: min_side\n      'rule': x": (
        "filter.rules.0.rule stands twice, in lines 4 and 5"
    ),
    '{"name": "a", "name": "b"}': "name stands twice, in line 1",
    "load: {weights: {0: {a: 1}, 0: {b: 1}}}": "load.weights.0 stands twice, in line 2",
}


@pytest.mark.parametrize("text", REPEATED)
def test_a_repeated_key_is_named_with_both_lines(text: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text if text.startswith("{") else f"base: urls\n{text}", encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_recipe(str(recipe))
    assert str(error.value) == f"{recipe}: {REPEATED[text]}: keep one of them"


def test_a_repeated_key_of_an_override_is_an_error() -> None:
    with pytest.raises(UserError, match=r"--set 'train=\{steps: 3, steps: 4\}': steps stands twice"):
        load_recipe("scenes", ["train={steps: 3, steps: 4}"])


def test_merged_keys_may_be_replaced_and_merges_may_be_several() -> None:
    merged = read_yaml("a: &a {x: p, y: q}\nb: &b {z: r}\nc: {<<: *a, <<: *b, x: s}\nd: {<<: *a, y: t}")
    assert merged["c"] == {"x": "s", "y": "q", "z": "r"}
    assert merged["d"] == {"x": "p", "y": "t"}


def test_a_repeated_key_of_a_configuration_to_convert_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vision": {"width": 8, "width": 9}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json .*: width stands twice"):
        read_json(tmp_path / "config.json")
