"""A stage's folder as it lies on disk: its run's root, its inputs, and the job that it stands for, wherever the run was moved."""

from collections.abc import Iterator

from pydantic import ValidationError

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import RECEIPTS, STAGE_FILE, StageRecord, iter_receipts
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.steps import STEPS
from dualtoken.pipelines.tokens.captions import shares_captions


def stage_folders(top: Store, below: str = "", *, nameless: bool = False) -> Iterator[str]:
    """Yield the URLs of the stages' folders at or below a folder, in order of name, without a look into any.

    With `nameless` those too that have receipts but lost the file that says what they are.
    """
    url = join(top.url, below) if below else top.url
    if top.exists(f"{below}/{STAGE_FILE}".lstrip("/")):
        yield url
        return
    folders = top.folders(below)
    if nameless and join(below, RECEIPTS).lstrip("/") in folders:
        yield url
        return
    for folder in folders:
        yield from stage_folders(top, folder, nameless=nameless)


def read_stage(store: Store) -> StageRecord:
    """Return what a folder is; raises `UserError` where it is no stage's."""
    try:
        return StageRecord.from_bytes(store.read(STAGE_FILE))
    except FileNotFoundError:
        raise UserError(
            f"{store.url} has no {STAGE_FILE}: give a stage's folder, such as data/<corpus>/tokens/<fingerprint>"
        ) from None
    except ValidationError:
        raise UserError(
            f"{store.url}/{STAGE_FILE} cannot be read: it is damaged, or of another version of dualtoken"
        ) from None


def in_order(record: StageRecord) -> tuple[int, bool]:
    """Sort folders so that each comes after what it is made from, or borrows its captions from."""
    return list(STEPS).index(record.stage), shares_captions(record)


def root_of(store: Store, record: StageRecord) -> str:
    """Return the root of the run that a stage's folder is in."""
    return store.url.rsplit("/", STEPS[record.stage].folder.count("/") + 2)[0]


def input_folders(store: Store, record: StageRecord) -> dict[str, str]:
    """Return the folders of a stage's inputs by name; they are looked for beside it, in case the run was moved."""
    root, folders = root_of(store, record), {}
    for name, folder in record.inputs.items():
        step, _, corpus = name.partition("/")
        folders[name] = join(root, STEPS[step].folder.format(corpus=corpus), folder.rsplit("/", 1)[1])
    return folders


def stage_job(store: Store, record: StageRecord, units: tuple[Unit, ...] | None = None) -> StageJob:
    """Return the job that a folder stands for; its units are those that have a receipt, unless they are given."""
    recipe = Recipe.model_validate(record.recipe | {"root": root_of(store, record)})
    if units is None:
        units = tuple(Unit(receipt.unit, receipt.rows) for receipt in iter_receipts(store))
    return StageJob(
        record.stage,
        record.corpus,
        recipe,
        store.url,
        record.fingerprint,
        input_folders(store, record),
        units,
    )
