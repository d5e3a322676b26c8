"""Reads tables of a TOML file into structs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from anabranch.flink_job.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)

_TOML_NAMES = {"object": "a table", "array": "a list", "str": "a string", "int": "an integer", "bool": "true or false"}


def read_section(written: object, section: type[T], place: str, prefix: str = "") -> T:
    """Convert a table of a TOML file; raise ConfigError.

    Args:
        place: File, for messages.
        prefix: Table and a dot, for messages.
    """
    try:
        return msgspec.convert(written, section)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{place}: {_explain(str(error), written, section, prefix)}") from None


def _explain(message: str, written: object, section: type, prefix: str) -> str:
    """Put msgspec's message into the shape `KEY is VALUE, expected RANGE`."""
    what, _, path = message.partition(" - at `$.")
    # `flow[0].to` has an index as a name of its own.
    names = re.findall(r"[^.\[\]]+", path.rstrip("`"))
    key = prefix + path.rstrip("`")
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        table = key.rstrip(".")
        return f"unknown key '{match[1]}'{f' in [{table}]' if table else ''}; {_available(_type_at(section, names))}"
    value, expected = _value_at(written, names), _type_at(section, names)
    if isinstance(expected, inspect.LiteralType):
        return f"unknown {key} {value!r}; {_available(expected)}"
    if match := re.fullmatch(r"Expected `array` of length >= (\d+)", what):
        return f"{key} is {value!r}, expected a list of at least {match[1]}"
    if isinstance(expected, inspect.IntType | inspect.FloatType) and ", got" not in what:
        return f"{key} is {value}, expected {_range(expected)}"
    if match := re.fullmatch(r"Expected `(.*)`, got `.*`", what):
        return f"{key} is {value!r}, expected {_TOML_NAMES.get(match[1], match[1])}"
    return f"{key}: {what}"


def _value_at(written: Any, names: list[str]) -> object:
    for name in names:
        if isinstance(written, list):
            written = written[int(name)]
        else:
            written = written[name] if isinstance(written, Mapping) and name in written else None
    return written


def _type_at(section: type, names: list[str]) -> inspect.Type | None:
    found: inspect.Type | None = inspect.type_info(section)
    for name in names:
        if isinstance(found, inspect.VarTupleType | inspect.ListType):
            found = found.item_type
            continue
        fields = {each.encode_name: each.type for each in found.fields} if isinstance(found, inspect.StructType) else {}
        found = fields.get(name)
        if isinstance(found, inspect.UnionType):
            found = next(each for each in found.types if not isinstance(each, inspect.NoneType))
    return found


def _available(found: inspect.Type | None) -> str:
    names: Iterable[object] = ()
    if isinstance(found, inspect.StructType):
        names = sorted(each.encode_name for each in found.fields)
    if isinstance(found, inspect.LiteralType):
        names = found.values
    return f"available: {', '.join(map(str, names))}"


def _range(found: inspect.IntType | inspect.FloatType) -> str:
    least, most = found.ge, found.le
    if least is None or most is None:
        return f"at most {most}" if least is None else f"at least {least}"
    return f"{least} to {most}"
