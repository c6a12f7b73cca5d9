"""Reads a recipe: YAML, `--set` overrides, validation, and errors of one line; imports neither torch nor ray."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import fsspec
import yaml
from pydantic import BaseModel, ValidationError

from dualtoken.infra.ray_job_context import current_job_address
from dualtoken.model.config.base import is_url
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.resources import check_own_cluster
from dualtoken.pipelines.errors import UserError

_NOT_COMPUTED = "default_factory_not_called"
"""A default that depends on another field, which has an error of its own."""


def load_recipe(location: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a path, an fsspec URL or the name of a shipped one, and apply `a.b=c` overrides.

    A recipe with `base: NAME` is laid over the shipped recipe of that name. Raises `UserError`, a line per mistake.
    """
    values = _with_base(_parse(_read(location), location), location)
    for override in overrides:
        _apply(values, override)
    recipe = validate(values, location)
    _check_root_lasts(str(values.get("root", Recipe.model_fields["root"].default)))
    return recipe


def _check_root_lasts(root: str) -> None:
    """Raise `UserError` for a relative root in a Ray job: its working directory is a copy that goes with it."""
    if current_job_address() and not is_url(root) and not root.startswith(("/", "~")):
        raise UserError(
            f"root={root!r} in a Ray job lies in its copy of the code, which goes with it: set --root to a URL or a full path"
        )


