"""A further tokenizer's codes share another dataset's captions, which stay as they are; tools know both."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, done_units, read_manifest
from dualtoken.pipelines.core.tombstones import Tombstones
from dualtoken.pipelines.errors import ExitCode, UserError
from dualtoken.pipelines.maintenance import forget as forget_module
from dualtoken.pipelines.maintenance.deep_verify import DeepSettings, deep_verify
from dualtoken.pipelines.maintenance.explain import explain
from dualtoken.pipelines.maintenance.forget import forget
from dualtoken.pipelines.maintenance.forget_plan import plan_forget
from dualtoken.pipelines.maintenance.garbage import find_garbage
from dualtoken.pipelines.maintenance.inspect_shard import describe_row, open_shard
from dualtoken.pipelines.maintenance.repair import repair
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime.executor import LocalExecutor, run_attempt
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.export import export_tokens
from dualtoken.pipelines.tokens.pretokenize import Worker
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from dualtoken.pipelines.tokens.shared_captions import require_same_rows, require_same_samples
from tests.helpers.damage import findings_below, flip_byte
from tests.helpers.s3_servers import s3_server
from tests.helpers.tiny_run import LoadTiny, planned, tokens_job
from tests.helpers.token_datasets import rows_by_key

CORPUS = "tiny-train"
OTHER = "train.steps=2"
"""The further tokenizer."""
SHARD = "meta/00001.parquet"


class Datasets(NamedTuple):
    """Token datasets of one corpus below one root, by their folders."""

    recipe: Recipe
    """Of the borrower."""
    lender: Path
    borrower: Path
    whole: Path
    """The same codes, with captions of their own."""


def stamps(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, digest(path).sha256)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, finished: Recipe, load_tiny: LoadTiny) -> Datasets:
    """A further tokenizer's codes, with own captions and with shared ones; tests must not change them."""
    root = tmp_path_factory.mktemp("captions") / "copy"
    shutil.copytree(finished.root, root)
    lender = tokens_job(load_tiny(root))
    whole = load_tiny(root, OTHER)
    for command in ("train", "pretokenize"):
        run_command(command, whole, LocalExecutor(), lambda _: None, [CORPUS])
    before = stamps(Path(lender.folder))
    recipe = load_tiny(root, OTHER, f"pretokenize.captions_of.{CORPUS}={lender.fingerprint}")
    run_command("pretokenize", recipe, LocalExecutor(), lambda _: None, [CORPUS])
    assert stamps(Path(lender.folder)) == before, "the lender's files were touched"
    return Datasets(
        recipe, Path(lender.folder), Path(tokens_job(recipe).folder), Path(tokens_job(whole).folder)
    )


@pytest.fixture
def copy(made: Datasets, tmp_path: Path) -> Datasets:
    root = Path(made.recipe.root)
    shutil.copytree(root, tmp_path / "copy")
    recipe = made.recipe.model_copy(update={"root": str(tmp_path / "copy")})
    return Datasets(recipe, *(tmp_path / "copy" / folder.relative_to(root) for folder in made[1:]))


def everything(url: str, cache: ShardCache | None = None) -> tuple[bytes, bytes, list[str]]:
    dataset = TokenDataset(url, cache=cache)
    rows = np.random.default_rng(0).permutation(len(dataset))
    read = dataset.read(rows)
    assert read.pixel is not None
    return read.keys.tobytes(), read.pixel.tobytes(), dataset.captions(rows)


def test_codes_alone_are_written_and_are_those_of_a_whole_run(made: Datasets) -> None:
    ours = {path.relative_to(made.borrower).as_posix() for path in made.borrower.rglob("*") if path.is_file()}
    theirs = {path.relative_to(made.whole).as_posix() for path in made.whole.rglob("*") if path.is_file()}
    assert ours == {name for name in theirs if not name.startswith("meta/")}
    for name in (name for name in ours if name.startswith(("data/", "ledger/"))):
        assert (made.borrower / name).read_bytes() == (made.whole / name).read_bytes()
    (path,) = pq.read_table(made.borrower / "index.parquet")["meta_path"].to_pylist()[1:2]
    assert path == f"../{made.lender.name}/{SHARD}"
    versions = [read_manifest(Store(str(folder))) for folder in made[1:]]
    assert [manifest and manifest.details["schema_version"] for manifest in versions] == [1, 2, 1]


def test_captions_are_read_with_the_rows_that_they_are_of(made: Datasets) -> None:
    assert everything(str(made.borrower)) == everything(str(made.whole))
    assert everything(str(made.borrower))[1] != everything(str(made.lender))[1]


