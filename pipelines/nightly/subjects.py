"""Finds the models that a night measures: the newest finished one of a recipe, a folder, the canary."""

from datetime import datetime

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.nightly import CANARY, FolderSubject, NightlySpec, RecipeSubject
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.contracts import SubjectRequest
from dualtoken.pipelines.runtime.stage_folder import read_stage
from dualtoken.pipelines.runtime.stages import get_stage


def find_subjects(spec: NightlySpec, as_of: datetime | None = None) -> list[SubjectRequest]:
    """Return what a night measures, the canary first; `as_of` is the start of a night long past.

    Raises `UserError` where a recipe has no finished model, or had none then.
    """
    requests = [_request(spec, CANARY, "canary", spec.canary.folder, as_of)]
    for name, subject in spec.subjects.items():
        match subject:
            case FolderSubject():
                requests.append(_request(spec, name, "folder", subject.folder, as_of))
            case RecipeSubject():
                requests.append(_request(spec, name, "recipe", newest_model(subject, as_of), as_of))
    return requests


def _request(
    spec: NightlySpec, name: str, kind: str, place: str | None, as_of: datetime | None
) -> SubjectRequest:
    return SubjectRequest(
        name=name,
        kind=kind,  # pyright: ignore[reportArgumentType]  # of the three above
        place=place,
        evaluation=spec.evaluation,
        sets=spec.sets,
        protocols=spec.protocols,
        backfilled=as_of is not None,
    )


def newest_model(subject: RecipeSubject, as_of: datetime | None = None) -> str:
    """Return the folder of a recipe's model that was finished last, before `as_of` where that is given.

    A recipe that is changed goes on being the same one: the model counts, whatever its fingerprint.
    """
    texts = {"root": subject.root} if subject.root is not None else {}
    recipe = load_recipe(subject.recipe, texts=texts)
    root = Store(recipe.root)
    newest: tuple[datetime, str] | None = None
    for folder in root.folders(get_stage(subject.stage).folder):
        store = root.at(folder)
        manifest = read_manifest(store)
        if manifest is None or read_stage(store).recipe.get("name") != recipe.name:
            continue
        finished = datetime.fromisoformat(manifest.last_finished_at)
        if (as_of is None or finished < as_of) and (newest is None or (finished, store.url) > newest):
            newest = (finished, store.url)
    if newest is None:
        when = f" before {as_of:%Y-%m-%d %H:%M} UTC" if as_of is not None else ""
        raise UserError(
            f"{recipe.name} has no finished model of {subject.stage}{when} below {recipe.root}: "
            f"run `dualtoken {subject.stage} {subject.recipe}` first"
        )
    return newest[1]
