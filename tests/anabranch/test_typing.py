"""Programs that use the installed package are checked by mypy --strict."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WELL_TYPED = Path(__file__).with_name("typed_script.py")
#: Each marked line has one error, and no other line has any.
MISTYPED = """
import numpy as np

import anabranch
from anabranch import Cleint  # error: attr-defined
from anabranch import Client, RequestError, Result
from anabranch.errors import DeadlineExceded  # error: attr-defined
from anabranch.schemas.model import ModelSpec
from anabranch.operators.backends.base import Backend
from anabranch.testing import FakeJob, InferRequest, fake_job  # error: attr-defined

x = np.zeros((1, 2))
Client(bootstrap_server="127.0.0.1:9092")  # error: call-arg
Client(timeout_s="5")  # error: arg-type
Client("127.0.0.1:9092", "requests")  # error: call-arg
Client(isolation_level="committed")  # error: arg-type
client = Client()
client.infer("m", x, deadline=5)  # error: call-arg
client.infer("m", x, deadline_ms="5")  # error: arg-type
client.infer("m", x, priority=1.5)  # error: arg-type
client.infer("m", x, outputs=[1])  # error: list-item
client.infer("m", x, parameters={"p": None})  # error: dict-item
client.infer("m", x, key=b"k")  # error: arg-type
client.infer("m")  # error: call-arg
client.infer(3, x)  # error: arg-type
client.infre("m", x)  # error: attr-defined
client.submit("m", x, time_out_s=1)  # error: call-arg
client.submit("m", x)["y"]  # error: index
result = client.infer("m", x)
result["y"] = x  # error: index
result[0]  # error: index
result.latency  # error: attr-defined
rows: list[int] = result.missing_rows  # error: assignment
number: int = result.model_name  # error: assignment
RequestError()  # error: call-arg
RequestError("message").codes  # error: attr-defined
anabranch.NoSuchError  # error: attr-defined
with Client() as other:
    other.send("m", x)  # error: attr-defined
with FakeJob(answers=None) as job:  # error: call-arg
    job.client(timeout_ms=5)  # error: call-arg
    job.recieved  # error: attr-defined
    job.requests[0].model  # error: attr-defined
    job.answer = lambda request: 5  # error: assignment return-value
FakeJob({"m": lambda inputs: 5})  # error: dict-item return-value


class Loader:
    def load(self, model: str) -> None: ...


backend: Backend = Loader()  # error: assignment


def name_of(spec: ModelSpec, request: InferRequest, answer: Result) -> int:
    return spec.name  # error: return-value
"""


@pytest.fixture(scope="module", autouse=True)
def _only_the_installed_package() -> Iterator[None]:
    """Jobs of earlier tests leave the checkout on `PYTHONPATH`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        yield


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the built wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("anabranch", "schemas", "operators", "partition", "flink_job"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    run([sys.executable, "-c", build, str(folder)], source)
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], folder)
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # Entries of a .pth file come after the folder itself, and their own .pth files do not count.
    (packages / "dependencies.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    return folder / "venv" / "bin" / "python"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def check(python: Path, script: Path, version: str = "3.11") -> subprocess.CompletedProcess[str]:
    """Runs mypy --strict as a user of the installed package does."""
    folder = python.parents[2]
    options = ["--config-file=", "--strict", "--python-version", version, "--cache-dir", str(folder / "cache")]
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), *options, str(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def errors_of(output: str) -> list[tuple[int, str]]:
    return sorted(
        (int(line), code) for line, code in re.findall(r"^[\w.]+:(\d+): error: .*\[([\w-]+)\]$", output, re.M)
    )


def marked(script: str) -> list[tuple[int, str]]:
    lines = enumerate(script.splitlines(), 1)
    return sorted((number, code) for number, line in lines for code in line.partition("# error: ")[2].split())


@pytest.fixture(scope="module")
def typed_script(python: Path) -> Path:
    return Path(shutil.copy(WELL_TYPED, python.parents[2]))


@pytest.mark.slow
def test_installed_package_typed_script_passes(python: Path, typed_script: Path) -> None:
    # The oldest Python of the client.
    assert check(python, typed_script, "3.10").stdout == "Success: no issues found in 1 source file\n"


@pytest.mark.slow
def test_installed_package_typed_script_runs(python: Path, typed_script: Path) -> None:
    printed = run([str(python), str(typed_script)], python.parents[2]).stdout.split()
    assert printed[1:] == ["no_answer", "DoublingBackend", "DoublingSession"]


@pytest.mark.slow
def test_installed_package_mistyped_script_is_caught(python: Path) -> None:
    script = python.parents[2] / "mistyped.py"
    script.write_text(MISTYPED)
    checked = check(python, script)
    assert errors_of(checked.stdout) == marked(MISTYPED), checked.stdout + checked.stderr


@pytest.mark.slow
def test_installed_package_without_marker_is_untyped(python: Path, typed_script: Path) -> None:
    marker = next(python.parents[1].glob("lib/python*/site-packages/anabranch/py.typed"))
    marker.unlink()
    try:
        assert "py.typed marker" in check(python, typed_script).stdout
    finally:
        marker.touch()
