"""`machines.toml`."""

from pathlib import Path

import pytest

from anabranch.partition.errors import UnusableMachines
from anabranch.partition.planning.machines_file import read_machines
from anabranch.partition.planning.placement import Machine

EXAMPLE = Path(__file__).parents[2] / "examples" / "machines.toml"


def test_read_machines_example_is_read() -> None:
    edge, server = read_machines(EXAMPLE)
    assert edge == Machine(
        name="edge", count=4, speed=0.5, memory_bytes=256 << 20, bandwidth_bytes_per_s=125e6, latency_ms=0.3
    )
    assert (server.count, server.memory_bytes) == (1, 8 << 30)


def test_read_machines_name_alone_suffices(tmp_path: Path) -> None:
    path = tmp_path / "machines.toml"
    path.write_text('[[machines]]\nname = "a"\n[[machines]]\nname = "b"\nmemory_bytes = "1.5 kB"\n')
    assert read_machines(path) == (Machine(name="a"), Machine(name="b", memory_bytes=1500))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no machines"),
        ("[[machines]]", "machines\\[0\\].*missing required field `name`"),
        ("node = 3", "unknown field `node`"),
        ("[[machines", "machines.toml: "),
        ('[[machines]]\nname = "a"\nspeeed = 2.0', "unknown field `speeed`"),
        ('[[machines]]\nname = "a"\nspeed = 0', "speed = 0.0, expected a number above 0"),
        ('[[machines]]\nname = "a"\nspeed = nan', "speed = nan, expected a number above 0"),
        ('[[machines]]\nname = "a"\ncount = 0', "count = 0, expected 1 or more"),
        ('[[machines]]\nname = "a"\nlatency_ms = -1', "latency_ms = -1.0, expected 0 or more"),
        ('[[machines]]\nname = "a"\nmemory_bytes = "lots"', 'expected a size such as "4 GiB"'),
        ('[[machines]]\nname = "a"\n[[machines]]\nname = "a"', "two machines have one name"),
    ],
)
def test_read_machines_invalid_file_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "machines.toml"
    path.write_text(text)
    with pytest.raises(UnusableMachines, match=why):
        read_machines(path)


def test_read_machines_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableMachines, match=r"cannot read .*: No such file"):
        read_machines(tmp_path / "machines.toml")
