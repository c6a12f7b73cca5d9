"""The audit finds shards unlike the others, says so, and by recipe stops the run."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dualtoken.infra.storage import Store
from dualtoken.model.metrics.arrays import psnr
from dualtoken.pipelines.config.pretokenize import PretokenizeConfig
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, read_manifest, read_receipts
from dualtoken.pipelines.core.stage import UnitOutcome
from dualtoken.pipelines.errors import ExitCode, TokenAlarm, exit_code
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import open_image_shard
from dualtoken.pipelines.inference.networks import TokenizerRunner, best_device
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.audit import (
    ENOUGH_SHARDS,
    CodeCounter,
    ReferenceFigures,
    RunningAudit,
    ShardFigures,
    check_shard,
    sample_rows,
)
from dualtoken.pipelines.tokens.shards import codes_of, read_data_shard
from tests.helpers.tiny_run import LoadTiny, planned, tokens_job

CORPUS = "tiny-train"


def test_usage_and_perplexity_are_those_of_the_counts() -> None:
    tally = CodeCounter(depth=2, num_codes=8)
    tally.add(np.array([[0, 1], [0, 1], [1, 1]], np.uint16))
    tally.add(np.array([[[2, 1], [3, 1]], [[2, 1], [3, 1]], [[1, 1], [0, 1]]], np.uint16))
    assert tally.usage() == [0.5, 0.125]
    shares = [3 / 9, 2 / 9, 2 / 9, 2 / 9]
    assert tally.perplexity() == [round(2 ** -sum(share * math.log2(share) for share in shares), 3), 1.0]
    assert CodeCounter(depth=1, num_codes=4).perplexity() == [1.0]


def test_psnr_is_that_of_the_levels() -> None:
    seen = np.full((3, 4, 4), 100, np.uint8)
    assert psnr(seen + np.uint8(10), seen) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(seen, seen) == 100


def test_a_seed_chooses_the_same_rows_and_never_more_than_there_are() -> None:
    assert sample_rows("a/00000", 1000, 4) == sample_rows("a/00000", 1000, 4)
    assert sample_rows("a/00000", 1000, 4) != sample_rows("a/00001", 1000, 4)
    assert sample_rows("a/00000", 3, 9) == {0, 1, 2}


def figures(
    shard: int, *, ratio: float | None = 22.0, pixel: Sequence[float] = (180.0, 150.0), rows: int = 1000
) -> ShardFigures:
    return ShardFigures(f"{shard:05d}", rows, ratio, {"semantic": [200.0, 100.0], "pixel": pixel})


OTHERS = [figures(shard, ratio=22 + shard % 3) for shard in range(12)]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (figures(99, ratio=12.0), "drift: PSNR 12.0 dB, the dataset's median is 23.0"),
        (
            figures(99, pixel=(180.0, 60.0)),
            "drift: pixel depth 2 has perplexity 60.0, the dataset's median is 150.0",
        ),
        (
            figures(99, pixel=(9.0, 150.0)),
            "collapse: pixel depth 1 has perplexity 9.0, the dataset's median is 180.0",
        ),
        (
            figures(99, pixel=(180.0, 1.0)),
            "collapse: pixel depth 2 has perplexity 1.00: one code for all images",
        ),
    ],
)
def test_a_shard_far_from_the_median_is_named_with_what_was_found(odd: ShardFigures, said: str) -> None:
    assert str(check_shard(odd, ReferenceFigures.of([*OTHERS, odd]))) == f"shard 00099: {said}"


@pytest.mark.parametrize(
    "usual",
    [
        figures(99),
        figures(99, ratio=18.0),
        figures(99, ratio=35.0),
        figures(99, ratio=None),
        figures(99, pixel=(95.0, 80.0)),
        figures(99, pixel=(20.0, 20.0), rows=40),
        figures(99, pixel=(1.0, 1.0), rows=3),
    ],
)
def test_what_chance_and_short_shards_bring_is_no_alarm(usual: ShardFigures) -> None:
    assert check_shard(usual, ReferenceFigures.of([*OTHERS, usual])) is None


def test_a_corpus_whose_images_differ_much_needs_a_larger_drop() -> None:
    mixed = [figures(shard, ratio=20 + 10 * (shard % 2)) for shard in range(12)]
    assert check_shard(figures(99, ratio=12.0), ReferenceFigures.of(mixed)) is None


def test_a_dataset_that_is_bad_as_a_whole_is_told_by_the_recipes_lowest_psnr() -> None:
    bad = [figures(shard, ratio=9.0 + shard % 3 / 10) for shard in range(12)]
    assert {check_shard(one, ReferenceFigures.of(bad)) for one in bad} == {None}
    assert [str(check_shard(one, ReferenceFigures.of(bad), 15)) for one in bad][:1] == [
        "shard 00000: low: PSNR 9.0 dB, pretokenize.min_psnr=15"
    ]
    assert all(check_shard(one, ReferenceFigures.of(bad), 15) for one in bad)
    assert (
        check_shard(figures(1, ratio=15.0), ReferenceFigures.of(bad), 15)
        is check_shard(figures(1, ratio=None), ReferenceFigures.of(bad), 15)
        is None
    )


def test_a_single_bad_shard_is_told_by_the_recipes_lowest_psnr(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    settings = ("pretokenize.on_alarm=stop", "pretokenize.min_psnr=60")
    said = list[str]()
    job, usual = (
        planned(recipe, "pretokenize", CORPUS).job
        for recipe in (load_tiny(Path(finished.root), *settings), finished)
    )
    assert job is not None
    assert usual is not None
    assert job.folder == usual.folder, "what an audit asks for changes no fingerprint"
    with pytest.raises(TokenAlarm, match=r"shard 00000: low: PSNR 22.0 dB, pretokenize.min_psnr=60"):
        watch(outcomes(OTHERS[0]), job.recipe.pretokenize, said.append)
    shutil.copytree(finished.root, tmp_path / "copy")
    (tmp_path / "copy" / Path(job.folder).relative_to(finished.root) / MANIFEST_FILE).unlink()
    with pytest.raises(TokenAlarm, match=r"pretokenize tiny-train shard 00000: low: PSNR \d+\.\d dB"):
        run_command("pretokenize", load_tiny(tmp_path / "copy", *settings), LocalExecutor(), said.append)


def watch(run: Iterable[UnitOutcome], config: PretokenizeConfig, print_line: Callable[[str], None]) -> None:
    """Audit a run's outcomes as they come."""
    audit = RunningAudit(config, print_line)
    for outcome in run:
        audit.add(outcome)


