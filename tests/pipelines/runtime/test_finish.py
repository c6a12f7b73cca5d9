"""What a user is told of a stage that is finished all the same."""

from dualtoken.pipelines.core.receipts import Manifest
from dualtoken.pipelines.runtime.finish import user_warnings


def warnings_of(counts: dict[str, int]) -> list[str]:
    manifest = Manifest.model_construct(
        stage="download", rows_in=sum(counts.values()), counts=counts, details={}
    )
    return list(user_warnings(manifest))


def test_a_download_without_any_image_is_said_with_its_reasons() -> None:
    (said,) = warnings_of({"failed:dns": 1, "failed:http_404": 30})
    assert said.startswith("none of 31 rows gave an image (30 failed:http_404, 1 failed:dns)")
    assert warnings_of({"ok": 1, "failed:http_404": 30}) == []
