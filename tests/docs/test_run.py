"""The commands and programs of README, tutorial and how-to guides run as they are printed.

A page's blocks marked `<!-- test: run -->` run in their order, in a temporary folder with the files that git has of
`examples`. Two things differ from a reader's clone: the stack takes free ports, and `make setup` is left out because it
ran before the tests.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from anabranch.stack import local_stack
from anabranch.stack.flink.rest import FlinkRest
from tests.docs.pages import ROOT, Block, blocks

_BIN = Path(sys.executable).parent
_PRINTED_ADDRESS = "127.0.0.1:9092"
#: Commands that a reader ends with Ctrl-C, and the output after which this test does; empty: after some seconds.
_ENDED_BY_CTRL_C = {
    "anabranch top": "",
    "anabranch run --mini-cluster": " serves",
    "anabranch logs -f": "task-manager-1",
}
_LOOKED_AT_S = 5.0
_LONGEST_WAIT_S = 180.0

pytestmark = pytest.mark.timeout(900)


class Reader:
    """Types the blocks of pages, and reads what they print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._env = os.environ | {"PATH": f"{_BIN}:{os.environ['PATH']}", "COLUMNS": "120"}
        self._env.pop("ANABRANCH_DATA_DIR", None)
        _copy_committed("examples", folder)
        (folder / ".venv").symlink_to(_BIN.parent)

    @property
    def stack(self) -> local_stack.StackStatus:
        return local_stack.status(self.folder / local_stack.DEFAULT_DATA_DIR)

    def follow(self, page: str, *, first: int = 0, last: int | None = None) -> str:
        """Runs the marked blocks of a page, and returns what they print.

        Args:
            page: Path of the page in the repository.
            first: Number of the first marked block to run.
            last: Number of the block before which to stop.
        """
        marked = [block for block in blocks(ROOT / page) if block.mark.startswith("run")]
        assert marked[first:last], f"{page} has no blocks to run"
        return "".join(self._run_block(block) for block in marked[first:last])

    def type(self, command: str) -> str:
        """Runs one command line and returns its output."""
        for begin, shown in _ENDED_BY_CTRL_C.items():
            if command.startswith(begin) and "--once" not in command:
                return self._interrupt(command, shown)
        if command.startswith("make setup"):
            return ""
        if re.search(r"anabranch up\b", command) and "--kafka-port" not in command:
            command += " --kafka-port 0 --flink-port 0 --http-port 0 --grpc-port 0"
        done = subprocess.run(
            ["bash", "-c", self._addressed(command)],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def cancel_jobs(self) -> None:
        """Ends the jobs of the stack, so that the next page finds free slots."""
        stack = self.stack
        assert stack.flink_url
        rest = FlinkRest(stack.flink_url)
        for job in rest.jobs():
            if job.state == "RUNNING":
                rest.cancel(job.job_id)
        deadline = time.monotonic() + 60
        while any(job.state in {"RUNNING", "CANCELLING"} for job in rest.jobs()):
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def _run_block(self, block: Block) -> str:
        if block.language == "python":
            program = self.folder / "program.py"
            program.write_text(self._addressed(block.text))
            return self.type(f"python {program.name}")
        assert block.language == "console", block
        return "".join(self.type(command) for command in block.commands)

    def _addressed(self, text: str) -> str:
        if _PRINTED_ADDRESS not in text:
            return text
        address = self.stack.bootstrap_servers
        assert address
        return text.replace(_PRINTED_ADDRESS, address)

    def _interrupt(self, command: str, shown: str) -> str:
        """Runs a command until it shows a text, then presses Ctrl-C, which ends it without an error."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {self._addressed(command)}"],
            cwd=self.folder,
            env=self._env | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output = ""
        # A command that shows nothing is killed, so that reading its output ends.
        watchdog = threading.Timer(_LONGEST_WAIT_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout
            if not shown:
                time.sleep(_LOOKED_AT_S)
            while shown not in output and (line := process.stdout.readline()):
                output += line
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=_LONGEST_WAIT_S)
        finally:
            watchdog.cancel()
            process.kill()
        output += rest
        assert shown in output, f"$ {command}\n{output}"
        assert process.returncode in {0, 130, -signal.SIGINT}, f"{process.returncode}: {output}"
        return output


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader in an empty folder; the stack that it starts is stopped."""
    reader = Reader(tmp_path)
    yield reader
    local_stack.down(tmp_path / local_stack.DEFAULT_DATA_DIR) if reader.stack.running else None


@pytest.mark.stack
def test_readme_quickstart_runs(reader: Reader) -> None:
    printed = reader.follow("README.md")
    assert "red, green, cyan, brown" in printed
    assert "pink" in printed
    assert not reader.stack.running


@pytest.mark.long
def test_tutorial_and_guides_run_on_one_stack(reader: Reader) -> None:
    """The stack of the tutorial serves the guides, too, and its last block stops it."""
    steps = len([block for block in blocks(ROOT / "docs/tutorial.md") if block.mark == "run"])
    printed = reader.follow("docs/tutorial.md", last=steps - 1)
    for expected in ("red, green, cyan, brown", "session", "200 answers", "(2000,) in", "on 2 tasks", "wrong_shape"):
        assert expected in printed
    assert "wrong_shape" in reader.follow("docs/how-to/dead-letters.md")
    reader.cancel_jobs()
    models = _write_models(reader.folder)
    assert "y" in reader.follow("docs/how-to/own-model.md")
    assert "(1000, 10)" in reader.follow("docs/how-to/client.md")
    assert "probabilities" in reader.follow("docs/how-to/ensembles.md")
    assert "my-model" in reader.follow("docs/how-to/monitor.md")
    assert "task-manager-1" in reader.follow("docs/how-to/debug.md")
    reader.cancel_jobs()
    assert "serves in this process" in reader.follow("docs/how-to/flink-cluster.md")
    reader.follow("docs/how-to/scale-out.md")
    assert len(reader.stack.task_manager_pids) == 4
    reader.cancel_jobs()
    for name in ("panel", "resnet", "vgg", "densenet"):
        shutil.rmtree(models / name)
    (models / "my-model/model.toml").write_text(blocks(ROOT / "docs/how-to/stages.md")[0].text)
    printed = reader.follow("docs/how-to/stages.md")
    assert "my-model/1 stage 2/2" in printed
    assert "plan.json" in printed
    reader.follow("docs/tutorial.md", first=steps - 1)
    assert not reader.stack.running


def _copy_committed(name: str, folder: Path) -> None:
    """Copies the files that git has of a folder of the repository."""
    command = ["git", "ls-files", "-z", name]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in filter(None, listed.split("\0")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)


def _write_models(folder: Path) -> Path:
    """Writes the repository, input and machines that the how-to guides name; returns the repository."""
    repository = folder / "models"
    for name, version, output in (
        ("my-model", "1", "y"),
        ("resnet", "1", "probabilities"),
        ("vgg", "1", "probabilities"),
        ("densenet", "2", "probabilities"),
    ):
        path = repository / name / version / "model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save(_dense_model(output, seed=len(name)), path)
    (repository / "panel").mkdir()
    (repository / "panel/model.toml").write_text(blocks(ROOT / "docs/how-to/ensembles.md")[0].text)
    shutil.copy(repository / "my-model/1/model.onnx", folder / "model.onnx")
    shutil.copy(ROOT / "examples/machines.toml", folder / "machines.toml")
    np.save(folder / "x.npy", np.random.default_rng(1).random((4, 784), np.float32))
    return repository


def _dense_model(output: str, seed: int) -> onnx.ModelProto:
    """Four dense layers from x FP32 [rows, 784] to FP32 [rows, 10]."""
    rng = np.random.default_rng(seed)
    widths = [784, 256, 256, 256, 10]
    nodes, constants, value = [], [], "x"
    for layer, (rows, columns) in enumerate(itertools.pairwise(widths)):
        weights = (rng.standard_normal((rows, columns)) / rows**0.5).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]))
        value = output if layer == len(widths) - 2 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [value]))
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 784])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", 10])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
