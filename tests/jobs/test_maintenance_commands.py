"""The maintenance commands as a user calls them: what they print, and what is a mistake."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dualtoken.infra.storage import Store
from dualtoken.jobs.cli import app
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import sample_key
from dualtoken.pipelines.core.tombstones import Tombstones
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.maintenance import garbage
from tests.helpers.command_line import printed_lines
from tests.helpers.tiny_run import TINY


@pytest.fixture
def root(tmp_path: Path, finished: Recipe) -> Path:
    shutil.copytree(finished.root, tmp_path / "data")
    return tmp_path / "data"


def test_forgetting_names_what_is_deleted_and_what_learnt_of_it_and_is_done_once(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(sample_key("tiny-train", 1).hex())
    forget = ("forget", TINY, "--root", root, "--corpus", "tiny-train", "--keys", tmp_path / "keys")
    listed = printed_lines(*forget)
    assert sum(line.endswith("1 samples in 1 shards") for line in listed) == 5
    (model,) = [line for line in listed if "models/tokenizer" in line]
    assert model.endswith("to be rid of that, delete this folder and run `dualtoken run`")
    assert Path(model.split(": ")[0]).is_dir()
    assert listed[-1] == "nothing is changed without --delete"
    assert printed_lines(*forget) == listed
    deleted = printed_lines(*forget, "--delete")
    assert sum("1 samples taken out of 1 shards" in line for line in deleted) == 5
    assert printed_lines(*forget)[0] == "tiny-train: no such sample"


def test_forgetting_without_a_selection_says_what_it_does(root: Path) -> None:
    assert printed_lines("forget", TINY, "--root", root)[0].startswith(
        "without --keys, --url and --url-host nothing new is forgotten"
    )


@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ("IMG.Example.org.", "img.example.org"),
        ("*.example.org", "example.org"),
        ("https://user@img.example.org:8080/a.jpg", "img.example.org"),
        ("ｅｘａｍｐｌｅ.org", "example.org"),
        ("::1", "::1"),
        ("[2001:DB8:0::1]:80", "2001:db8::1"),
    ],
)
def test_a_host_to_forget_may_be_written_as_users_write_it(root: Path, given: str, listed: str) -> None:
    printed_lines("forget", TINY, "--root", root, "--corpus", "tiny-train", "--url-host", given, "--delete")
    assert Tombstones.from_bytes((root / "tiny-train/tombstones.json").read_bytes()).hosts == {listed}


def test_a_host_that_is_none_is_a_mistake(root: Path) -> None:
    with pytest.raises(UserError, match=r"--url-host '/' names no host"):
        CliRunner().invoke(
            app, ["forget", TINY, "--root", str(root), "--url-host", "/"], catch_exceptions=False
        )


def test_gc_says_what_it_kept_because_a_run_went_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stray = root / ".probe-0123"
    stray.write_text("1")
    find_garbage = garbage.find_garbage

    def list_and_go_on(*arguments: object) -> list[garbage.Garbage]:
        found = list(find_garbage(*arguments))  # type: ignore[arg-type]
        Store(str(root)).put_bytes(b"22", stray.name)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(garbage, "find_garbage", list_and_go_on)
        lines = printed_lines("gc", root, "--older-than", 0, "--delete")
        assert f"{stray}: kept, it changed since it was listed" in lines
    lines = printed_lines("gc", root, "--older-than", 0, "--delete")
    assert lines[-2] == "left over by a killed write: 1 file, 2 bytes deleted"
    assert not stray.exists()


def test_gc_of_a_root_takes_no_settings(tmp_path: Path) -> None:
    for option in (("--set", "train.steps=3"), ("--root", tmp_path)):
        with pytest.raises(UserError, match="is a run's root, which takes no --set and no --root"):
            printed_lines("gc", tmp_path, *option)


@pytest.mark.parametrize(
    ("tolerance", "problem"), [("7", "than or equal to 1"), ("-1", "than or equal to 0")]
)
def test_a_tolerance_is_a_share(tolerance: str, problem: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["verify", str(tmp_path), "--deep", "--tolerance", tolerance])
    assert ended.exit_code == 2
    assert problem in ended.output


def test_explain_tells_the_way_from_the_first_recipe_to_the_second(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(Path(TINY).read_text().replace("image_size: 32, encode", "image_size: 48, encode"))
    lines = printed_lines("explain", TINY, other, "--root", tmp_path / "data")
    assert "    download tiny-train: download.image_size: 32 -> 48" in lines
