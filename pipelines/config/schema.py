"""Walks the types of the recipe's fields: members of unions, models of groups, items of lists."""

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def union_members(annotation: Any) -> list[Any]:  # noqa: ANN401
    """Return the members of a union, nested and annotated ones too; of any other type the type itself."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    members = []
    for argument in get_args(annotation):
        members.extend(union_members(argument))
    return members


def models_of(members: Sequence[Any]) -> list[type[BaseModel]]:
    """Return those of a union's members that are groups of keys."""
    return [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]


def item_type(container: Any) -> Any:  # noqa: ANN401
    """Return the type of a list's or tuple's items, or of a dict's values."""
    for argument in reversed(get_args(container)):
        if argument is not Ellipsis:
            return argument
    return None
