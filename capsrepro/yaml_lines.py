"""Where in a YAML file something stands, for messages about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from capsrepro.errors import UsageError

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml is ten times faster, but not every build of PyYAML carries it."""


def refuse_doubled_keys(node: yaml.Node | None, path: Path) -> None:
    """YAML would silently take the last of two equal keys.

    Raises:
        UsageError: A block of the file has one.
    """
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            refuse_doubled_keys(value, path)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UsageError(
                f"{path}, line {line}: {key.value} stands here a second time after line "
                f"{lines[key.value]}; keep one of them."
            )
        lines[str(key.value)] = line
        refuse_doubled_keys(value, path)


def line_of(text: str, keys: list[Any]) -> int:
    """Line of the deepest of `keys` that the file itself holds.

    What is merged from elsewhere has no line.
    """
    node = yaml.compose(text, Loader=LOADER)
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in _entries(node) if k.value == str(key)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            found = [(v, v) for v in node.value[key : key + 1]]
        else:
            found = []
        if not found:
            break
        name_node, node = found[-1]
        line = name_node.start_mark.line + 1
    return line


def _entries(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Of a block: first those of blocks that are written where they are merged, then its own."""
    for key, value in node.value:
        if key.value == "<<" and isinstance(value, yaml.SequenceNode):
            for block in value.value:
                if block.start_mark.index > key.start_mark.index:
                    yield from _entries(block)
    yield from node.value
