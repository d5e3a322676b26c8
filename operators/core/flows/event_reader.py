"""Reads the fields of JSON events, without building the other ones.

A flow's paths become the fields of nested structs, so that msgspec skips everything else. It checks the syntax of
skipped parts, but not their UTF-8.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from anabranch.operators.core.flows.field_path import FieldPath, format_path
from anabranch.schemas.errors import AnabranchError, InvalidField, UnreadableRequest

MISSING = msgspec.UNSET
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventReader:
    """Reads the values of paths; repeated keys count once, the last one."""

    def __init__(self, paths: Sequence[FieldPath]) -> None:
        self._paths = paths
        tree: dict[str, Any] = {}
        for path in paths:
            _grow(tree, path)
        self._decoder = msgspec.json.Decoder(_struct_of(tree))
        self._decode = self._decoder.decode
        found = [_attributes_of(tree, path) for path in paths]
        self._steps = found
        self._is_plain = all(not rest for _, rest in found)
        self._get_all = _getter([".".join(names) for names, _ in found])

    def read_good(self, messages: Sequence[bytes]) -> list[Sequence[Any]] | None:
        """Read events; None if any needs a closer look."""
        if not self._is_plain:
            return None
        decode, decoder, get_all = self._decode, self._decoder, self._get_all
        try:
            return [get_all(decode(each) if each.isascii() else decode_json(each, decoder)) for each in messages]
        except (msgspec.DecodeError, RecursionError, AttributeError, AnabranchError):
            return None

    def read(self, message: bytes) -> Sequence[Any]:
        """Return the value of each path, MISSING without one.

        Raises:
            UnreadableRequest: The message is not JSON.
            InvalidField: The event or a field on the way is not an object.
        """
        try:
            event = self._decode(message) if message.isascii() else decode_json(message, self._decoder)
        except (msgspec.DecodeError, RecursionError):
            event = decode_json(message, self._decoder)  # It names the error.
        if self._is_plain:
            try:
                return self._get_all(event)
            except AttributeError:
                pass  # A field on the way is missing or null.
        return [_walk(event, path, *steps) for path, steps in zip(self._paths, self._steps, strict=True)]


def decode_json(message: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Decode an event, or raise as `EventReader.read`."""
    try:
        if not message.isascii():
            message.decode()
            message = message.removeprefix(_BYTE_ORDER_MARK)
        return decoder.decode(message)
    except msgspec.ValidationError as error:
        raise _not_an_object(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableRequest(f"the event is not JSON: {error}: send a JSON object") from None


def _not_an_object(message: str) -> InvalidField:
    what, _, path = message.partition(" - at `$")
    if not what.startswith("Expected `object"):
        return InvalidField(f"the event has a number that is out of range ({message}): send it as a text")
    name = path.rstrip("`").lstrip(".")
    found = what.rpartition("got `")[2].rstrip("`")
    subject = f"field {name!r}" if name else "the event"
    return InvalidField(f"{subject} is {_JSON_NAMES.get(found, found)}, expected an object: send the fields in it")


_JSON_NAMES = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a number",
    "null": "null",
    "str": "a text",
}


def _grow(tree: dict[str, Any], path: FieldPath) -> None:
    """Add a path; None marks a key whose value is read whole."""
    for at, step in enumerate(path):
        is_last = at + 1 == len(path) or isinstance(path[at + 1], int)
        key = str(step)
        if is_last:
            tree[key] = None
            return
        if (below := tree.setdefault(key, {})) is None:
            return
        tree = below


def _struct_of(tree: dict[str, Any]) -> type[msgspec.Struct]:
    fields = []
    for number, below in enumerate(tree.values()):
        kind = Any if below is None else _struct_of(below) | None | msgspec.UnsetType
        fields.append((f"f{number}", kind, MISSING))
    names = {f"f{number}": key for number, key in enumerate(tree)}
    return msgspec.defstruct("Fields", fields, rename=names, gc=False)


def _attributes_of(tree: dict[str, Any], path: FieldPath) -> tuple[list[str], FieldPath]:
    """Return the attributes of a path in the structs, and its steps inside the value that is read whole."""
    names = []
    for at, step in enumerate(path):
        key = str(step)
        names.append(f"f{list(tree).index(key)}")
        if tree[key] is None:
            return names, path[at + 1 :]
        tree = tree[key]
    raise AssertionError(path)


def _getter(names: Sequence[str]) -> Callable[[Any], Sequence[Any]]:
    get = attrgetter(*names) if names else None
    if get is None:
        return lambda _: ()
    return get if len(names) > 1 else lambda event: (get(event),)


def value_at(value: Any, path: FieldPath) -> Any:
    """Return the value of a path in dictionaries and lists, MISSING without one; raise InvalidField."""
    return _walk(value, path, (), path)


def _walk(value: Any, path: FieldPath, names: Sequence[str], rest: FieldPath) -> Any:
    for name in names:
        value = getattr(value, name, MISSING)
    for at, step in enumerate(rest, len(names)):
        if value is None or value is MISSING:
            return MISSING
        if isinstance(step, int) and isinstance(value, list):
            value = value[step] if -len(value) <= step < len(value) else MISSING
        elif isinstance(step, str) and isinstance(value, dict):
            value = value.get(step, MISSING)
        else:
            expected = "a list" if isinstance(step, int) else "an object"
            raise InvalidField(f"field {format_path(path[:at])!r} is {describe(value)}, expected {expected}: send one")
    return value


def describe(value: Any) -> str:
    """Describe a value of an event in a message."""
    if value is MISSING:
        return "missing"
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:37] + "..."
