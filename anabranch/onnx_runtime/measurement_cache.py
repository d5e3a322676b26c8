"""Caches measurements of this machine in the user's cache folder, one file for each set of figures.

A file is locked while its figures are measured: processes that start together would disturb each other's clocks, so one
measures and the others read.
"""

import fcntl
import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class CachedMeasurement(msgspec.Struct, Generic[T]):
    """A cached value, or None; assign it to store a new one."""

    measured: T | None = None


@contextmanager
def cached_measurement(
    kind: str, depends_on: Sequence[object], value_type: type[T], environ: Mapping[str, str]
) -> Iterator[CachedMeasurement[T]]:
    """Yields the cached measurement and stores it on exit, under an exclusive file lock.

    Args:
        kind: Kind of figures; names their folder.
        depends_on: Values that the figures depend on, besides ONNX Runtime and the processor; told apart by `repr`.
        value_type: Type of the value, for `msgspec`.
        environ: Environment of the process; `XDG_CACHE_HOME` moves the cache.

    Raises:
        OSError, RuntimeError: The cache cannot be written: a read-only disk, or a user without a home.
    """
    folder = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anabranch" / kind
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{_key(depends_on)}.json").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            cached = msgspec.json.decode(
                file.read(),
                type=CachedMeasurement[value_type],  # type: ignore[valid-type]  # a type at run time
            )
        except msgspec.DecodeError:
            cached = CachedMeasurement()
        before = msgspec.json.encode(cached)
        yield cached
        after = msgspec.json.encode(cached)
        if after != before:
            file.truncate(0)
            file.write(after)


def _key(depends_on: Sequence[object]) -> str:
    known = (*depends_on, version("onnxruntime"), platform.machine(), _processor())
    return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), platform.processor())
