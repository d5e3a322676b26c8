"""Environment of Flink's processes and PyFlink's JVM."""

import os
import sys
import sysconfig
from pathlib import Path

from anabranch.flink_job.errors import LibpythonNotFound
from anabranch.flink_job.installation.flink_class_path import flink_lib_dir
from anabranch.flink_job.installation.flink_distribution import flink_home
from anabranch.flink_job.installation.java_runtime import find_java


def libpython_dir() -> Path:
    """Return the folder of the shared libpython, or raise LibpythonNotFound."""
    from find_libpython import find_libpython  # noqa: PLC0415  (set-up looks for Java before it is installed)

    found = find_libpython()
    if not found:
        raise LibpythonNotFound(
            f"{sys.executable} has no shared libpython, which thread mode needs: "
            "use a Python built with --enable-shared, or process mode"
        )
    return Path(found).parent


def python_path() -> list[Path]:
    """Return the import path inside Flink, which ignores `.pth` files."""
    project = Path(__file__).parents[3]
    return list(dict.fromkeys([Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib")), project]))


def process_environment(*, thread_mode: bool = True) -> dict[str, str]:
    """Return additional variables of Flink's processes, or raise InstallationError."""
    java_home = find_java()
    # Flink's processes run in another folder.
    python_path_here = [
        str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path
    ]
    variables = {
        "JAVA_HOME": str(java_home),
        # Without it, PyFlink overwrites FLINK_LIB_DIR.
        "FLINK_HOME": str(flink_home()),
        "FLINK_LIB_DIR": str(flink_lib_dir()),
        "FLINK_OPT_DIR": str(flink_home() / "opt"),
        "FLINK_PLUGINS_DIR": os.environ.get("FLINK_PLUGINS_DIR") or str(flink_home() / "plugins"),
        "PYTHONPATH": _joined([*map(str, python_path()), *python_path_here], None),
        # Flink starts `python` and `java` by name.
        "PATH": _joined([str(Path(sys.executable).parent), str(java_home / "bin")], os.environ.get("PATH")),
    }
    if thread_mode:
        variables["LD_LIBRARY_PATH"] = _joined([str(libpython_dir())], os.environ.get("LD_LIBRARY_PATH"))
    return variables


def _joined(first: list[str], present: str | None) -> str:
    return os.pathsep.join(dict.fromkeys([*first, *(present.split(os.pathsep) if present else [])]))


def activate(*, thread_mode: bool = True, log_dir: Path | None = None) -> None:
    """Prepare this process before any use of PyFlink.

    Args:
        thread_mode: See `process_environment`.
        log_dir: Folder of the JVM's log; the `pyflink` package by default.
    """
    os.environ.update(process_environment(thread_mode=thread_mode))
    if log_dir:
        log_dir.mkdir(parents=True, exist_ok=True)
        os.environ["FLINK_LOG_DIR"] = str(log_dir)


def python_settings() -> dict[str, str]:
    """Return the Flink options that choose this interpreter."""
    return {"python.executable": sys.executable, "python.client.executable": sys.executable}
