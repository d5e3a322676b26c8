"""The client alone, on each supported Python that this machine has or uv can fetch."""

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from tests.packaging.conftest import CLIENT_VERSIONS, ROOT, Environment, uv

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]

OLDEST, NEWEST = CLIENT_VERSIONS[0], CLIENT_VERSIONS[-1]
#: A round trip in the installed package. With arguments: through the broker and topics that they name.
ROUND_TRIP = """
import sys
import numpy as np
import anabranch
from anabranch import Client, errors
from anabranch.testing import FakeJob

def double(inputs):
    return {"y": 2 * inputs["x"]}

with FakeJob({"double": double}) as job:
    if sys.argv[1:]:
        topics = {"requests_topic": sys.argv[2], "responses_topic": sys.argv[3]}
        job.listen(sys.argv[1], **topics)
        client = Client(sys.argv[1], **topics)
    else:
        client = job.client()
    with client:
        answer = client.infer("double", {"x": np.arange(3, dtype=np.float32)})
        assert answer["y"].tolist() == [0, 2, 4] and answer["y"].dtype == np.float32
        try:
            client.infer("triple", {"x": np.arange(3)})
        except errors.UnknownModel as error:
            assert error.code == "unknown_model" and isinstance(error, anabranch.AnabranchError)
        else:
            raise AssertionError("an unknown model was served")
print("served")
"""
#: kafka-python reads its schemas with functions that Python 3.11 and 3.12 deprecate.
DEPRECATED = ("read_text", "open_text")
STRICT = ("-W", "error", *(f"-Wignore:{name} is deprecated:DeprecationWarning" for name in DEPRECATED))
#: Prints the modules of the client, with each public name looked up.
CLOSURE = """
import sys
import anabranch, anabranch.client, anabranch.errors, anabranch.testing
for name in anabranch.__all__:
    getattr(anabranch, name)
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "anabranch"))
"""


def text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


@pytest.fixture(scope="module", params=CLIENT_VERSIONS, ids=text)
def client(request: pytest.FixtureRequest, install: Callable[..., Environment]) -> Environment:
    return install(request.param)


def test_client_needs_four_packages(client: Environment) -> None:
    list_packages = "from importlib.metadata import distributions; print(*sorted(d.name for d in distributions()))"
    packages = set(client.check("python", "-c", list_packages).split())
    # crc32c is kafka-python's.
    assert packages == {"anabranch", "crc32c", "kafka-python", "msgspec", "numpy", "protobuf"}


def test_client_round_trip_succeeds(client: Environment) -> None:
    assert client.check("python", *STRICT, "-c", ROUND_TRIP) == "served\n"


def test_client_round_trip_through_kafka_succeeds(client: Environment, broker: KafkaBroker) -> None:
    topics = [f"{name}-{uuid.uuid4().hex[:8]}" for name in ("requests", "responses")]
    broker.create_topics(*map(Topic, topics))
    assert client.check("python", "-c", ROUND_TRIP, broker.bootstrap_servers, *topics) == "served\n"


def test_client_public_names_all_resolve(client: Environment) -> None:
    script = "import anabranch; print(*[name for name in anabranch.__all__ if getattr(anabranch, name) is None])"
    assert client.check("python", *STRICT, "-c", script).split() == []


def test_client_command_names_the_extra(client: Environment) -> None:
    for command in (["anabranch", "--help"], ["python", "-m", "anabranch", "up"]):
        done = client.run(*command)
        assert done.returncode == 1
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        assert line.startswith("anabranch: the package 'typer' is not installed: ")
        assert "pip install 'anabranch[server]'" in line


@pytest.mark.parametrize("package", ["schemas", "operators", "partition", "flink_job"])
def test_client_user_package_does_not_collide(client: Environment, package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text("mine = True")
    script = f"import sys; sys.path.insert(0, '.')\n{ROUND_TRIP}\nimport {package}\nprint({package}.mine)"
    assert client.check("python", "-c", script, cwd=tmp_path) == "served\nTrue\n"


def test_client_lowest_dependencies_suffice(install: Callable[..., Environment]) -> None:
    lowest = install(OLDEST, "", "--resolution", "lowest-direct")
    assert lowest.check("python", "-c", ROUND_TRIP) == "served\n"


@pytest.mark.parametrize("version", CLIENT_VERSIONS, ids=text)
def test_client_dependencies_have_wheels(version: tuple[int, int]) -> None:
    options = ("--quiet", "--no-header", "--no-annotate", "--no-build", "--python-version", text(version))
    found = uv("pip", "compile", *options, ROOT / "pyproject.toml")
    assert set(re.findall(r"^[a-z0-9-]+", found, re.M)) == {"crc32c", "kafka-python", "msgspec", "numpy", "protobuf"}


@pytest.mark.parametrize("version", [OLDEST, NEWEST], ids=text)
def test_client_modules_type_check(version: tuple[int, int], tmp_path: Path) -> None:
    """Standard library names and syntax that a Python lacks are errors, without that Python on this machine."""
    done = type_check(version, tmp_path / "cache", *closure())
    assert done.returncode == 0, done.stdout


def test_client_type_check_sees_newer_names(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import tomllib\nfrom typing import Self\nfrom enum import StrEnum\n")
    done = type_check(OLDEST, tmp_path / "cache", script=script)
    assert done.stdout.count("error:") == 3


def closure() -> list[str]:
    done = subprocess.run([sys.executable, "-c", CLOSURE], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def type_check(
    version: tuple[int, int], cache: Path, *modules: str, script: Path | None = None
) -> subprocess.CompletedProcess[str]:
    arguments: list[str | Path] = [script] if script else [part for name in modules for part in ("-m", name)]
    options = ("--python-version", text(version), "--follow-imports", "silent", "--cache-dir", cache)
    command: list[str | Path] = [sys.executable, "-m", "mypy", *options, *arguments]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
