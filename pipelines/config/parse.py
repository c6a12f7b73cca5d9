"""Reads a recipe: YAML, `--set` overrides, validation, errors of one line; imports neither torch nor ray."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import fsspec
import yaml
from pydantic import ValidationError

from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.infra.ray_job_context import current_job_address
from dualtoken.infra.store_refusals import StoreRefusal, naming_refusals
from dualtoken.model.config.base import is_url
from dualtoken.pipelines.config.evaluation import EvaluationConfig
from dualtoken.pipelines.config.mistakes import closest, explain_mistakes
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.resources import check_own_cluster
from dualtoken.pipelines.config.typed import SetValue, typed
from dualtoken.pipelines.config.yaml_words import RepeatedKey, Word, read_yaml
from dualtoken.pipelines.errors import UserError

_NO_RECIPES = ("evaluation-", "nightly-")
"""Prefixes of the shipped files that are sets and protocols of evaluations, and specs of nightlies."""
_PLURALS = {"recipe": "recipes", "evaluation": "evaluations", "nightly": "nightlies"}


def load_recipe(
    location: str, overrides: Sequence[str] = (), texts: Mapping[str, str] | None = None
) -> Recipe:
    """Read a recipe from a path, an fsspec URL or the name of a shipped one, and apply `a.b=c` overrides.

    A recipe with `base: NAME` is laid over the shipped recipe of that name. `texts` are values by key, such
    as `cluster.address`, that win over the overrides and are text as they stand. Raises `UserError`, a line
    per mistake.
    """
    values = _with_base(_parse(_read(location), location), location)
    for override in overrides:
        _apply_override(values, override)
    for key, text in (texts or {}).items():
        _put(values, key.split("."), text, f"{key}={text}")
    values = typed(values, Recipe)
    recipe = validate(values, location)
    _check_root_lasts(str(values.get("root", Recipe.model_fields["root"].default)))
    return recipe


def load_evaluation(
    location: str, overrides: Sequence[str] = (), root: str | None = None
) -> EvaluationConfig:
    """Read evaluation sets and protocols, likewise from a path, a URL or the name of a shipped file.

    `root` wins over the file's. Raises `UserError`, a line per mistake.
    """
    values = read_values(location, "evaluation")
    for override in overrides:
        _apply_override(values, override)
    if root is not None:
        _put(values, ["root"], root, f"root={root}")
    values = typed(values, EvaluationConfig)
    try:
        config = EvaluationConfig.model_validate(values)
    except ValidationError as error:
        mistakes = explain_mistakes(error, values, EvaluationConfig, "an evaluation")
        raise UserError("\n".join(f"{location}: {mistake}" for mistake in mistakes)) from None
    _check_root_lasts(str(values.get("root", EvaluationConfig.model_fields["root"].default)))
    return config


def _check_root_lasts(root: str) -> None:
    """Raise `UserError` for a relative root in a Ray job: its working directory goes with the job."""
    is_absolute = is_url(root) or root.startswith(("/", "~"))
    if current_job_address() and not is_absolute:
        raise UserError(
            f"root={root!r} in a Ray job lies in its copy of the code, which goes with it: "
            "set --root to a URL or a full path"
        )


def validate(values: Mapping[str, Any], location: str) -> Recipe:
    """Check a recipe's values; `location` names it in errors. Raises `UserError`, a line per mistake."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        lines = [f"{location}: {mistake}" for mistake in explain_mistakes(error, values)]
        raise UserError("\n".join(lines)) from None
    # No rule of the model: what was made in one process, whatever the cluster, must stay readable.
    check_own_cluster(recipe)
    return recipe


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package, in order."""
    return [name for name in _shipped() if not name.startswith(_NO_RECIPES)]


def _shipped_kind(what: str) -> list[str]:
    """Return the names of the shipped files of a kind."""
    if what == "recipe":
        return shipped_recipes()
    return [name for name in _shipped() if name.startswith(f"{what}-")]


def _shipped() -> list[str]:
    files = [file.name for file in resources.files("dualtoken.recipes").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def _read_shipped(name: str) -> str:
    return (resources.files("dualtoken.recipes") / f"{name}.yaml").read_text()


def is_shipped(name: str) -> bool:
    """Tell whether a name is that of a file which comes with the package, and no file hides it."""
    return name in _shipped() and not Path(name).is_file()


def read_values(location: str, what: str = "recipe") -> dict[str, Any]:
    """Return the keys and values of a YAML file: a path, an fsspec URL or the name of a shipped one.

    `what` names its kind in errors. Raises `UserError`.
    """
    return _parse(_read(location, what), location)


def _read(location: str, what: str = "recipe") -> str:
    if is_shipped(location):
        return _read_shipped(location)
    try:
        fs, path = fsspec.url_to_fs(location)
        with naming_refusals(fs, path):
            return bytes(fs.cat_file(path)).decode()
    except StoreRefusal:
        raise
    except IsADirectoryError:
        raise UserError(f"{what} {location!r} is a folder: give the YAML file in it") from None
    except FileNotFoundError:
        names = _shipped_kind(what)
        hint = ""
        match = closest(location, names)
        if match is not None:
            hint = f"did you mean {match}? Else "
        raise UserError(
            f"{what} {location!r} is no file: {hint}give a path, "
            f"or one of the shipped {_PLURALS[what]}: {', '.join(names)}"
        ) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if is_machine_trouble(error):
            raise
        raise UserError(f"{what} {location!r} cannot be read: {error}") from None


def _parse(text: str, location: str) -> dict[str, Any]:
    try:
        values = read_yaml(text)
    except RepeatedKey as error:
        raise UserError(f"{location}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{location}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{location}: holds {type(typed(values)).__name__}, not keys and values: see recipes/scenes.yaml"
        )
    return values


def _with_base(values: dict[str, Any], location: str) -> dict[str, Any]:
    """Lay a recipe's values over those of the shipped recipe that it names as its base, if it does."""
    if "base" not in values:
        return values
    base = values["base"]
    own_values = dict(values)
    del own_values["base"]

    shipped = shipped_recipes()
    if base not in shipped or base == location:
        names = ", ".join(name for name in shipped if name != location)
        raise UserError(f"{location}: base={base!r} is no shipped recipe: set it to one of {names}")
    base_values = _with_base(_parse(_read_shipped(base), base), base)
    return _lay_over(base_values, own_values)


