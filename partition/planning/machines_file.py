"""Reads `nodes.toml`: the machines that a model is planned for.

    [[nodes]]
    name = "edge"
    speed = 0.5                          # 1.0: as fast as this machine, where the model is profiled
    memory_bytes = "2 GiB"               # or a number; without it, any model fits
    count = 4                            # so many of this kind
    bandwidth_bytes_per_s = 125_000_000  # of its link, each way
    latency_ms = 0.3                     # of its link, each way

An unknown key is refused. All but the name have defaults: see `anabranch.partition.planning.placement.Machine`.
"""

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from anabranch.partition.errors import UnusableNodes
from anabranch.partition.planning.placement import Machine

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]iB|[kMGT]B|B)")
_UNITS: dict[str, int] = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for suffix, base, letters in (("iB", 1024, "KMGT"), ("B", 1000, "kMGT"))
    for power, letter in enumerate(letters, 1)
}


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    nodes: list[dict[str, Any]] = []


def read_nodes_file(path: Path) -> tuple[Machine, ...]:
    """The machines that a file describes.

    Raises:
        UnusableNodes: It is missing, or does not describe any; the message says which key, and why.
    """
    try:
        entries = msgspec.toml.decode(path.read_bytes(), type=_File).nodes
    except OSError as error:
        raise UnusableNodes(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnusableNodes(f"{path}: {error}") from None
    if not entries:
        raise UnusableNodes(f"{path} describes no nodes: give each kind a table [[nodes]] with a name")
    machines = tuple(_machine(entry, f"{path}: nodes[{number}]") for number, entry in enumerate(entries))
    names = [machine.name for machine in machines]
    if len(set(names)) < len(names):
        raise UnusableNodes(f"{path}: two nodes have one name; one kind of node has `count`")
    return machines


def _machine(entry: dict[str, Any], where: str) -> Machine:
    if isinstance(entry.get("memory_bytes"), str):
        entry = entry | {"memory_bytes": _size_bytes(entry["memory_bytes"], where)}
    try:
        machine = msgspec.convert(entry, Machine)
    except msgspec.ValidationError as error:
        raise UnusableNodes(f"{where}: {error}") from None
    for key, least in (("count", 1), ("memory_bytes", 1), ("latency_ms", 0)):
        value = getattr(machine, key)
        if value is not None and not (math.isfinite(value) and value >= least):
            raise UnusableNodes(f"{where}: {key} = {value} is less than {least}, or no number")
    for key in ("speed", "bandwidth_bytes_per_s"):
        value = getattr(machine, key)
        if not (math.isfinite(value) and value > 0):
            raise UnusableNodes(f"{where}: {key} = {value} must be more than 0")
    return machine


def _size_bytes(text: str, where: str) -> int:
    size = _SIZE.fullmatch(text.strip())
    if size is None:
        raise UnusableNodes(f'{where}: memory_bytes = {text!r} is no size: write "4 GiB" or a number')
    return round(float(size[1]) * _UNITS[size[2]])