def test_captions_are_read_from_a_store_and_a_damaged_copy_is_fetched_again(
    made: Datasets, tmp_path: Path
) -> None:
    with s3_server("rclone", tmp_path / "server") as bucket:
        for folder in (made.lender, made.borrower):
            shutil.copytree(folder, tmp_path / "server/test/tokens" / folder.name)
        url = f"{bucket}/tokens/{made.borrower.name}"
        cache = ShardCache(tmp_path / "cache", 10**8)
        assert everything(url, cache) == everything(str(made.whole))
        for path in (tmp_path / "cache").glob("*.shard"):
            flip_byte(path)
        assert everything(url, cache) == everything(str(made.whole))
        flip_byte(tmp_path / "server/test/tokens" / made.lender.name / SHARD)
        with pytest.raises(DamagedShardError, match=rf"tokens/{made.lender.name}/{SHARD} is damaged"):
            everything(url, ShardCache(tmp_path / "new", 10**8))


def test_a_lender_that_does_not_fit_is_refused_when_the_run_is_planned(
    copy: Datasets, load_tiny: LoadTiny
) -> None:
    root = Path(copy.recipe.root)
    key = f"pretokenize.captions_of.{CORPUS}"

    def refused(lender: str, *settings: str) -> str:
        with pytest.raises(UserError) as said:
            planned(load_tiny(root, OTHER, f"{key}={lender}", *settings), "pretokenize", CORPUS)
        assert "\n" not in str(said.value)
        return str(said.value).removeprefix(f"{key}={lender}")

    lender = copy.lender.name
    assert "has rows of other crops" in refused(lender, "pretokenize.crops=[{kind: center, flip: true}]")
    assert f"borrows its captions itself: set it to {lender}" in refused(copy.borrower.name)
    assert (
        f"has no such dataset: set it to one of {', '.join(sorted(one.name for one in copy[1:]))}"
        in refused("'000000000000'")
    )
    (copy.lender / MANIFEST_FILE).unlink()
    assert "is unfinished" in refused(lender)
    for wrong, problem in (
        (f"{CORPUS}=7", "'7' is no fingerprint"),
        (f"tiny={lender}", "captions_of.tiny is of no corpus: name one of tiny-"),
    ):
        with pytest.raises(UserError, match=problem):
            load_tiny(root, f"pretokenize.captions_of.{wrong}")


def test_a_decision_that_keeps_other_samples_is_refused_before_any_is_encoded(made: Datasets) -> None:
    units = tokens_job(made.recipe).units
    fewer = (*units[:-1], replace(units[-1], rows=units[-1].rows - 1))
    for others, problem in (
        (fewer, "is of 36 samples, the decision keeps 35"),
        (units[:-1], f"only one of the two has a shard {units[-1].id}"),
    ):
        with pytest.raises(UserError, match=problem):
            require_same_samples(Store(str(made.lender)), CORPUS, others)


def test_a_unit_whose_rows_are_not_those_of_the_captions_is_not_committed(
    made: Datasets, finished: Recipe, tmp_path: Path
) -> None:
    job = tokens_job(made.recipe)
    heldout = planned(finished, "pretokenize", "tiny-heldout").job
    assert heldout is not None
    job = replace(
        job, folder=str(tmp_path / "new"), inputs={**job.inputs, f"pretokenize/{CORPUS}": heldout.folder}
    )
    outcome = run_attempt(job, lambda: Worker(job), job.units[0])
    assert f"={heldout.fingerprint}: ledger/00000.parquet has" in outcome.error
    assert outcome.code == ExitCode.CONFIGURATION
    assert done_units(job.store()) == set()


def test_rows_that_are_not_those_of_the_captions_are_refused_with_their_shard(
    copy: Datasets, tmp_path: Path
) -> None:
    keys = pq.read_table(copy.lender / SHARD)["key"].combine_chunks()
    for rows, problem in (
        ({"key": keys[::-1]}, f"{SHARD} has another key in row 0: the decision differs"),
        ({"key": keys[1:]}, f"{SHARD} has {len(keys)} rows, here it would have {len(keys) - 1}"),
        ({"key": keys, "variant": pa.array([0] * len(keys))}, f"{SHARD} has no variant: its crops differ"),
    ):
        with pytest.raises(UserError, match=rf"captions_of.{CORPUS}={copy.lender.name}: {problem}"):
            require_same_rows(Store(str(copy.lender)), CORPUS, SHARD, rows, tmp_path)
    require_same_rows(Store(str(copy.lender)), CORPUS, SHARD, {"key": keys}, tmp_path)
    flip_byte(copy.lender / SHARD)
    with pytest.raises(UserError, match=rf"{SHARD} is missing or not as committed: run `dualtoken verify"):
        require_same_rows(Store(str(copy.lender)), CORPUS, SHARD, {"key": keys}, tmp_path)