def _lay_over(below: Any, above: Any) -> Any:  # noqa: ANN401
    """Merge mappings key by key, recursively.

    Anything else, and a mapping of another `kind`, takes the place of what is below.
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if "kind" in above and above["kind"] != below.get("kind"):
        return above
    merged = dict(below)
    for key, value in above.items():
        if key in below:
            merged[key] = _lay_over(below[key], value)
        else:
            merged[key] = value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `a.b=c` in a recipe's values, in place."""
    path, equals, text = override.partition("=")
    names = path.split(".")
    if not equals or not all(names):
        raise UserError(f"--set {override!r}: write it as key.key=value, such as train.steps=100")
    _put(values, names, SetValue(text, override), override)


def _put(values: dict[str, Any], names: Sequence[str], value: Any, override: str) -> None:  # noqa: ANN401
    """Set the value at a path of keys, in place."""
    target: Any = values
    for depth, name in enumerate(names[:-1]):
        target = _step_into(target, name, override, above=names[:depth])
    last_name = names[-1]
    if isinstance(target, list):
        target[_index(target, last_name, override)] = value
    else:
        target[last_name] = value


def _step_into(target: Any, name: str, override: str, above: Sequence[str]) -> Any:  # noqa: ANN401
    """Return the mapping or list at a key of `target`; a missing or null key becomes an empty mapping."""
    place: Any
    if isinstance(target, list):
        place = _index(target, name, override)
        inner = target[place]
    else:
        place = name
        inner = target.get(name)
    if isinstance(inner, SetValue):
        inner = inner.parsed
    if isinstance(inner, Word):
        inner = inner.value
    if inner is None:
        inner = {}
    target[place] = inner
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
