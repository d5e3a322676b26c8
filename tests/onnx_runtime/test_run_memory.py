"""The memory that runs take: its limit, and runs that need more."""

import subprocess
import sys
from pathlib import Path

import pytest

from anabranch.onnx_runtime.run_memory import half_of_memory, lacks_memory

MIB = 1 << 20
#: `y` has as many elements as the input says; the arena holds 64 MiB.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from onnx import TensorProto as T, helper as h, save
from anabranch.operators.backends.onnx import OnnxBackend, read_signature, sha256_of
from anabranch.schemas.errors import OutOfMemory
from anabranch.schemas.model import ModelSpec
path = Path(sys.argv[1])
ones = h.make_node("ConstantOfShape", ["n"], ["y"], value=h.make_tensor("v", T.FLOAT, [1], [1.0]))
tensors = [h.make_tensor_value_info("n", T.INT64, [1])], [h.make_tensor_value_info("y", T.FLOAT, ["k"])]
save(h.make_model(h.make_graph([ones], "g", *tensors), opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
session = OnnxBackend(64).load(ModelSpec("m", "1", str(path), sha256_of(path), *read_signature(path), batchable=False))
MILLION = 1_000_000
run = lambda size: session.run(["y"], {"n": np.array([size])})[0].size
"""


def outcome(tmp_path: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + script, str(tmp_path / "model.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_run_that_needs_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    """Without a limit the kernel ends the process."""
    script = """
for size in (40_000_000, 40_000_000_000, 10):
    try:
        print(run(size))
    except OutOfMemory as error:
        print(error)
"""
    first, second, third = outcome(tmp_path, script).splitlines()
    assert "more than the 64 MiB that the runs of a process may take" in first
    assert "job.max_run_memory_mb" in second
    assert third == "10"


@pytest.mark.slow
def test_arena_in_pieces_is_joined_for_a_larger_run(tmp_path: Path) -> None:
    assert outcome(tmp_path, "print([run(size * MILLION) for size in (4, 5, 10)])") == "[4000000, 5000000, 10000000]"


@pytest.mark.slow
def test_arena_grows_little_with_sizes_that_grow(tmp_path: Path) -> None:
    script = """
import psutil
before = psutil.Process().memory_info().rss
for size in range(100_000, 2_500_000, 100_000):
    run(size)
print(psutil.Process().memory_info().rss - before >> 20)
"""
    assert int(outcome(tmp_path, script)) < 40  # All sizes together are 119 MB; the largest is 10.


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/job/task", {"job/memory.max": "400", "job/task/memory.max": "max"}, 200),
        ("0::/job/task", {"job/memory.max": "400", "job/task/memory.max": "300"}, 150),
        ("5:cpu:/x\n4:memory:/job", {"memory/job/memory.limit_in_bytes": "500", "x/memory.max": "2"}, 250),
        ("0::/../other", {"memory.max": "600"}, 300),
    ],
)
def test_half_of_memory_is_of_the_smallest_group(
    tmp_path: Path, lines: str, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "membership").write_text(lines)
    assert half_of_memory(tmp_path, tmp_path / "membership") == expected


def test_half_of_memory_without_groups_is_of_the_machine(tmp_path: Path) -> None:
    assert half_of_memory(tmp_path, tmp_path / "none") > 100 * MIB


def test_lack_of_memory_is_told_from_other_failures() -> None:
    assert lacks_memory(RuntimeError("BFCArena: Available memory of 1 is smaller than requested bytes of 2"))
    assert lacks_memory(RuntimeError("std::bad_alloc"))
    assert not lacks_memory(ValueError("wrong shape"))
