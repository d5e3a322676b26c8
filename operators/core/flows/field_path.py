"""Paths of fields in events: `user.age`, `items[0].price`, `headers."x.id"`."""

import re
from typing import TypeAlias

#: Keys of objects and indices of lists.
FieldPath: TypeAlias = tuple[str | int, ...]

_KEY = r'"(?:[^"\\]|\\["\\])+"|[^\s."\[\]\\]+'
_STEP = re.compile(rf"(?P<dot>\.)?(?P<key>{_KEY})|\[(?P<index>-?\d+)\]")
_PLAIN = re.compile(r'[^\s."\[\]\\]+')


def parse_path(text: str) -> FieldPath:
    """Parse a path, or raise ValueError."""
    steps: list[str | int] = []
    at = 0
    while at < len(text):
        found = _STEP.match(text, at)
        is_key = found is not None and found["key"] is not None
        if found is None or (found["dot"] is not None) != (is_key and at > 0) or (not steps and not is_key):
            raise ValueError(
                f"{text!r} is not a path at character {at + 1}: write keys with dots between them, "
                "list indices in brackets, and unusual keys in quotes"
            )
        key = found["key"]
        if key is None:
            steps.append(int(found["index"]))
        else:
            steps.append(re.sub(r"\\(.)", r"\1", key[1:-1]) if key[0] == '"' else key)
        at = found.end()
    if not steps:
        raise ValueError("a path is empty: write the keys of the field with dots between them")
    return tuple(steps)


def format_path(path: FieldPath) -> str:
    """Format a path as `parse_path` reads it."""
    parts = []
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
            continue
        escaped = step.replace("\\", "\\\\").replace('"', '\\"')
        key = step if _PLAIN.fullmatch(step) else f'"{escaped}"'
        parts.append(f".{key}" if parts else key)
    return "".join(parts)
