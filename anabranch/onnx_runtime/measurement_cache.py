"""Cache of this machine's measurements, each in a locked file."""

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
    """Cached value; assignment stores a new one."""

    measured: T | None = None


@contextmanager
def cached_measurement(
    kind: str, depends_on: Sequence[object], value_type: type[T], environ: Mapping[str, str]
) -> Iterator[CachedMeasurement[T]]:
    """Yield a measurement and store it on exit, under an exclusive lock.

    Args:
        kind: Name of the folder.
        depends_on: Key, besides ONNX Runtime and the processor.
        value_type: Type of the value.
        environ: `XDG_CACHE_HOME` moves the cache.

    Raises:
        OSError, RuntimeError: The cache cannot be written.
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
