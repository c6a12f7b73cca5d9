"""Words of a recipe: text where a key takes text, numbers where it takes numbers, each as it was written."""

from pathlib import Path

import pytest

from dualtoken.pipelines.config.corpora import ScenesSource, UrlsSource
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError

WORDS = ("42", "2026-11-28", "yes", "no", "on", "~", "null", "1e3", "1.5e3", "0x10", "1_000", "007", "12:30")
"""Words that YAML takes for numbers, dates, flags or nothing."""


def read(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> Recipe:
    (folder / "recipe.yaml").write_text(f"base: urls\nname: mine\n{text}", encoding="utf-8")
    return load_recipe(str(folder / "recipe.yaml"), overrides)


def urls_of(recipe: Recipe, corpus: str = "web") -> UrlsSource:
    source = recipe.corpora[corpus].source
    assert isinstance(source, UrlsSource)
    return source


@pytest.mark.parametrize("word", WORDS)
def test_a_key_that_takes_text_takes_every_word_as_written(word: str, tmp_path: Path) -> None:
    in_file = f"corpora: {{web: {{source: {{url_column: {word}, keep_columns: [a, {word}]}}}}}}"
    assert urls_of(read(tmp_path, in_file)).url_column == word
    assert urls_of(read(tmp_path, in_file)).keep_columns == ("a", word)
    source = "corpora.web.source."
    set_words = (f"{source}url_column={word}", f"{source}keep_columns=[a, {word}]")
    assert urls_of(read(tmp_path, "", set_words)).url_column == word
    assert urls_of(read(tmp_path, "", set_words)).keep_columns == ("a", word)


@pytest.mark.parametrize(
    "root", [*WORDS[:5], "run #2", "a: b", "[x", "{a}", " spaced ", "'a", '"a"', "*x", "%d"]
)
def test_any_root_is_a_folder_of_that_name(root: str, tmp_path: Path) -> None:
    assert load_recipe("scenes", (), {"root": f"{tmp_path}/{root}"}).root == f"{tmp_path}/{root}"
    if root != '"a"':  # as in YAML, quotes around a whole value of --set are none of it
        assert load_recipe("scenes", [f"root={tmp_path}/{root}"]).root == f"{tmp_path}/{root}"


def test_quotes_around_a_whole_value_of_an_override_are_none_of_it() -> None:
    recipe = load_recipe("urls", ["corpora.web.source.url_column='null'", 'name="007"'])
    assert (urls_of(recipe).url_column, recipe.name) == ("null", "007")


def test_a_choice_and_a_name_of_a_corpus_may_be_such_words(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        "download: {resize_mode: no}\n"
        "corpora: {2026: {source: {kind: urls, table: yes}}, 1e3: {source: {kind: urls, table: a.csv}}}\n"
        "pretokenize: {captions_of: {2026: 123456789012}}\n",
    )
    assert recipe.download.resize_mode == "no"
    assert list(recipe.corpora) == ["web", "2026", "1e3"]
    assert urls_of(recipe, "2026").table == str(Path("yes").absolute())
    assert recipe.pretokenize.captions_of == {"2026": "123456789012"}
    assert load_recipe("scenes", ["download.resize_mode=no"]).download.resize_mode == "no"


def test_a_key_that_takes_text_or_nothing_takes_both(tmp_path: Path) -> None:
    assert read(tmp_path, "cluster: {dashboard: ~}").cluster.dashboard is None
    assert read(tmp_path, "cluster: {dashboard: 42}").cluster.dashboard == "42"
    assert load_recipe("scenes", ["cluster.dashboard=null"]).cluster.dashboard is None


def test_a_key_that_takes_numbers_takes_them_with_or_without_a_dot(tmp_path: Path) -> None:
    recipe = read(tmp_path, "train: {learning_rate: 1e-3, steps: 1e3, seed: 0x10, batch_size: 1_024}")
    assert (recipe.train.learning_rate, recipe.train.steps) == (0.001, 1000)
    assert (recipe.train.seed, recipe.train.batch_size) == (16, 1024)
    assert load_recipe("scenes", ["train.learning_rate=2E-4"]).train.learning_rate == 0.0002
    assert load_recipe("scenes", ["load.weights={0: {scenes-train: 3}}"]).load.weights == {
        0: {"scenes-train": 3}
    }


@pytest.mark.parametrize("word", ["12:30", "2026-11-28", "yes:no"])
def test_a_key_that_takes_numbers_takes_no_date_and_no_time(word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"train\.steps='{word}': should be a valid integer"):
        read(tmp_path, f"train: {{steps: {word}}}")


def test_a_date_that_is_none_is_text(tmp_path: Path) -> None:
    assert (
        urls_of(read(tmp_path, "corpora: {web: {source: {url_column: 2026-13-45}}}")).url_column
        == "2026-13-45"
    )


def test_flags_and_anchors_stay_what_they_are(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        "corpora: {web: {source: &web {table: 7, url_column: &on on}}, "
        "b: {source: {<<: *web, kind: urls, caption_column: *on}}}\n"
        "download: {allow_private_addresses: yes}\n",
    )
    assert recipe.download.allow_private_addresses
    assert urls_of(recipe, "b").table == str(Path("7").absolute())
    assert (urls_of(recipe, "b").url_column, urls_of(recipe, "b").caption_column) == ("on", "on")


def test_an_override_steps_into_one_before_it() -> None:
    source = "corpora.scenes-train.source"
    recipe = load_recipe("scenes", [f"{source}={{kind: scenes, seed: 3}}", f"{source}.num_images=9"])
    assert recipe.corpora["scenes-train"].source == ScenesSource(kind="scenes", seed=3, num_images=9)


def test_groups_without_end_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="over 50 levels deep"):
        read(tmp_path, "filter: &a {rules: [*a]}")
