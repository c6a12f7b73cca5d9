"""Gives the words of a recipe and of `--set` the types that its keys want: text as written, else numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from dualtoken.pipelines.config.schema import item_type, models_of, union_members
from dualtoken.pipelines.config.yaml_words import RepeatedKey, Word, read_yaml
from dualtoken.pipelines.errors import UserError

_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+")
"""A number such as 1e-3, which YAML 1.1 takes for text for want of a dot."""
_MOST_LEVELS = 50
"""Most levels of groups and lists; the recipe has fewer than ten."""


@dataclass(frozen=True)
class SetValue:
    """The value of a `--set`: text where its key wants text, else YAML."""

    text: str
    override: str
    """The whole argument, for messages."""

    def __repr__(self) -> str:
        return repr(self.text)

    @cached_property
    def parsed(self) -> Any:  # noqa: ANN401
        """The value as YAML; raises `UserError` where it is none."""
        try:
            return read_yaml(self.text)
        except RepeatedKey as error:
            raise UserError(f"--set {self.override!r}: {error}") from None
        except yaml.YAMLError:
            raise UserError(f"--set {self.override!r}: {self.text!r} is no YAML value: quote it") from None

    @property
    def as_text(self) -> Any:  # noqa: ANN401
        """The value for a key that takes text: all of it as written, without quotes around it."""
        try:
            parsed = self.parsed
        except UserError:
            return self.text
        if isinstance(parsed, Word) and parsed.text == self.text:
            return parsed
        is_quoted = self.text[:1] in ("'", '"') and self.text[-1:] == self.text[:1]
        if isinstance(parsed, str) and is_quoted:
            return parsed
        return self.text


def typed(value: Any, annotation: Any = None, depth: int = 0) -> Any:  # noqa: ANN401
    """Return a value with all words below it as a type's keys want them.

    Without a type, or for a key that it lacks, words are what YAML takes them for. Raises `UserError`.
    """
    if depth > _MOST_LEVELS:
        raise UserError(f"a recipe's groups are over {_MOST_LEVELS} levels deep: write them flatter")
    members = union_members(annotation)
    if isinstance(value, SetValue):
        value = _unwrapped(value, members)
    if isinstance(value, Word):
        return _typed_word(value, members)
    if isinstance(value, str):
        return _typed_text(value, members)
    if isinstance(value, list):
        items = _item_types(members, (tuple, list))
        return [typed(item, items, depth + 1) for item in value]
    if isinstance(value, dict):
        return _typed_mapping(value, members, depth)
    return value


def _unwrapped(value: SetValue, members: Sequence[Any]) -> Any:  # noqa: ANN401
    if not _takes_text(members):
        return value.parsed
    return value.as_text


def _takes_text(members: Sequence[Any]) -> bool:
    for member in members:
        if member is str or any(isinstance(choice, str) for choice in _choices(member)):
            return True
    return False


def _choices(member: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return the values of a `Literal`."""
    if get_origin(member) is not Literal:
        return ()
    return get_args(member)


def _typed_word(word: Word, members: Sequence[Any]) -> Any:  # noqa: ANN401
    if not word.text or not _takes_text(members) or _is_wanted(word.value, members):
        return word.value
    return word.text


def _is_wanted(value: Any, members: Sequence[Any]) -> bool:  # noqa: ANN401
    """Tell whether a value that is no text is one that a key takes beside text."""
    if isinstance(value, str):
        return False
    if value is None:
        return NoneType in members
    if type(value) in members or (type(value) is int and float in members):
        return True
    return any(value in _choices(member) for member in members)


def _typed_text(text: str, members: Sequence[Any]) -> Any:  # noqa: ANN401
    takes_numbers = int in members or float in members
    if takes_numbers and not _takes_text(members) and _EXPONENT.fullmatch(text):
        return float(text.replace("_", ""))
    return text


def _typed_mapping(values: Mapping[Any, Any], members: Sequence[Any], depth: int) -> dict[Any, Any]:
    models = _models_meant(models_of(members), values)
    others = _item_types(members, (dict,))
    result: dict[Any, Any] = {}
    for key, value in values.items():
        if models:
            fields = [model.model_fields[key] for model in models if key in model.model_fields]
            annotation = _union([field.annotation for field in fields])
        else:
            annotation = others
        result[key] = typed(value, annotation, depth + 1)
    return result


def _models_meant(models: Sequence[type[BaseModel]], values: Mapping[Any, Any]) -> Sequence[type[BaseModel]]:
    """Return the models of a union that the value of a `kind` or `rule` names; all, where it names none."""
    meant: list[type[BaseModel]] = []
    for model in models:
        for name, field in model.model_fields.items():
            if name in values and _written(values[name]) in _choices(field.annotation):
                meant.append(model)
                break
    if len(models) < 2 or not meant:
        return models
    return meant


def _written(key: Any) -> Any:  # noqa: ANN401
    if isinstance(key, (Word, SetValue)):
        return key.text
    return key


def _item_types(members: Sequence[Any], containers: tuple[type, ...]) -> Any:  # noqa: ANN401
    return _union([item_type(member) for member in members if get_origin(member) in containers])


def _union(annotations: Sequence[Any]) -> Any:  # noqa: ANN401
    if not annotations:
        return None
    return Union[tuple(annotations)]  # noqa: UP007  (of types that are known at run time alone)
