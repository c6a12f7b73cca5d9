"""Reading of training samples: the same batches for any ranks, threads and starts; few shards at a time."""

import resource
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualtoken.pipelines.core.ledger import sample_key
from dualtoken.pipelines.core.receipts import read_receipts
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.training.dataset import Sample, TrainingSet
from dualtoken.pipelines.training.sample_index import open_sample_index
from dualtoken.pipelines.training.sample_sequence import SampleSequence
from tests.helpers.damage import cut_short, flip_byte
from tests.helpers.s3_servers import s3_server
from tests.helpers.training_shards import CORPUS, in_remote_copy, link_shards, training_job
from tests.helpers.waiting import wait_until

SHARDS = (7, 4, 9, 1, 6, 5)
SIZE = sum(SHARDS)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> StageJob:
    return training_job(tmp_path_factory.mktemp("corpus"), SHARDS, "reader.shuffle_shards=2")


@contextmanager
def opened(job: StageJob, *, num_threads: int = 1, seed: int = 0) -> Iterator[TrainingSet]:
    scratch = Path(job.folder) / "scratch"
    with closing(
        TrainingSet(job, scratch, seed=seed, num_threads=num_threads, samples="download")
    ) as samples:
        yield samples


def taken(samples: TrainingSet, first: int, places: Sequence[int]) -> list[int]:
    """Return the numbers of the samples that a rank takes, in the order of its places."""
    numbers = dict.fromkeys(places, -1)

    def take(place: int, sample: Sample) -> None:
        red, green, _ = sample.picture.getpixel((0, 0))  # pyright: ignore[reportGeneralTypeIssues]
        numbers[place] = red + 256 * green
        assert sample.shard.caption(sample.row) == f"sample {numbers[place]}"

    samples.read(first, places, take)
    return list(numbers.values())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ranks_threads_and_starts_take_the_samples_of_an_uninterrupted_run(
    job: StageJob, data: st.DataObject
) -> None:
    batch_size = data.draw(st.sampled_from([6, 12]))
    with opened(job) as alone:
        run = taken(alone, 0, range(12 * batch_size))
    for epoch in range(len(run) // SIZE):
        assert sorted(run[epoch * SIZE : (epoch + 1) * SIZE]) == list(range(SIZE))
    step = 0
    for _ in range(3):  # each time the run is stopped, and goes on with other ranks and threads
        world_size = data.draw(st.sampled_from([1, 2, 3, 6]))
        share = batch_size // world_size
        with opened(job, num_threads=data.draw(st.integers(1, 4))) as samples:
            for _ in range(data.draw(st.integers(1, 3))):
                batch: list[int] = []
                for rank in range(world_size):
                    batch += taken(samples, step * batch_size, range(rank * share, (rank + 1) * share))
                assert batch == run[step * batch_size : (step + 1) * batch_size]
                step += 1


def test_another_seed_is_another_order(job: StageJob) -> None:
    with opened(job) as first, opened(job, seed=1) as second:
        assert taken(first, 0, range(SIZE)) != taken(second, 0, range(SIZE))


def open_tars() -> set[str]:
    """Return the tars that this process has open."""
    paths: set[str] = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            path = str(link.readlink())
        except FileNotFoundError:
            continue  # that of the listing itself
        if path.endswith(".tar"):
            paths.add(path)
    return paths


def test_a_training_opens_the_shards_of_two_windows_at_most_and_none_at_its_start(tmp_path: Path) -> None:
    job = training_job(tmp_path, [3] * 40, "reader.shuffle_shards=2")
    most = 0
    with opened(job) as samples:
        assert open_tars() == set()
        for sample in range(120):
            taken(samples, sample, [0])
            most = max(most, len(open_tars()))
    assert 2 <= most <= 10  # four, and those that three threads are about to open
    assert open_tars() == set()


def test_more_shards_than_the_process_may_open_files(tmp_path: Path) -> None:
    job = training_job(tmp_path, [1], "reader.shuffle_shards=500")
    link_shards(tmp_path, 1025)
    tars: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with opened(job, num_threads=2) as samples:
            samples.read(0, range(1025), lambda _, sample: tars.append(sample.shard.tar.path.name))
            assert samples.damage.num_lost == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(tars) == [f"{number:05d}.tar" for number in range(1025)]


def test_a_damaged_shard_is_named_once_and_others_take_its_samples_places_on_every_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = training_job(tmp_path, SHARDS, "reader.shuffle_shards=3")
    with opened(job) as samples:
        whole = taken(samples, 0, range(2 * SIZE))
    flip_byte(tmp_path / "shards/00002.tar")
    lost = set(range(11, 20))
    with opened(job, num_threads=3) as samples:
        found = taken(samples, 0, range(2 * SIZE))
        assert samples.damage.num_lost == 9
        flip_byte(tmp_path / "shards/00002.tar")
        assert not lost & set(taken(samples, 2 * SIZE, range(SIZE)))  # until the process ends
        flip_byte(tmp_path / "shards/00002.tar")
    (said,) = capsys.readouterr().err.splitlines()
    for number, expected in zip(found, whole, strict=True):
        if expected in lost:
            assert number not in lost
        else:
            assert number == expected
    with opened(job) as first, opened(job) as second:
        assert taken(first, SIZE, range(16)) + taken(second, SIZE, range(16, SIZE)) == found[SIZE:]
    assert "00002.tar is damaged (xxh3" in said
    assert said.endswith("others in place of its 9 samples; 9 of 32 so far")
    (note,) = Path(job.folder).glob("logs/damaged/*.json")
    assert note.name == "tiny-train-00002.json"
    assert '"samples": 9' in note.read_text()


def test_damage_ends_a_training_that_is_told_so(tmp_path: Path) -> None:
    job = training_job(tmp_path, SHARDS, "reader.on_damage=raise")
    cut_short(tmp_path / "shards/00003.tar")
    with (
        opened(job) as samples,
        pytest.raises(UserError, match=r"00003\.tar is damaged \(500 bytes.*reader\.on_damage=quarantine"),
    ):
        taken(samples, 0, range(SIZE))


@pytest.mark.parametrize("lost", ["00001.tar", "00001.parquet", "receipts/00001.json"])
def test_a_missing_file_is_damage_too(tmp_path: Path, lost: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = training_job(tmp_path, (3, 4))
    (tmp_path / "shards" / lost).unlink()
    with opened(job) as samples:
        assert set(taken(samples, 0, range(7))) <= {0, 1, 2}
    assert f"{lost} is damaged (missing" in capsys.readouterr().err


def test_where_nothing_can_be_read_the_training_ends_in_one_line(tmp_path: Path) -> None:
    job = training_job(tmp_path, (3, 4))
    for name in ("00000", "00001"):
        flip_byte(tmp_path / f"shards/{name}.tar")
    with opened(job) as samples, pytest.raises(UserError, match=r"^7 of 7 training samples cannot be read"):
        taken(samples, 0, [0])


def test_a_damaged_image_costs_its_own_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = training_job(tmp_path, SHARDS, "reader.shuffle_shards=3", unreadable=(12,))
    with opened(job) as samples:
        found = taken(samples, 0, range(2 * SIZE))
        assert samples.damage.num_lost == 1
    assert 12 not in found
    assert set(found) == set(range(SIZE)) - {12}
    (said,) = capsys.readouterr().err.splitlines()
    assert sample_key(CORPUS, 12).hex() in said
    assert said.endswith("training takes another in its place; 1 of 32 so far")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageJob]:
    folder = tmp_path_factory.mktemp("remote")
    local = training_job(folder, [6] * 12, "reader.shuffle_shards=2")
    with s3_server("rclone", folder / "server") as bucket:
        yield in_remote_copy(local, bucket)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def copies(temporary: Path) -> dict[str, Path]:
    """Return the files of the machine's cache by name: of copies, their checksum."""
    return {path.stem: path for path in temporary.glob("dualtoken-*-reader-*/*.shard")}


def tars_copied(job: StageJob, temporary: Path) -> set[int]:
    """Return the numbers of the shards whose tars are in the machine's cache."""
    found = copies(temporary)
    copied: set[int] = set()
    for unit, receipt in read_receipts(job.input("download", CORPUS)).items():
        for file in receipt.files:
            if file.name.endswith(".tar") and file.xxh3_128 in found:
                copied.add(int(unit))
    return copied


def test_of_a_remote_corpus_the_windows_shards_are_copied_and_the_next_ones_ahead(
    remote: StageJob, temporary: Path
) -> None:
    index = open_sample_index(remote, "download", temporary / "index")
    sequence = SampleSequence(index, 2, 0, index.identity)
    window = sequence.window_at(0)
    now = set(window.window.shards.tolist())
    following = set(sequence.window_after(window).shards.tolist())
    with opened(remote) as samples:
        assert tars_copied(remote, temporary) == set()
        taken(samples, 0, [0])
        wait_until(lambda: tars_copied(remote, temporary) == now, 30)
        taken(samples, 8, [0])
        wait_until(lambda: tars_copied(remote, temporary) == now | following, 30)
        assert sorted(taken(samples, 0, range(72))) == list(range(72))
    assert copies(temporary) == {}


def test_the_cache_is_bounded_and_shared_and_a_damaged_copy_is_fetched_again(
    remote: StageJob, temporary: Path
) -> None:
    recipe = remote.recipe
    reader = recipe.reader.model_copy(update={"cache_gb": 2e-4})
    small = replace(remote, recipe=recipe.model_copy(update={"reader": reader}))
    with opened(small) as samples:
        assert sorted(taken(samples, 0, range(72))) == list(range(72))
        sizes = [path.stat().st_size for path in copies(temporary).values()]
        assert 0 < sum(sizes) <= 200_000
    with opened(remote) as first:
        taken(first, 0, range(72))
        before = copies(temporary)
        with opened(remote) as second:
            taken(second, 0, range(72))
            assert copies(temporary) == before
        for path in before.values():
            if path.stat().st_size > 10_000:  # a tar, no table of rows
                flip_byte(path)
        with opened(remote) as third:
            assert sorted(taken(third, 0, range(72))) == list(range(72))
            assert third.damage.num_lost == 0


def test_a_remote_shard_that_is_damaged_itself_is_quarantined(
    remote: StageJob, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stored,) = Path(remote.recipe.root).glob("server/test/shards/00003.tar")
    flip_byte(stored)
    try:
        with opened(remote) as samples:
            assert set(taken(samples, 0, range(72))) == set(range(72)) - set(range(18, 24))
        (said,) = capsys.readouterr().err.splitlines()
        assert "s3://test/shards/00003.tar is damaged (xxh3" in said
    finally:
        flip_byte(stored)
    assert temporary.exists()


def test_a_cache_smaller_than_a_window_is_refused_in_one_line(remote: StageJob, temporary: Path) -> None:
    reader = remote.recipe.reader.model_copy(update={"cache_gb": 1e-6})
    small = replace(remote, recipe=remote.recipe.model_copy(update={"reader": reader}))
    with (
        opened(small) as samples,
        pytest.raises(UserError, match=r"reader\.cache_gb=1e-06 .* reader\.shuffle_shards=2$"),
    ):
        taken(samples, 0, [0])
    assert copies(temporary) == {}
