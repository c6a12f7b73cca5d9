"""Opens the folder that a recipe names as a source."""

from dualtoken.infra.redaction import redacted
from dualtoken.infra.storage import Store
from dualtoken.pipelines.errors import UserError


def open_source(url: str, setting: str) -> Store:
    """Open a source's folder; `setting` is the recipe's key.

    Raises `UserError` for a URL that fsspec does not know.
    """
    try:
        return Store(url)
    except (ValueError, ImportError) as error:
        reason = redacted(str(error))
        raise UserError(
            f"{setting}={redacted(url)!r}: {reason}; set it to a path or a URL that fsspec knows"
        ) from error
