"""Access to a gateway: API keys and bearer tokens, and deadlines that a request states."""

from __future__ import annotations

import hmac
import re
from base64 import b64decode
from collections.abc import Iterable
from pathlib import Path

from anabranch.errors import UnusableArgument
from anabranch.schemas.errors import InvalidParameter

_GRPC_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LEAST_KEY_LENGTH = 16
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Keys:
    """The keys that open a gateway; none open it to all."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = [key.encode() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def admit(self, authorization: str | None, api_key: str | None = None) -> bool:
        """Tells whether a caller may ask.

        Args:
            authorization: Value of the header: `Bearer KEY`, or `Basic` with the key as password, as browsers send it.
            api_key: Value of `X-API-Key`.
        """
        if not self._keys:
            return True
        scheme, _, token = (authorization or "").partition(" ")
        given = [token.strip()] if scheme.lower() == "bearer" else []
        given += [_password(token)] if scheme.lower() == "basic" else []
        given += [api_key] if api_key else []
        # Compares with all keys, so that time tells nothing.
        return sum(hmac.compare_digest(key, each.encode()) for each in given for key in self._keys) > 0


def _password(token: str) -> str:
    try:
        return b64decode(token, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def read_keys(path: Path) -> Keys:
    """Read a key from each line of a file; lines that start with `#` are comments.

    Raises:
        UnusableArgument: The file has no key, or a short one.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableArgument(f"cannot read the keys in {path}: {error}; check the path") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or min(map(len, keys)) < _LEAST_KEY_LENGTH:
        raise UnusableArgument(
            f"{path} has {len(keys)} keys, expected at least one, each of {_LEAST_KEY_LENGTH} characters or more: "
            "write one per line, such as `openssl rand -hex 32` prints"
        )
    return Keys(keys)


def is_loopback(host: str) -> bool:
    """Tells whether only this machine reaches a host."""
    return host in _LOOPBACK or host.startswith("127.")


def read_timeout_s(text: str) -> float:
    """Read a duration as gRPC writes it, such as `250m` for 250 ms, or raise `InvalidParameter`."""
    match = _GRPC_TIMEOUT.fullmatch(text.strip())
    if not match:
        raise InvalidParameter(
            f"the timeout {text[:40]!r} is unreadable: send up to eight digits and a unit of H, M, S, m, u, n"
        )
    return int(match[1]) * _UNITS_S[match[2]]
