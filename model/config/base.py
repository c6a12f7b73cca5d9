"""Base of every configuration: frozen pydantic models that know which of their values decide an output."""

import os
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

_NOT_IN_FINGERPRINT = "not_in_fingerprint"
_IN_FINGERPRINT_UNLESS_DEFAULT = "in_fingerprint_unless_default"


def not_in_fingerprint(**settings: Any) -> Any:  # noqa: ANN401  (pydantic's own Field has this type)
    """Return a field that changes how a stage runs, and what it gives by rounding at most.

    It is no part of a fingerprint.
    """
    return Field(json_schema_extra={_NOT_IN_FINGERPRINT: True}, **settings)


def in_fingerprint_unless_default(**settings: Any) -> Any:  # noqa: ANN401
    """Return a field that was added later: at its default it is no part of a fingerprint.

    So outputs that were made before the field existed keep their fingerprints.
    """
    return Field(json_schema_extra={_IN_FINGERPRINT_UNLESS_DEFAULT: True}, **settings)


class Config(BaseModel):
    """A frozen model in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """Return the values that decide an output, nested models included, in the order of the fields.

        Fields of `not_in_fingerprint` are left out, and those of `in_fingerprint_unless_default` at their
        default.
        """
        values = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if _decides_output(field, value):
                values[name] = _identity(value)
        return values


def _decides_output(field: FieldInfo, value: Any) -> bool:  # noqa: ANN401
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        return True
    if _NOT_IN_FINGERPRINT in extra:
        return False
    if _IN_FINGERPRINT_UNLESS_DEFAULT in extra:
        return value != field.default
    return True


def _identity(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, dict):
        return {key: _identity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    return value


def kind_by_its_name(value: object) -> object:
    """Read a name, such as `none`, as the mapping `{kind: none}`: the form of a choice without settings."""
    if isinstance(value, str):
        return {"kind": value}
    return value


ConfigT = TypeVar("ConfigT", bound=Config)


def validated(kind: type[ConfigT], values: object, place: str) -> ConfigT:
    """Return the values of a file as a configuration.

    Raises ValueError, one line with `place` and the first key at fault.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join((place, *map(str, first["loc"])))
        raise ValueError(f"{key}: {first['msg']}") from None


Precision = Literal["float32", "bfloat16"]
"""Precision of networks' arithmetic."""
PositiveInt = Annotated[int, Field(gt=0)]


def require_divisible_width(width: int, num_heads: int) -> None:
    """Raise ValueError unless attention heads share the channels of a token evenly."""
    if width % num_heads:
        raise ValueError(f"width={width} is no multiple of num_heads={num_heads}: change one of them")


def absolute(location: str) -> str:
    """Return a path of this machine in full; a URL stays as it is."""
    if is_url(location):
        return location
    return os.path.abspath(os.path.expanduser(location))  # noqa: PTH100, PTH111  (`~nobody` stays)


def is_url(location: str) -> bool:
    """Tell whether fsspec finds a location by its protocol, in place of a path of this machine."""
    return "://" in location or "::" in location


Location = Annotated[str, Field(min_length=1), AfterValidator(absolute)]
"""A path or any fsspec URL.

A path is made absolute when a recipe is read: workers, and jobs of a cluster, stand in other folders.
"""