@pytest.mark.parametrize(("damage", "problem"), [(flip_byte, "altered"), (Path.unlink, "missing")])
def test_verify_names_a_caption_file_of_the_other_dataset_once(
    damage: Callable[[Path], object], problem: str, copy: Datasets
) -> None:
    assert findings_below(copy.borrower) == []
    damage(copy.lender / SHARD)
    for where in (copy.borrower, copy.recipe.root):
        (finding,) = findings_below(where)
        assert (finding.folder, finding.name, str(finding.problem).split()[0].rstrip(":")) == (
            str(copy.lender),
            SHARD,
            problem,
        )
    (checked,) = verify(str(copy.borrower))
    with pytest.raises(UserError, match=rf"run `dualtoken verify {copy.lender} --repair` first"):
        repair(checked, LocalExecutor(), lambda _: None)
    with pytest.raises(DamagedShardError, match=rf"{copy.lender.name}/{SHARD} is damaged"):
        everything(str(copy.borrower))


def test_rows_are_checked_deep_and_a_lender_that_is_gone_is_named(copy: Datasets) -> None:
    said: list[str] = []
    (checked,) = verify(str(copy.borrower))
    assert deep_verify(checked, DeepSettings(sample=5), said.append).findings == ()
    assert "5 rows" in said[-1]
    key = TokenDataset(str(copy.borrower)).read(np.array([0])).keys[0].tobytes()
    shutil.rmtree(copy.lender)
    with pytest.raises(
        UserError, match=f"cannot be written again without its captions: bring {copy.lender} back"
    ):
        forget(
            plan_forget(Store(copy.recipe.root), CORPUS, Tombstones(keys=frozenset({key.hex()}))), said.append
        )
    assert {finding.folder for finding in findings_below(copy.borrower)} == {str(copy.lender)}
    assert len(TokenDataset(str(copy.borrower)).read(np.arange(3)).keys) == 3


def test_repair_restores_the_codes_of_a_borrower(copy: Datasets) -> None:
    before = stamps(copy.borrower / "data")
    flip_byte(copy.borrower / "data/00001.arrow")
    (checked,) = verify(str(copy.borrower))
    repair(checked, LocalExecutor(), lambda _: None)
    assert {name: sha for name, (_, sha) in stamps(copy.borrower / "data").items()} == {
        name: sha for name, (_, sha) in before.items()
    }
    assert not (copy.borrower / "meta").exists()
    assert findings_below(copy.borrower) == []


def test_gc_keeps_the_dataset_that_captions_are_borrowed_from(copy: Datasets) -> None:
    garbage = find_garbage(Store(copy.recipe.root), [copy.recipe], -1)
    names = {one.name for one in garbage if one.name.startswith(f"{CORPUS}/tokens/")}
    assert names == {f"{CORPUS}/tokens/{copy.whole.name}/"}


def test_forgetting_takes_a_samples_caption_from_the_lender_and_its_codes_from_both(
    copy: Datasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_by_key(TokenDataset(str(copy.borrower)))
    commit = forget_module._commit
    key = list(before)[5]

    class Killed(Exception):
        pass

    def die_at_the_borrower(store: Store, *rest: Any) -> None:
        if store.url == str(copy.borrower):
            raise Killed
        commit(store, *rest)

    plan = plan_forget(Store(copy.recipe.root), CORPUS, Tombstones(keys=frozenset({key.hex()})))
    with monkeypatch.context() as patch:
        patch.setattr(forget_module, "_commit", die_at_the_borrower)
        with pytest.raises(Killed):
            forget(plan, lambda _: None)
    assert key not in rows_by_key(TokenDataset(str(copy.lender)))
    with pytest.raises(ValueError, match="is unfinished"):
        TokenDataset(str(copy.borrower))
    forget(plan_forget(Store(copy.recipe.root), CORPUS, Tombstones()), lambda _: None)
    assert rows_by_key(TokenDataset(str(copy.borrower))) == {
        one: said for one, said in before.items() if one != key
    }
    assert findings_below(f"{copy.recipe.root}/{CORPUS}") == []
    assert tokens_job(copy.recipe).folder == str(copy.borrower), "another fingerprint than before"


def test_exports_cards_single_rows_and_explanations_know_of_the_captions(
    made: Datasets, tmp_path: Path
) -> None:
    for folder in (made.borrower, made.whole):
        export_tokens(str(folder), "parquet", str(tmp_path / folder.name))
    ours, theirs = (
        pq.read_table(sorted((tmp_path / folder.name).glob("*.parquet")))
        for folder in (made.borrower, made.whole)
    )
    assert ours.equals(theirs)
    assert f"captions lie in the folder `../{made.lender.name}`" in (made.borrower / "README.md").read_text()
    shard = open_shard(str(made.borrower / "data/00001.arrow"), tmp_path)
    caption = pq.read_table(made.lender / SHARD)["caption"][2].as_py()
    assert f"caption: {caption}" in list(describe_row(shard, 2))
    planner = Planner(made.recipe)
    (said,) = (one for one in explain(planner) if one.stage == f"pretokenize {CORPUS}")
    assert (said.new, said.changes) == (made.borrower.name, ())
