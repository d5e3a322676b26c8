"""The server on each Python that PyFlink supports, with the versions of the lock."""

from collections.abc import Callable

import pytest

from tests.packaging.conftest import ROOT, SERVER_VERSIONS, Environment

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

IMPORT_ALL = """
import importlib, pkgutil
import anabranch
names = [module.name for module in pkgutil.walk_packages(anabranch.__path__, "anabranch.")]
apart = ("anabranch.demo", "anabranch.importing.converter", "anabranch.__main__")
for name in names:
    if not name.startswith(apart):
        importlib.import_module(name)
print(len(names))
"""


@pytest.fixture(scope="module", params=SERVER_VERSIONS, ids=lambda version: f"{version[0]}.{version[1]}")
def server(request: pytest.FixtureRequest, install: Callable[..., Environment]) -> Environment:
    return install(request.param, "[server]", "--constraint", ROOT / "deploy" / "requirements.lock")


def test_server_imports_every_module(server: Environment) -> None:
    assert int(server.check("python", "-c", IMPORT_ALL)) > 100


def test_server_command_starts(server: Environment) -> None:
    assert "Usage: anabranch" in server.check("anabranch", "--help")


def test_server_demo_names_its_package(server: Environment) -> None:
    done = server.run("python", "-c", "import anabranch.demo.features")
    assert "No module named 'magika'" in done.stderr


def test_server_on_newer_python_lacks_pyflink_alone(install: Callable[..., Environment]) -> None:
    environment = install((3, 13), "[server]")
    assert "Usage: anabranch" in environment.check("anabranch", "--help")
    done = environment.run("python", "-c", "import pyflink")
    assert "No module named 'pyflink'" in done.stderr
