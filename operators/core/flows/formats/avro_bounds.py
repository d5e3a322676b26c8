"""Checks the bytes of an Avro record: the library takes a negative branch or symbol for one from the end."""

from collections.abc import Callable
from typing import Any, TypeAlias

from anabranch.operators.core.flows.formats.framing import read_varint

#: Returns the end of a value; raises ValueError or IndexError.
Check: TypeAlias = Callable[[bytes, int], int]


def has_choices(schema: Any) -> bool:
    """Tell if a parsed schema has a union or an enumeration."""
    if isinstance(schema, list):
        return True
    if isinstance(schema, str):
        return False
    inner = [schema.get(key, "null") for key in ("type", "items", "values")]
    inner += [field["type"] for field in schema.get("fields", ())]
    return schema["type"] == "enum" or any(map(has_choices, inner))


def check_of(schema: Any, named: dict[str, Check] | None = None) -> Check:
    """Compile the check of a parsed schema without references to others."""
    named = {} if named is None else named
    if isinstance(schema, list):
        return _choice("branch", [check_of(branch, named) for branch in schema])
    kind = schema if isinstance(schema, str) else schema["type"]
    if not isinstance(kind, str):
        return check_of(kind, named)
    if kind in ("array", "map"):
        item = check_of(schema["items" if kind == "array" else "values"], named)
        return _blocks(item if kind == "array" else _in_turn([_text, item]))
    return _PRIMITIVES.get(kind) or named.get(kind) or _named(schema, named)


def _named(schema: Any, named: dict[str, Check]) -> Check:
    name, kind = schema["name"], schema["type"]
    if kind == "enum":
        named[name] = _choice("symbol", [_fixed(0)] * len(schema["symbols"]))
    elif kind == "fixed":
        named[name] = _fixed(schema["size"])
    else:
        fields: list[Check] = []
        named[name] = _in_turn(fields)
        fields += [check_of(field["type"], named) for field in schema["fields"]]
    return named[name]


def _number(event: bytes, at: int) -> int:
    return read_varint(event, at)[1]


def _text(event: bytes, at: int) -> int:
    size, at = read_varint(event, at)
    if size < 0:
        raise ValueError(f"a text of {size} bytes")
    return at + size


def _fixed(size: int) -> Check:
    return lambda _, at: at + size


def _in_turn(checks: list[Check]) -> Check:
    def check(event: bytes, at: int) -> int:
        for each in checks:
            at = each(event, at)
        return at

    return check


def _choice(what: str, checks: list[Check]) -> Check:
    def check(event: bytes, at: int) -> int:
        number, at = read_varint(event, at)
        if not 0 <= number < len(checks):
            raise ValueError(f"{what} {number} of {len(checks)}")
        return checks[number](event, at)

    return check


def _blocks(item: Check) -> Check:
    def check(event: bytes, at: int) -> int:
        while True:
            count, at = read_varint(event, at)
            if not count:
                return at
            if count < 0:
                count, (_, at) = -count, read_varint(event, at)
            for _ in range(count):
                at = item(event, at)
                if at > len(event):
                    raise ValueError("a list that ends behind the event")

    return check


_PRIMITIVES: dict[str, Check] = {
    "null": _fixed(0),
    "boolean": _fixed(1),
    "float": _fixed(4),
    "double": _fixed(8),
    "int": _number,
    "long": _number,
    "string": _text,
    "bytes": _text,
}
