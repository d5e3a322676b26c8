"""Reads `machines.toml`: the machines that a model is planned for.

    [[machines]]
    name = "edge"
    speed = 0.5                          # relative to this machine
    memory_bytes = "2 GiB"               # or a number
    count = 4                            # machines
    bandwidth_bytes_per_s = 125_000_000  # of its link, each way
    latency_ms = 0.3                     # of its link, each way

Only the name is required: see `anabranch.partition.planning.placement.Machine`.
"""

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from anabranch.partition.errors import UnusableMachines
from anabranch.partition.planning.placement import Machine

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]iB|[kMGT]B|B)")
_UNITS: dict[str, int] = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for suffix, base, letters in (("iB", 1024, "KMGT"), ("B", 1000, "kMGT"))
    for power, letter in enumerate(letters, 1)
}


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    machines: list[dict[str, Any]] = []


def read_machines(path: Path) -> tuple[Machine, ...]:
    """Read the machines that a file describes.

    Raises:
        UnusableMachines: The file is missing, or a key is invalid.
    """
    try:
        entries = msgspec.toml.decode(path.read_bytes(), type=_File).machines
    except OSError as error:
        raise UnusableMachines(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnusableMachines(f"{path}: {error}") from None
    if not entries:
        raise UnusableMachines(f"{path} has no machines: give each kind a table [[machines]] with a name")
    machines = tuple(_machine(entry, f"{path}: machines[{number}]") for number, entry in enumerate(entries))
    names = [machine.name for machine in machines]
    if len(set(names)) < len(names):
        raise UnusableMachines(f"{path}: two machines have one name: set `count` for several machines of one kind")
    return machines


def _machine(entry: dict[str, Any], where: str) -> Machine:
    if isinstance(entry.get("memory_bytes"), str):
        entry = entry | {"memory_bytes": _size_bytes(entry["memory_bytes"], where)}
    try:
        machine = msgspec.convert(entry, Machine)
    except msgspec.ValidationError as error:
        raise UnusableMachines(f"{where}: {error}") from None
    for key, least in (("count", 1), ("memory_bytes", 1), ("latency_ms", 0)):
        value = getattr(machine, key)
        if value is not None and not (math.isfinite(value) and value >= least):
            raise UnusableMachines(f"{where}: {key} = {value}, expected {least} or more")
    for key in ("speed", "bandwidth_bytes_per_s"):
        value = getattr(machine, key)
        if not (math.isfinite(value) and value > 0):
            raise UnusableMachines(f"{where}: {key} = {value}, expected a number above 0")
    return machine


def _size_bytes(text: str, where: str) -> int:
    size = _SIZE.fullmatch(text.strip())
    if size is None:
        raise UnusableMachines(f'{where}: memory_bytes = {text!r}, expected a size such as "4 GiB", or a number')
    return round(float(size[1]) * _UNITS[size[2]])
