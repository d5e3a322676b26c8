"""The built wheel and sdist, and bare environments of several Pythons to install them in."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The oldest Python that the client supports to the newest.
CLIENT_VERSIONS = tuple((3, minor) for minor in range(10, 15))
SERVER_VERSIONS = ((3, 11), (3, 12))


@dataclass(frozen=True)
class Environment:
    """A virtual environment with one installed package and its dependencies."""

    folder: Path

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command of the environment in an empty folder, without this process's Python settings."""
        command, *rest = arguments
        return subprocess.run(
            [self.folder / "bin" / str(command), *rest],
            cwd=cwd or self.folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def check(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Runs a command that must succeed, and returns its output."""
        done = self.run(*arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout


UV = ROOT / ".tools" / "uv" / "bin" / "uv"


def uv(*arguments: str | Path) -> str:
    """Runs the uv of `make setup`, and returns its output."""
    done = subprocess.run([UV, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def interpreter(version: tuple[int, int]) -> Path | None:
    """Returns a Python of a version: from PATH, else of pyenv, else one that uv can fetch."""
    name = f"python{version[0]}.{version[1]}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [
        *(Path(folder) / name for folder in os.environ["PATH"].split(os.pathsep)),
        *sorted(pyenv.glob(f"{version[0]}.{version[1]}.*/bin/python")),
    ]
    for candidate in candidates:
        if candidate.is_file() and _version_of(candidate) == version:
            return candidate
    return _fetched(version)


def _fetched(version: tuple[int, int]) -> Path | None:
    name, folder = f"{version[0]}.{version[1]}", ROOT / ".tools" / "pythons"
    command: list[str | Path] = [UV, "python", "install", "--quiet", "--no-bin", "--install-dir", folder, name]
    environment = os.environ | {"UV_PYTHON_DOWNLOADS": "automatic"}
    if subprocess.run(command, env=environment, capture_output=True, check=False, timeout=120).returncode != 0:
        return None
    found = sorted(folder.glob(f"cpython-{name}.*/bin/python"))
    return found[-1] if found else None


def _version_of(python: Path) -> tuple[int, int] | None:
    command = [str(python), "-c", "import sys; print(*sys.version_info[:2])"]
    # A shim of pyenv is there, and fails, for versions that are not selected.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    major, minor = done.stdout.split() if done.returncode == 0 else (0, 0)
    return (int(major), int(minor)) if major else None


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files of the repository, so that no leftover of an earlier build gets into the packages."""
    copy = tmp_path_factory.mktemp("sources")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(ROOT / name):
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="session")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    return build(sources, tmp_path_factory.mktemp("sdist"), "--sdist")


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repository's files."""
    return build(sources, tmp_path_factory.mktemp("wheel"), "--wheel")


def build(source: Path, folder: Path, kind: str) -> Path:
    """Builds one package with the setuptools of this environment."""
    options = ("--quiet", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder)
    uv("build", kind, *options, source)
    [made] = [path for path in folder.iterdir() if path.suffix in {".whl", ".gz"}]
    return made


@pytest.fixture(scope="session")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Installs the wheel, with extras and options of `uv pip install`, in a bare environment of a version."""

    def make(version: tuple[int, int], extras: str = "", *options: str | Path) -> Environment:
        folder = tmp_path_factory.mktemp(f"python{version[0]}{version[1]}")
        python = interpreter(version)
        if python is None:
            pytest.skip(f"no Python {version[0]}.{version[1]} on this machine, and none could be fetched")
        uv("venv", "--quiet", "--python", python, "--clear", folder)
        uv("pip", "install", "--quiet", "--python", folder / "bin/python", *options, f"{wheel}{extras}")
        uv("pip", "check", "--python", folder / "bin/python")
        return Environment(folder)

    return make
