"""Plants defects in the product, to show that the tests see them."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import getsource
from textwrap import dedent
from types import ModuleType
from typing import Any
from unittest.mock import patch


def mutated(owner: type | ModuleType, name: str, old: str, new: str) -> AbstractContextManager[Any]:
    """A function or property of a class or module with one piece of its source replaced."""
    function = vars(owner)[name]
    source = dedent(getsource(getattr(function, "fget", function)))
    assert source.count(old) == 1, f"{old!r} is not in {name} once"
    namespace: dict[str, Any] = {}
    exec(
        source.replace(old, new),
        vars(owner if isinstance(owner, ModuleType) else sys.modules[owner.__module__]),
        namespace,
    )
    return patch.object(owner, name, namespace[name])


@contextmanager
def both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    """Two defects at once, of two guards against the same mistake."""
    with first, second:
        yield
