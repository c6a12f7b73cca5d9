"""Reads a stage's folder: its run's root, its inputs, and its job, wherever the run was moved."""

from collections.abc import Iterator

from pydantic import ValidationError

from dualtoken.infra.names import single_name
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import (
    RECEIPTS,
    STAGE_FILE,
    DamagedRecordError,
    StageRecord,
    iter_receipts,
)
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.stages import get_stage, position
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
        return StageRecord.read(store, STAGE_FILE)
    except FileNotFoundError:
        raise UserError(
            f"{store.url} has no {STAGE_FILE}: "
            "give a stage's folder, such as data/<corpus>/tokens/<fingerprint>"
        ) from None
    except DamagedRecordError:
        raise UserError(
            f"{store.url}/{STAGE_FILE} cannot be read: it is damaged, or of another version of dualtoken"
        ) from None


def in_order(record: StageRecord) -> tuple[int, bool]:
    """Return a sort key: each folder comes after those that it is made from or shares files of."""
    return position(record.stage), shares_captions(record)


def root_of(store: Store, record: StageRecord) -> str:
    """Return the root of the run that a stage's folder is in."""
    folder = get_stage(record.stage).folder
    levels = folder.count("/") + 2  # the folder's own, and the fingerprint
    return store.url.rsplit("/", levels)[0]


def input_folders(store: Store, record: StageRecord) -> dict[str, str]:
    """Return the folders of a stage's inputs by name, looked for beside it in case the run was moved."""
    root = root_of(store, record)
    folders: dict[str, str] = {}
    for name, folder in record.inputs.items():
        stage, _, corpus = name.partition("/")
        below_root = get_stage(stage).folder.format(corpus=corpus)
        folders[name] = join(root, below_root, single_name(folder.rpartition("/")[2]))
    return folders


def recipe_of(store: Store, record: StageRecord) -> Recipe:
    """Return the recipe that a folder was made with, for the root that it is below now.

    Raises `UserError` for the recipe of another version.
    """
    try:
        return Recipe.model_validate(record.recipe | {"root": root_of(store, record)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{store.url}/{STAGE_FILE} holds a recipe that cannot be used here ({key}: {first['msg']}): "
            "use the version of dualtoken that wrote it"
        ) from None


def stage_job(store: Store, record: StageRecord, units: tuple[Unit, ...] | None = None) -> StageJob:
    """Return the job that a folder stands for; by default its units are those that have a receipt."""
    recipe = recipe_of(store, record)
    if units is None:
        units = tuple(Unit(receipt.unit, receipt.rows) for receipt in iter_receipts(store))
    inputs = input_folders(store, record)
    stage = get_stage(record.stage)
    return stage.job(record.corpus, recipe, store.url, record.fingerprint, inputs, units)
