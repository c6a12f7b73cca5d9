"""Explains mistakes in a recipe, or another file of keys: a line for each of pydantic's errors.

It has the key, the value and what to set.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.schema import item_type, models_of, union_members

_NOT_COMPUTED = "default_factory_not_called"
"""Error type of a default that depends on another field, which has an error of its own."""
_LONGEST_VALUE = 60
"""Characters of a value that are shown."""


def explain_mistakes(
    error: ValidationError,
    values: Mapping[str, Any],
    model: type[BaseModel] = Recipe,
    what: str = "a recipe",
) -> list[str]:
    """Return a line for each mistake in a file's `values`: `train.stepz=4 is no key of a recipe: ...`.

    `model` is what the values are of, and `what` names it.
    """
    mistakes = error.errors(include_url=False)
    return [
        _explain(mistake, values, model, what) for mistake in mistakes if mistake["type"] != _NOT_COMPUTED
    ]


def closest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that a misspelt one is most like, or None where none is like it."""
    matches = difflib.get_close_matches(name, known, n=1)
    if not matches:
        return None
    return matches[0]


def _explain(error: ErrorDetails, values: Mapping[str, Any], model: type[BaseModel], what: str) -> str:
    path = _key_path(error["loc"], model)
    key = ".".join(path)
    value = _shortened(error["input"])
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{key}={value} is no key of {what}: {_name_known_keys(path, model)}"
    if kind == "missing":
        return f"{key} is missing: set it"
    if kind == "value_error":
        return _explain_rule(key, error)
    if kind.startswith("union_tag"):
        return _explain_union_tag(path, error, values)
    if kind == "model_type":
        first_keys = [f"{key}.{name}" for name in _field_names(path, model)[:3]]
        return f"{key}={value} is no group of keys: set one of {', '.join(first_keys)}, ..."
    return f"{key}={value}: {error['msg'].removeprefix('Input ')}"


def _name_known_keys(path: Sequence[str], model: type[BaseModel]) -> str:
    """Say which key an unknown one may have been meant to be, or which keys there are."""
    known = _field_names(path[:-1], model)
    if path[-1] in known and "kind" in known:
        group = ".".join(path[:-1])
        return f"it belongs to another kind of {group}: set {group}.kind to that one"
    match = closest(path[-1], known)
    if match is not None:
        return f"did you mean {match}?"
    return f"known keys: {', '.join(known)}"


def _explain_rule(key: str, error: ErrorDetails) -> str:
    """Show the message of a validator of ours, which names the keys inside its own group."""
    message = str(error.get("ctx", {})["error"])
    if not key:  # a rule of the whole file
        return message
    return f"{key}: {message}"


def _explain_union_tag(path: Sequence[str], error: ErrorDetails, values: Mapping[str, Any]) -> str:
    """Explain a `kind` or `rule` that is missing or unknown."""
    context = error.get("ctx", {})
    discriminator = context["discriminator"].strip("'")
    key = ".".join([*path, discriminator])
    known_tags = context.get("expected_tags")
    if known_tags:
        return f"{key}={_shortened(context['tag'])}: set it to one of {known_tags}"
    return f"{key} is missing: set it{_name_other_corpus(path, values)}"


def _name_other_corpus(path: Sequence[str], values: Mapping[str, Any]) -> str:
    """Ask whether a corpus that lacks its source is another one, misspelt."""
    if path[0] != "corpora":
        return ""
    others = [str(name) for name in values.get("corpora", {}) if name not in path]
    match = closest(path[1], others)
    if match is None:
        return ""
    return f", or did you mean corpora.{match}?"


def _shortened(value: Any) -> str:  # noqa: ANN401
    text = repr(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    return f"{text[: _LONGEST_VALUE - 3]}..."


def _key_path(location: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """Return an error's location as a user writes it, without the tags that pydantic adds in a union."""
    path: list[str] = []
    annotation: Any = model
    for part in location:
        if part == "[key]":  # the error is about a mapping's key, which is the part before
            continue
        found = _descend(annotation, part)
        annotation = found.annotation
        if not found.is_tag:
            path.append(str(part))
    return path


def _field_names(path: Sequence[str], model: type[BaseModel]) -> list[str]:
    """Return the keys that the group at a path may have, in order of name."""
    annotation: Any = model
    for part in path:
        annotation = _descend(annotation, part).annotation
    names: set[str] = set()
    for group in models_of(union_members(annotation)):
        names.update(group.model_fields)
    return sorted(names)


class _Found(NamedTuple):
    """Type that one part of a location leads to."""

    annotation: Any
    """Type inside, None where the part leads nowhere."""
    is_tag: bool
    """Whether the part only told which member of a union was tried."""


def _descend(annotation: Any, part: str | int) -> _Found:  # noqa: ANN401
    """Follow one part of an error's location into a type."""
    members = union_members(annotation)
    models = models_of(members)
    if len(models) > 1:
        for model in models:
            if _is_tag(part, model):
                return _Found(model, is_tag=True)
    for model in models:
        if part in model.model_fields:
            return _Found(model.model_fields[str(part)].annotation, is_tag=False)
    for member in members:
        if get_origin(member) in (dict, tuple, list):
            return _Found(item_type(member), is_tag=False)
    return _Found(None, is_tag=False)


def _is_tag(part: str | int, model: type[BaseModel]) -> bool:
    """Tell whether a part names a model of a union: by its class, or by the value of its `kind` or `rule`."""
    if part == model.__name__:
        return True
    return any(part in get_args(field.annotation) for field in model.model_fields.values())
