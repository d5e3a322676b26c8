"""Figures that are measured once for a machine: how they are kept in the user's cache, one file for each set of them.

Processes that start together on one machine would disturb each other's clocks, so one measures and the others read.
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


class Measurements(msgspec.Struct, Generic[T]):
    """What is known, and what is to be kept."""

    measured: T | None = None


@contextmanager
def kept(kind: str, depends_on: Sequence[object], of: type[T], environ: Mapping[str, str]) -> Iterator[Measurements[T]]:
    """Reads what was kept; keeps what is there at the end. Whoever else asks for the same waits meanwhile.

    Args:
        kind: Of figures.
        depends_on: What they depend on beside ONNX Runtime and the processor, as values whose `repr` tells them apart.
        of: Their type, for `msgspec`.
        environ: The process's environment, which may say where its user's cache is.

    Raises:
        OSError, RuntimeError: There is nowhere to keep it: a read-only disk, or a user without a home.
    """
    folder = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anabranch" / kind
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{_key(depends_on)}.json").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            found = msgspec.json.decode(file.read(), type=Measurements[of])  # type: ignore[valid-type]  # a type at run time
        except msgspec.DecodeError:
            found = Measurements()
        before = msgspec.json.encode(found)
        yield found
        after = msgspec.json.encode(found)
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