def validate(values: Mapping[str, Any], location: str) -> Recipe:
    """Check a recipe's values; `location` is what its errors call it."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{location}: {_explain(item, values)}"
            for item in error.errors(include_url=False)
            if item["type"] != _NOT_COMPUTED
        ]
        raise UserError("\n".join(lines)) from None
    check_own_cluster(
        recipe
    )  # no rule of the model: what was made in one process, whatever the cluster, must stay readable
    return recipe


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(
        file.name.removesuffix(".yaml")
        for file in resources.files("dualtoken.recipes").iterdir()
        if file.name.endswith(".yaml")
    )


def _read(location: str) -> str:
    if location in shipped_recipes() and not Path(location).is_file():
        return (resources.files("dualtoken.recipes") / f"{location}.yaml").read_text()
    try:
        fs, path = fsspec.url_to_fs(location)
        return bytes(fs.cat_file(path)).decode()
    except (FileNotFoundError, IsADirectoryError):
        names = shipped_recipes()
        hint = (
            f"did you mean {close[0]}? Else "
            if (close := difflib.get_close_matches(location, names, n=1))
            else ""
        )
        raise UserError(
            f"recipe {location!r} is no file: {hint}give a path, or one of the shipped recipes: {', '.join(names)}"
        ) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"recipe {location!r} cannot be read: {error}") from None


def _parse(text: str, location: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{location}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{location}: holds {type(values).__name__}, not keys and values: see recipes/scenes.yaml"
        )
    return values


def _with_base(values: dict[str, Any], location: str) -> dict[str, Any]:
    if "base" not in values:
        return values
    base, own = values["base"], {key: value for key, value in values.items() if key != "base"}
    if base not in shipped_recipes() or base == location:
        names = ", ".join(name for name in shipped_recipes() if name != location)
        raise UserError(f"{location}: base={base!r} is no shipped recipe: set it to one of {names}")
    return _lay_over(
        _with_base(_parse((resources.files("dualtoken.recipes") / f"{base}.yaml").read_text(), base), base),
        own,
    )


def _lay_over(below: Any, above: Any) -> Any:  # noqa: ANN401
    """Merge mappings key by key; anything else, and a mapping of another `kind`, takes the place of what is below."""
    if not (isinstance(below, dict) and isinstance(above, dict)) or above.get(
        "kind", below.get("kind")
    ) != below.get("kind"):
        return above
    return below | {
        key: _lay_over(below[key], value) if key in below else value for key, value in above.items()
    }


def _apply(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    names = path.split(".")
    if not equals or not all(names):
        raise UserError(f"--set {override!r}: write it as key.key=value, such as train.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: {text!r} is no YAML value: quote it") from None
    target: Any = values
    for done, name in enumerate(names[:-1]):
        target = _step_into(target, name, override, names[:done])
    if isinstance(target, list):
        target[_index(target, names[-1], override)] = value
    else:
        target[names[-1]] = value


def _step_into(target: Any, name: str, override: str, above: Sequence[str]) -> Any:  # noqa: ANN401
    inner = (
        target[_index(target, name, override)] if isinstance(target, list) else target.setdefault(name, {})
    )
    if inner is None and isinstance(target, dict):
        inner = target[name] = {}
    if not isinstance(inner, (dict, list)):
        raise UserError(
            f"--set {override!r}: {'.'.join([*above, name])} is {inner!r}, which has no keys: set it whole"
        )
    return inner


def _index(target: list[Any], name: str, override: str) -> int:
    if not name.isdecimal() or int(name) >= len(target):
        raise UserError(
            f"--set {override!r}: {name!r} is no place in a list of {len(target)}: use 0 to {len(target) - 1}"
        )
    return int(name)


def _explain(item: Any, values: Mapping[str, Any]) -> str:  # noqa: ANN401  (pydantic's ErrorDetails)
    place = list(_spell_out(item["loc"]))
    key, value = ".".join(place), item["input"]
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(place[-1], known := _fields_at(place[:-1]), n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{key}={_short(value)} is no key of a recipe: {hint}"
    if item["type"] == "missing":
        return f"{key} is missing: set it"
    if item["type"] == "value_error":
        return f"{key + ': ' if key else ''}{item['ctx']['error']}"
    if item["type"].startswith("union_tag"):
        context = item["ctx"]
        tag = f"{key}.{context['discriminator'].strip(chr(39))}"
        kinds = context.get("expected_tags")
        return (
            f"{tag}={_short(context['tag'])}: set it to one of {kinds}"
            if kinds
            else f"{tag} is missing: set it{_other(place, values)}"
        )
    if item["type"] == "model_type":
        return f"{key}={_short(value)} is no group of keys: set one of {', '.join(f'{key}.{name}' for name in _fields_at(place)[:3])}, ..."
    return f"{key}={_short(value)}: {item['msg'].removeprefix('Input ')}"


def _other(place: Sequence[str], values: Mapping[str, Any]) -> str:
    """Ask whether a corpus that lacks its source is another one, misspelt."""
    others = (
        [str(name) for name in values.get("corpora", {}) if name not in place]
        if place[0] == "corpora"
        else []
    )
    close = difflib.get_close_matches(place[1], others, n=1) if others else []
    return f", or did you mean corpora.{close[0]}?" if close else ""


def _short(value: Any) -> str:  # noqa: ANN401
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _spell_out(location: Sequence[str | int]) -> Iterator[str]:
    """Leave out the tags that pydantic puts into the place of an error in a union."""
    annotation: Any = Recipe
    for part in location:
        if part == "[key]":
            continue
        inner, is_tag = _descend(annotation, part)
        annotation = inner
        if not is_tag:
            yield str(part)


def _descend(annotation: Any, part: str | int) -> tuple[Any, bool]:  # noqa: ANN401
    """Follow one part of an error's place into a type: the type inside, and whether the part was a union's tag."""
    options = _options(annotation)
    models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    if len(models) > 1:
        for model in models:
            if part == model.__name__ or any(
                part in get_args(field.annotation) for field in model.model_fields.values()
            ):
                return model, True
    for model in models:
        if part in model.model_fields:
            return model.model_fields[str(part)].annotation, False
    for option in options:
        if get_origin(option) in (dict, tuple, list):
            return next((arg for arg in reversed(get_args(option)) if arg is not Ellipsis), None), False
    return None, False


def _options(annotation: Any) -> list[Any]:  # noqa: ANN401
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [annotation]


def _fields_at(place: Sequence[str]) -> list[str]:
    annotation: Any = Recipe
    for part in place:
        annotation, _ = _descend(annotation, part)
    models = [
        option
        for option in _options(annotation)
        if isinstance(option, type) and issubclass(option, BaseModel)
    ]
    return sorted({name for model in models for name in model.model_fields})
