"""New fields of outgoing events, as a tree."""

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

#: New fields by key: a `NewField`, or a tree.
Tree: TypeAlias = dict[str, Any]


class NewField(NamedTuple):
    """The number of a field's fragment, and its type in the format."""

    number: int
    type: Any


def tree_of(fields: Iterable[tuple[tuple[str, ...], Any]]) -> Tree:
    """Return the tree of paths and types; no path is the start of another."""
    tree: Tree = {}
    for number, (path, kind) in enumerate(fields):
        below = tree
        for key in path[:-1]:
            below = below.setdefault(key, {})
        below[path[-1]] = NewField(number, kind)
    return tree