def outcomes(*shards: ShardFigures) -> list[UnitOutcome]:
    found = []
    for shard in shards:
        audit = {"rows": shard.rows, "psnr": [shard.psnr], "looked_at": [0]}
        for stream, perplexity in shard.perplexity.items():
            audit[f"{stream}_perplexity"] = list(perplexity)
        found.append(UnitOutcome("pretokenize a", shard.shard, {"ok": shard.rows}, 1.0, audit=audit))
    return found


@pytest.fixture(scope="module")
def stopping(finished: Recipe, load_tiny: LoadTiny) -> PretokenizeConfig:
    return load_tiny(Path(finished.root), "pretokenize.on_alarm=stop").pretokenize


def test_a_run_that_stops_at_alarms_does_so_at_the_shard_and_one_that_reports_goes_on(
    finished: Recipe, stopping: PretokenizeConfig
) -> None:
    said = list[str]()
    run = outcomes(*OTHERS[:ENOUGH_SHARDS], figures(50, ratio=9.0), figures(51))
    with pytest.raises(
        TokenAlarm, match=r"^pretokenize a shard 00050: drift: PSNR 9.0 dB.*\(pretokenize.on_alarm=stop\)"
    ) as error:
        watch(run, stopping, said.append)
    assert "\n" not in str(error.value)
    assert exit_code(error.value) == ExitCode.BUG
    watch(run, finished.pretokenize, said.append)
    assert said == ["pretokenize a shard 00050: drift: PSNR 9.0 dB, the dataset's median is 23.0"] * 2


def test_too_few_shards_have_no_running_median_but_a_collapse_needs_none(stopping: PretokenizeConfig) -> None:
    watch(outcomes(OTHERS[0], figures(1, ratio=9.0)), stopping, print)
    with pytest.raises(TokenAlarm, match="one code for all images"):
        watch(outcomes(figures(0, pixel=(1.0, 1.0))), stopping, print)


