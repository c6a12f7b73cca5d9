"""What a store refuses is told in one line of URL, reason and permission, by every operation."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs

from dualtoken.infra.storage import Store
from dualtoken.infra.store_refusals import CredentialsExpired, StoreRefusal
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.errors import ExitCode, exit_code
from dualtoken.pipelines.images.table_files import find_table_files
from tests.helpers.fault_proxy import Faults, Refusal, fault_proxy
from tests.helpers.s3_servers import s3_server

KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def _opened(store: Store) -> bytes:
    with store.open("here") as file:
        return file.read()


OPERATIONS: dict[str, Callable[[Store, Path], object]] = {
    "exists": lambda store, _: store.exists("here"),
    "read": lambda store, _: store.read("here"),
    "read_many": lambda store, _: list(store.read_many(["here", "here"])),
    "files": lambda store, _: list(store.files()),
    "folders": lambda store, _: store.folders(),
    "remove": lambda store, _: store.remove("here"),
    "put": lambda store, scratch: store.put(scratch / "large", "new"),
    "put_bytes": lambda store, _: store.put_bytes(b"1", "new"),
    "put_if_absent": lambda store, _: store.put_if_absent(b"1", "new"),
    "open": lambda store, _: _opened(store),
    "table": lambda store, _: find_table_files(store.at("here.csv").url, "source.table"),
    "recipe": lambda store, _: load_recipe(store.at("here").url, []),
    "local_copy": lambda store, scratch: store.local_copy("here", scratch / "copies"),
}
PERMISSIONS = [
    ("exists", "HEAD", "s3:GetObject"),
    ("exists", "HEAD LIST", "s3:GetObject, or s3:ListBucket, which tells whether there is such an object"),
    ("read", "GET", "s3:GetObject"),
    ("read_many", "GET", "s3:GetObject"),
    ("files", "LIST", "s3:ListBucket"),
    ("folders", "LIST", "s3:ListBucket"),
    ("remove", "DELETE", "s3:DeleteObject"),
    ("put", "PUT", "s3:PutObject"),
    ("put_bytes", "PUT", "s3:PutObject"),
    ("put_if_absent", "PUT", "s3:PutObject"),
    ("open", "GET", "s3:GetObject"),
    ("recipe", "GET", "s3:GetObject"),
    ("table", "HEAD", "s3:GetObject"),
    ("local_copy", "GET", "s3:GetObject"),
]
NAMED = {
    "files": "",
    "folders": "",
    "put": "/new",
    "put_bytes": "/new",
    "put_if_absent": "/new",
    "table": "/here.csv",
}
"""What each operation asks for, below the store; the others ask for `/here`."""


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Faults]]:
    faults = Faults(seed=0, share=0)
    with s3_server("moto", tmp_path_factory.mktemp("moto")) as url:
        Store(f"{url}/run").put_bytes(b"1", "here")
        with (
            fault_proxy(os.environ["AWS_ENDPOINT_URL"], faults) as proxy,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setenv("AWS_ENDPOINT_URL", proxy)
            s3fs.S3FileSystem.clear_instance_cache()
            yield f"{url}/run", faults
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def refused(proxied: tuple[str, Faults]) -> Iterator[Callable[[str, int, str], Store]]:
    """A function that makes the server refuse some requests, by status and code, and returns the store."""
    url, faults = proxied

    def refuse(asked: str, status: int, code: str) -> Store:
        faults.counts.clear()
        faults.refusal = Refusal(frozenset(asked.split()), status, code)
        return Store(url)

    yield refuse
    faults.refusal = None


def refusal_of(operation: str, store: Store, scratch: Path) -> StoreRefusal:
    (scratch / "large").write_bytes(b"1")
    with pytest.raises(StoreRefusal) as caught:
        OPERATIONS[operation](store, scratch)
    return caught.value


@pytest.mark.parametrize(("operation", "asked", "permission"), PERMISSIONS)
def test_each_operation_names_the_url_and_the_permission_that_it_lacks(
    operation: str,
    asked: str,
    permission: str,
    refused: Callable[[str, int, str], Store],
    tmp_path: Path,
) -> None:
    error = refusal_of(operation, refused(asked, 403, "AccessDenied"), tmp_path)
    url = f"s3://test/run{NAMED.get(operation, '/here')}"
    assert str(error) == f"{url}: access is refused ({_code(asked)}): the credentials need {permission}"
    assert exit_code(error) == ExitCode.CONFIGURATION


def _code(asked: str) -> str:
    return "403" if asked == "HEAD" else "AccessDenied"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "InvalidAccessKeyId", f"the credentials are wrong: {KEYS} (InvalidAccessKeyId)"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong: set it right (RequestTimeTooSkewed)"),
        (404, "NoSuchBucket", "there is no such bucket: create it, or name another one (NoSuchBucket)"),
    ],
)
def test_each_operation_tells_wrong_credentials_and_a_bucket_that_is_not_there(
    operation: str,
    status: int,
    code: str,
    told: str,
    refused: Callable[[str, int, str], Store],
    tmp_path: Path,
) -> None:
    error = refusal_of(operation, refused("HEAD GET LIST PUT DELETE", status, code), tmp_path)
    assert str(error) == f"s3://test/run{NAMED.get(operation, '/here')}: {told}"
    assert exit_code(error) == ExitCode.CONFIGURATION


@pytest.mark.parametrize("operation", OPERATIONS)
def test_credentials_that_expired_are_to_be_renewed(
    operation: str, refused: Callable[[str, int, str], Store], tmp_path: Path
) -> None:
    error = refusal_of(operation, refused("HEAD GET LIST PUT DELETE", 400, "ExpiredToken"), tmp_path)
    assert isinstance(error, CredentialsExpired)
    assert str(error).endswith(
        ": the credentials have expired (ExpiredToken): renew the credentials, then run the same command"
    )
    assert exit_code(error) == ExitCode.TEMPORARY


def test_a_real_server_that_checks_keys_is_told_apart_from_one_that_is_down(tmp_path: Path) -> None:
    with s3_server("rclone", tmp_path) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(StoreRefusal, match=r"^s3://test/run: the credentials are wrong: set AWS_ACCESS"):
            list(Store(f"{url}/run").files())


@pytest.mark.parametrize("operation", ["exists", "files", "put_bytes"])
def test_a_name_that_no_bucket_may_have_is_told(
    operation: str, refused: Callable[[str, int, str], Store], tmp_path: Path
) -> None:
    refused("", 0, "")
    error = refusal_of(operation, Store("s3://no_such,bucket/run"), tmp_path)
    assert "no bucket may have this name" in str(error)
    assert exit_code(error) == ExitCode.CONFIGURATION
