"""What every configuration shares: frozen pydantic models that know which of their values decide an output."""

import os
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


def not_in_fingerprint(**settings: Any) -> Any:  # noqa: ANN401  (pydantic's own Field has this type)
    """Return a field that changes how a stage runs but never what it gives, so it is no part of a fingerprint."""
    return Field(json_schema_extra={"run_only": True}, **settings)


def in_fingerprint_unless_default(**settings: Any) -> Any:  # noqa: ANN401
    """Return a field that came later: at its default it is no part of a fingerprint, so that what was made before it stays."""
    return Field(json_schema_extra={"if_set": True}, **settings)


class Config(BaseModel):
    """A frozen model in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """Return the values that decide an output: all but `not_in_fingerprint` and unset `in_fingerprint_unless_default` fields, nested models included."""
        return {
            name: _identity(value)
            for name, field in type(self).model_fields.items()
            if _counts(field, value := getattr(self, name))
        }


def _counts(field: Any, value: Any) -> bool:  # noqa: ANN401
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return not (extra.get("run_only") or (extra.get("if_set") and value == field.default))


def _identity(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, dict):
        return {key: _identity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    return value


ConfigT = TypeVar("ConfigT", bound=Config)


def validated(kind: type[ConfigT], values: object, place: str) -> ConfigT:
    """Check values that a file holds; raises ValueError, one line with `place` and the first key at fault."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join((place, *map(str, first['loc'])))}: {first['msg']}") from None


PositiveInt = Annotated[int, Field(gt=0)]


def _absolute(location: str) -> str:
    return location if is_url(location) else os.path.abspath(os.path.expanduser(location))  # noqa: PTH100, PTH111  (`~nobody` stays)


def is_url(location: str) -> bool:
    """Tell whether a place is one that fsspec finds by its protocol, not a path of this machine."""
    return "://" in location or "::" in location


Location = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
"""A path or any fsspec URL. A path is made absolute when a recipe is read: workers, and jobs of a cluster, stand in other folders."""
