"""Options of kafka-python's clients."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from anabranch.flink_job.errors import ConfigError
from anabranch.messaging.errors import BrokerUnreachable

#: kafka-python logs these causes, and then raises a time-out without them.
_CAUSE = re.compile(r"\w*AuthenticationFailedError: (?!\w*Error)([^)]*)|certificate[^)]*|\[SSL[^)]*")
_BOOLEANS = {"true": True, "false": False}


def options_of(defaults: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a client has, converted from text.

    Args:
        defaults: The client's `DEFAULT_CONFIG`.

    Raises:
        ConfigError: A number or boolean is unreadable.
    """
    return {name: _typed(name, value, defaults[name]) for name, value in written.items() if name in defaults}


def _typed(name: str, value: Any, default: Any) -> Any:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    try:
        if isinstance(default, bool):
            return _BOOLEANS[value.strip().lower()]
        if isinstance(default, int):
            return int(value)
        if isinstance(default, float):
            return float(value)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(default, bool) else "a number"
        raise ConfigError(f"kafka.properties has {name.replace('_', '.')} {value!r}, expected {kind}") from None
    return value


@contextmanager
def connection_causes() -> Iterator[list[str]]:
    """Yield a list that collects why connections are refused: authentication, certificates."""
    causes: list[str] = []
    handler = _CauseHandler(causes)
    logger = logging.getLogger("kafka.net")
    logger.addHandler(handler)
    try:
        yield causes
    finally:
        logger.removeHandler(handler)


class _CauseHandler(logging.Handler):
    def __init__(self, causes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._causes = causes

    def emit(self, record: logging.LogRecord) -> None:
        match = _CAUSE.search(record.getMessage())
        if match and match[0] not in self._causes:
            self._causes.append(match[0])


def unreachable(bootstrap_servers: str, error: Exception | str | None) -> BrokerUnreachable:
    """Return the error of a client that no broker answers."""
    return BrokerUnreachable(f"no Kafka broker at {bootstrap_servers}: is the stack up (anabranch up)? ({error})")
