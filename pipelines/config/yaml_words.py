"""Reads YAML without losing what was written: a word such as `no`, `1e3` or `007` keeps its text.

YAML 1.1 takes such words for flags, numbers, dates or nothing. Whether a key wants text or a number is known
only by the recipe's schema (`typed.py`), so both are handed on. A key that stands twice in one mapping is an
error.
"""

from dataclasses import dataclass
from typing import Any

import yaml

_TYPED_TAGS = ("bool", "int", "float", "null", "timestamp")
"""Tags that YAML gives to plain words by their looks."""
_PREFIX = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True, repr=False)
class Word:
    """A plain word of a YAML file that YAML takes for something other than text."""

    text: str
    """The word as written."""
    value: Any
    """What YAML takes it for; the text where that is a date or a number to base 60."""

    def __repr__(self) -> str:
        return repr(self.value)


class RepeatedKey(yaml.YAMLError):
    """A key stands twice in one mapping."""


def read_yaml(text: str) -> Any:  # noqa: ANN401
    """Return a document's mappings, lists, text and words; raises `yaml.YAMLError`."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """A safe loader that keeps words and refuses repeated keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._path: list[str] = []
        """Keys above the node that is being read."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        """Read a node; `index` is its place in a list, or its key in a mapping."""
        if index is None:  # the document itself, or a key
            return super().compose_node(parent, index)  # pyright: ignore[reportArgumentType]
        self._path.append(str(getattr(index, "value", index)))
        node = super().compose_node(parent, index)  # pyright: ignore[reportArgumentType]
        self._path.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401
        """Read a mapping; checked before merge keys (`<<`) add the keys that they may repeat."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_PREFIX}merge":
                continue
            line = key.start_mark.line + 1
            if key.value in first_lines:
                raise RepeatedKey(_twice([*self._path, key.value], first_lines[key.value], line))
            first_lines[key.value] = line
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping, whose keys are text."""
        mapping = super().construct_mapping(node, deep)
        return {key.text if isinstance(key, Word) else key: value for key, value in mapping.items()}


def _twice(path: list[str], first_line: int, second_line: int) -> str:
    lines = f"lines {first_line} and {second_line}"
    if first_line == second_line:
        lines = f"line {first_line}"
    return f"{'.'.join(path)} stands twice, in {lines}: keep one of them"


def _read_word(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:  # noqa: ANN401
    construct = yaml.SafeLoader.yaml_constructors[node.tag]
    try:
        value = construct(loader, node)
    except ValueError:  # such as the 45th of a month
        value = node.value
    if node.style is not None:  # quoted, behind a tag such as !!int
        return value
    if node.tag == f"{_PREFIX}timestamp" or ":" in node.value:
        value = node.value
    return Word(node.value, value)


for _tag in _TYPED_TAGS:
    _Loader.add_constructor(f"{_PREFIX}{_tag}", _read_word)
