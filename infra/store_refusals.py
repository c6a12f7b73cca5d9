"""Says of a store that refuses a request what was asked of which URL, and what is missing.

S3 clients pass on "Forbidden" or "Bad Request" alone. The reply to a HEAD request has no body, so that not
even its reason is known: it is asked for once more, by a listing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from fsspec.implementations.local import LocalFileSystem

RENEW = "renew the credentials, then run the same command"
"""What to do about credentials that have expired."""
_PERMISSIONS = {
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "ListObjects": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "CopyObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
}
"""Permission that a policy must give, by operation."""
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_EXPIRED_LOGIN = frozenset({"TokenRetrievalError", "UnauthorizedSSOTokenError"})
"""Errors of botocore for a login that is over; its modules are not imported for runs on local folders."""
_BAD_NAME = "ParamValidationError"
"""Its error for a name that no bucket may have; no request was made."""
_WRONG_CREDENTIALS = frozenset(
    {
        *("InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"),
        *(
            "InvalidToken",
            "InvalidSecurity",
            "MissingSecurityHeader",
            "SignatureDoesNotMatch",
            "Unauthorized",
        ),
    }
)
_ADVICE = {
    **dict.fromkeys(
        _WRONG_CREDENTIALS,
        "the credentials are wrong: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    ),
    "NoSuchBucket": "there is no such bucket: create it, or name another one",
    "InvalidBucketName": "no bucket may have this name: name another one",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it right",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
    "InvalidObjectState": "the object is archived: restore it",
}
"""What to do about a reply that trying again does not change, by its code."""
_REFUSED = frozenset({401, 403})
_NO_REASON = frozenset({"301", "400", "401", "403"})
"""Codes that a client makes of a reply without a body: they are the HTTP status."""


class _Reply(Protocol):
    """What botocore says of a reply that is an error."""

    response: dict[str, Any]
    operation_name: str


class StoreRefusal(OSError):
    """A store that refuses a request, whoever tries again: one line of URL, reason and advice."""

    exit_code = 2
    """Exit status of a command that ends with it."""
    ends_run = True
    """Whether every other request is likely to be refused as well."""


class CredentialsExpired(StoreRefusal):
    """Credentials that were good until now; the same command goes on with new ones."""

    exit_code = 75


@contextmanager
def naming_refusals(fs: Any, path: str) -> Iterator[None]:  # noqa: ANN401  (any fsspec file system)
    """Raise `StoreRefusal` where the block's request is refused by a remote file system.

    `path` is the one that is asked for, as the file system spells it.
    """
    try:
        yield
    except StoreRefusal:
        raise
    except Exception as error:
        if isinstance(fs, LocalFileSystem):
            raise  # the system names the path itself
        refusal = _refusal(fs, path, error)
        if refusal is None:
            raise
        raise refusal from error


def _refusal(fs: Any, path: str, error: Exception) -> StoreRefusal | None:  # noqa: ANN401
    url = fs.unstrip_protocol(path)
    if type(error).__name__ in _EXPIRED_LOGIN:
        return CredentialsExpired(f"{url}: {' '.join(str(error).split())}: {RENEW}")
    if _BAD_NAME in (type(error).__name__, type(error.__context__).__name__):
        return StoreRefusal(f"{url}: {_ADVICE['InvalidBucketName']}")
    reply = _reply(error)
    if reply is not None:
        return _refusal_of_s3(fs, path, url, reply)
    if isinstance(error, PermissionError):
        return StoreRefusal(f"{url}: the store refuses the request: {error}")
    return None


def _reply(error: Exception) -> _Reply | None:
    """Return the reply of S3 that an error was made of; None where it is of something else."""
    for found in (error, error.__cause__, error.__context__):
        if hasattr(found, "response") and hasattr(found, "operation_name"):
            return cast("_Reply", found)
    return None


def _refusal_of_s3(fs: Any, path: str, url: str, reply: _Reply) -> StoreRefusal | None:  # noqa: ANN401
    permission = _PERMISSIONS.get(reply.operation_name, f"the one for {reply.operation_name}")
    reason = reply
    if _code(reply) in _NO_REASON and hasattr(fs, "call_s3"):
        listing = _refused_listing(fs, path)
        if listing is not None:
            reason = listing
        if listing is not None and reply.operation_name == "HeadObject":
            permission = "s3:GetObject, or s3:ListBucket, which tells whether there is such an object"
    code = _code(reason)
    if code in _EXPIRED:
        return CredentialsExpired(f"{url}: the credentials have expired ({code}): {RENEW}")
    if code in _ADVICE:
        refusal = StoreRefusal(f"{url}: {_ADVICE[code]} ({code})")
        refusal.ends_run = code != "InvalidObjectState"
        return refusal
    if _status(reason) in _REFUSED or _status(reply) in _REFUSED:
        return StoreRefusal(f"{url}: access is refused ({code}): the credentials need {permission}")
    return None


def _refused_listing(fs: Any, path: str) -> _Reply | None:  # noqa: ANN401
    """Ask for a listing, whose reply has a body, and return the refusal; None where it is granted."""
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1, **fs.req_kw)
    except Exception as error:  # noqa: BLE001  (what the listing meets is no news where it is no refusal)
        return _reply(error)
    return None


def _code(reply: _Reply) -> str:
    return str(reply.response.get("Error", {}).get("Code", ""))


def _status(reply: _Reply) -> int:
    return int(reply.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
