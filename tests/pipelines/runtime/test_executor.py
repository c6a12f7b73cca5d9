"""Outcomes are told one by one; where what all units need is gone, not all of them are waited for."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs
import torch

from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.stage import Unit, UnitOutcome, Work, Worker
from dualtoken.pipelines.errors import ExitCode, UnitsFailed
from dualtoken.pipelines.runtime.executor import (
    GIVE_UP_AFTER,
    LocalExecutor,
    WorkerSlot,
    report_outcomes,
    run_attempt,
)
from dualtoken.pipelines.runtime.finish import user_warnings
from dualtoken.pipelines.runtime.stages import get_stage
from tests.helpers.fault_proxy import Faults, Refusal, fault_proxy
from tests.helpers.s3_servers import s3_server
from tests.helpers.tiny_run import TINY, planned, planned_job

DONE, GONE = (
    UnitOutcome("targets web", "0", {"ok": 1}, 0.1),
    UnitOutcome("targets web", "1", {}, 0.0, "no answer", ExitCode.TEMPORARY),
)


LOST = UnitOutcome("targets web", "2", {}, 0.0, "no answer", ExitCode.TEMPORARY, needs_new_process=True)
REFUSED = UnitOutcome("targets web", "2", {}, 0.0, "no answer", ExitCode.TEMPORARY, ends_run=True)


@pytest.mark.parametrize(
    ("outcomes", "looked_at"),
    [
        ([GONE] * 30, GIVE_UP_AFTER),
        ([DONE, *[GONE] * 30], 1 + GIVE_UP_AFTER),
        ([*[GONE] * (GIVE_UP_AFTER - 1), DONE] * 3, 3 * GIVE_UP_AFTER),
        ([DONE, REFUSED, *[DONE] * 30], 2),
        ([DONE, LOST, *[DONE] * 30], 2),
    ],
)
def test_a_run_ends_when_unit_after_unit_fails_for_what_may_pass(
    outcomes: list[UnitOutcome], looked_at: int, finished: Recipe
) -> None:
    seen: list[UnitOutcome] = []

    def come() -> Iterator[UnitOutcome]:
        for one in outcomes:
            seen.append(one)
            yield one

    job = planned_job(finished, "targets", "tiny-train")
    with pytest.raises(UnitsFailed, match="no answer") as error:
        report_outcomes(come(), [Work(job, job.units)], lambda _: None, lambda _: None)
    assert error.value.code == ExitCode.TEMPORARY
    assert len(seen) == looked_at


def test_a_unit_that_loses_the_device_is_told_so(finished: Recipe) -> None:
    def open_worker() -> Worker:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    job = planned_job(finished, "targets", "tiny-train")
    outcome = run_attempt(replace(job, folder=f"{job.folder}-lost"), open_worker, job.units[0])
    assert outcome.needs_new_process
    assert outcome.code == ExitCode.TEMPORARY


def test_a_process_that_opens_a_stage_removes_what_killed_ones_left(
    tmp_path: Path, finished: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "dualtoken-killed").mkdir()
    (tmp_path / "dualtoken-killed.lock").touch()
    job = planned_job(finished, "filter", "tiny-train")
    WorkerSlot().open(job)
    assert list(tmp_path.iterdir()) == []


def test_addresses_that_were_refused_are_told_with_the_key_that_allows_them(finished: Recipe) -> None:
    manifest = planned(finished, "download", "tiny-train").manifest
    assert manifest is not None
    assert list(user_warnings(manifest)) == []
    (said,) = user_warnings(
        manifest.model_copy(update={"counts": {"ok": 1, "failed:private_address": 34}, "rows_in": 35})
    )
    assert said.startswith("34 of 35 URLs lead into a private network")
    assert said.endswith("set download.allow_private_addresses=true and run again")


@pytest.fixture
def expired(tmp_path: Path) -> Iterator[str]:
    """A bucket whose server takes the credentials for expired."""
    faults = Faults(seed=0, share=0)
    faults.refusal = Refusal(frozenset({"HEAD", "GET", "LIST", "PUT"}), 400, "ExpiredToken")
    with (
        s3_server("moto", tmp_path) as url,
        fault_proxy(os.environ["AWS_ENDPOINT_URL"], faults) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", proxy)
        s3fs.S3FileSystem.clear_instance_cache()
        yield url


def test_a_store_that_refuses_ends_a_run_at_its_first_unit(expired: str) -> None:
    recipe = load_recipe(TINY, [f"root={expired}/run"])
    units = tuple(Unit(f"{number:05d}", 1) for number in range(5))
    scenes = get_stage("scenes").job("tiny-train", recipe, f"{expired}/run/scenes/0", "0", {}, units)
    work = [Work(scenes, units)]
    with pytest.raises(UnitsFailed) as error:
        report_outcomes(LocalExecutor().run(work), work, lambda _: None, lambda _: None)
    assert str(error.value).startswith("1 of 5 units failed, and 4 were not tried, which would fail alike; ")
    assert str(error.value).endswith("renew the credentials, then run the same command")
    assert error.value.code == ExitCode.TEMPORARY
