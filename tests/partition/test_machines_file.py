"""`nodes.toml`."""

from pathlib import Path

import pytest

from anabranch.partition.errors import UnusableNodes
from anabranch.partition.planning.machines_file import read_nodes_file
from anabranch.partition.planning.placement import Machine

EXAMPLE = Path(__file__).parents[2] / "examples" / "nodes.toml"


def test_the_example_is_read() -> None:
    edge, server = read_nodes_file(EXAMPLE)
    assert edge == Machine(
        name="edge", count=4, speed=0.5, memory_bytes=256 << 20, bandwidth_bytes_per_s=125e6, latency_ms=0.3
    )
    assert (server.count, server.memory_bytes) == (1, 8 << 30)


def test_all_but_the_name_has_defaults(tmp_path: Path) -> None:
    path = tmp_path / "nodes.toml"
    path.write_text('[[nodes]]\nname = "a"\n[[nodes]]\nname = "b"\nmemory_bytes = "1.5 kB"\n')
    assert read_nodes_file(path) == (Machine(name="a"), Machine(name="b", memory_bytes=1500))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "describes no nodes"),
        ("[[nodes]]", "nodes\\[0\\].*missing required field `name`"),
        ("node = 3", "unknown field `node`"),
        ("[[nodes", "nodes.toml: "),
        ('[[nodes]]\nname = "a"\nspeeed = 2.0', "unknown field `speeed`"),
        ('[[nodes]]\nname = "a"\nspeed = 0', "speed = 0.0 must be more than 0"),
        ('[[nodes]]\nname = "a"\nspeed = nan', "speed = nan must be more than 0"),
        ('[[nodes]]\nname = "a"\ncount = 0', "count = 0 is less than 1"),
        ('[[nodes]]\nname = "a"\nlatency_ms = -1', "latency_ms = -1.0 is less than 0"),
        ('[[nodes]]\nname = "a"\nmemory_bytes = "lots"', 'no size: write "4 GiB" or a number'),
        ('[[nodes]]\nname = "a"\n[[nodes]]\nname = "a"', "two nodes have one name"),
    ],
)
def test_what_describes_no_nodes_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "nodes.toml"
    path.write_text(text)
    with pytest.raises(UnusableNodes, match=why):
        read_nodes_file(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnusableNodes, match=r"cannot read .*: No such file"):
        read_nodes_file(tmp_path / "nodes.toml")