def test_looked_at_rows_are_decoded_from_the_stored_codes(finished: Recipe, tmp_path: Path) -> None:
    job = planned(finished, "pretokenize", CORPUS).job
    trained = planned(finished, "train").job
    assert job is not None
    assert trained is not None
    tokenizer = TokenizerRunner(Path(trained.folder), best_device())
    unit = job.units[2].id
    audit = read_receipts(job.store())[unit].facts["audit"]
    table = read_data_shard(Path(job.folder) / f"data/{unit}.arrow")
    shard = open_image_shard(job.input("download"), unit, tmp_path)
    assert len(audit["looked_at"]) == min(4, len(table))
    for row, ratio in zip(audit["looked_at"], audit["psnr"], strict=True):
        place = shard.keys.index(table["key"][row].as_py())
        shown = tokenizer.decode(codes_of(table, "pixel")[row].reshape(1, 4, 4, 2))[0].numpy()
        seen = tokenizer.levels([decode_rgb(shard.image(place))])[0].numpy()
        assert ratio == round(psnr(shown, seen), 2)


def test_a_dataset_of_two_kinds_of_device_says_so_and_has_the_same_root_hash(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    job = planned(finished, "pretokenize", CORPUS).job
    recipe = load_tiny(tmp_path / "copy")
    said = list[str]()
    assert job is not None
    before = read_manifest(job.store())
    assert before is not None
    assert len(before.details["devices"]) == 1
    assert before.details["devices"][0].startswith("cpu ")
    folder = tmp_path / "copy" / Path(job.folder).relative_to(finished.root)
    receipt = json.loads((folder / "receipts/00001.json").read_text())
    receipt["facts"]["device"] = "NVIDIA H100"
    (folder / "receipts/00001.json").write_text(json.dumps(receipt))
    (folder / MANIFEST_FILE).unlink()
    run_command("pretokenize", recipe, LocalExecutor(), said.append)
    after = read_manifest(Store(str(folder)))
    assert after is not None
    assert after.root_hash == before.root_hash
    assert len(after.details["devices"]) == 2
    (line,) = said
    assert line.startswith("pretokenize tiny-train: its shards were made by devices that may round otherwise")
    assert "NVIDIA H100, torch " in line


@pytest.fixture
def drifted(tmp_path: Path, finished: Recipe) -> Path:
    """A run of which one token shard's receipt says that its codes give other images."""
    shutil.copytree(finished.root, tmp_path / "copy")
    job = tokens_job(finished)
    folder = tmp_path / "copy" / Path(job.folder).relative_to(finished.root)
    receipt = json.loads((folder / "receipts/00003.json").read_text())
    receipt["facts"]["audit"]["psnr"] = [2.0, 2.5]
    (folder / "receipts/00003.json").write_text(json.dumps(receipt))
    (folder / MANIFEST_FILE).unlink()
    shutil.rmtree(tmp_path / "copy/reports")
    return tmp_path / "copy"


def test_a_finished_dataset_with_an_alarm_has_it_in_manifest_and_report(
    drifted: Path, load_tiny: LoadTiny
) -> None:
    recipe = load_tiny(drifted)
    for command in ("pretokenize", "report"):
        run_command(command, recipe, LocalExecutor(), lambda _: None)
    tokens = planned(recipe, "pretokenize", CORPUS).job
    report = planned(recipe, "report").job
    assert tokens is not None
    assert report is not None
    manifest = read_manifest(tokens.store())
    assert manifest is not None
    (alarm,) = manifest.details["audit"]["alarms"]
    assert (alarm["shard"], alarm["kind"]) == ("00003", "drift")
    assert "shard 00003: drift: PSNR 2.2 dB" in (Path(report.folder) / "report.html").read_text()


def test_with_stop_a_dataset_with_an_alarm_stays_unfinished(drifted: Path, load_tiny: LoadTiny) -> None:
    recipe = load_tiny(drifted, "pretokenize.on_alarm=stop")
    with pytest.raises(TokenAlarm, match="pretokenize tiny-train shard 00003: drift"):
        run_command("pretokenize", recipe, LocalExecutor(), lambda _: None)
    assert planned(recipe, "pretokenize", CORPUS).manifest is None
