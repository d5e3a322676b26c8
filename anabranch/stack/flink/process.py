"""Command lines of Flink's processes, as Flink's scripts build them with more JVMs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Literal

import msgspec

from anabranch.flink_job.errors import LibpythonNotFound
from anabranch.flink_job.installation import find_java, flink_home, flink_lib_dir, process_environment
from anabranch.stack.errors import StackError, StartFailed
from anabranch.stack.processes import JAVA_LOCALE

Kind = Literal["job-manager", "task-manager"]

#: Flink options of all clusters.
COMMON_SETTINGS = {
    "taskmanager.memory.managed.size": "64m",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "128m",
    # Java's sockets copy each Kafka request through direct memory.
    "taskmanager.memory.task.off-heap.size": "96m",
    "taskmanager.load-balance.mode": "TASKS",
    # Short, and still enough for a busy machine.
    "heartbeat.interval": "2 s",
    "heartbeat.timeout": "10 s",
    # Several JVMs on few cores exceed the default of 10 s.
    "pekko.startup-timeout": "60 s",
    # Clients of the port cannot run jars.
    "web.submit.enable": "false",
}

_MAIN_CLASSES: dict[Kind, str] = {
    "job-manager": "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
    "task-manager": "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
}
_QUESTIONS: dict[Kind, str] = {"job-manager": "GET_JM_RESOURCE_PARAMS", "task-manager": "GET_TM_RESOURCE_PARAMS"}
_ANSWER = "BASH_JAVA_UTILS_EXEC_RESULT:"
_TIMEOUT_S = 60.0


def write_settings(conf_dir: Path, settings: dict[str, str], *, log_to_console: bool = False) -> None:
    """Write a folder of settings for `command`.

    Args:
        log_to_console: Adds the log to standard output.
    """
    conf_dir.mkdir(parents=True, exist_ok=True)
    logging = (flink_home() / "conf" / "log4j-console.properties").read_text()
    if not log_to_console:
        logging = logging.replace("rootLogger.appenderRef.console.ref = ConsoleAppender\n", "")
    (conf_dir / "log4j.properties").write_text(logging)
    # JSON strings are valid YAML.
    lines = (f"{key}: {msgspec.json.encode(value).decode()}" for key, value in settings.items())
    (conf_dir / "config.yaml").write_text("\n".join(lines) + "\n")


def command(kind: Kind, conf_dir: Path, log_path: Path) -> list[str]:
    """Return the command of a process; `-D` options may follow.

    Raises:
        InstallationError: Java, Flink or jars are missing.
        StartFailed: Flink refuses the settings.
    """
    java_options, flink_options = _memory(kind, conf_dir, log_path)
    return [
        str(find_java() / "bin" / "java"),
        *java_options,
        "-XX:+IgnoreUnrecognizedVMOptions",
        *_access_to_jdk(),
        f"-Dlog.file={log_path}",
        f"-Dlog4j.configurationFile={(conf_dir / 'log4j.properties').as_uri()}",
        "-classpath",
        os.pathsep.join(str(jar) for jar in sorted(flink_lib_dir().glob("*.jar"))),
        _MAIN_CLASSES[kind],
        "--configDir",
        str(conf_dir),
        *flink_options,
    ]


def environment() -> dict[str, str]:
    """Return the variables of a Flink process."""
    try:
        return JAVA_LOCALE | process_environment()
    except LibpythonNotFound:
        # Submission refuses thread mode without the library.
        return JAVA_LOCALE | process_environment(thread_mode=False)


def _memory(kind: Kind, conf_dir: Path, log_path: Path) -> tuple[list[str], list[str]]:
    """Return the JVM options and Flink options of Flink's memory model."""
    done = subprocess.run(
        [
            str(find_java() / "bin" / "java"),
            *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-classpath"),
            os.pathsep.join(str(jar) for jar in _scripts_class_path()),
            "org.apache.flink.runtime.util.bash.BashJavaUtils",
            *(_QUESTIONS[kind], "--configDir", str(conf_dir)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
        env=os.environ | JAVA_LOCALE,
    )
    answers = [line.removeprefix(_ANSWER) for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode or len(answers) != 2:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log_path.write_text(done.stdout + done.stderr)
        raise StartFailed(kind, "cannot be started with these settings", log_path)
    return answers[0].split(), answers[1].split()


def _scripts_class_path() -> list[Path]:
    return [flink_home() / "bin" / "bash-java-utils.jar", *flink_lib_dir().glob("flink-dist-*.jar")]


def _access_to_jdk() -> list[str]:
    """Return the options that open the JDK's modules."""
    text = (flink_home() / "conf" / "config.yaml").read_text()
    match = re.search(r"^ +all: (--add-.+)$", text, re.MULTILINE)
    if match is None:
        raise StackError(f"{flink_home()}/conf/config.yaml has no --add options: run `make setup` for the right Flink")
    # As Flink's scripts do for Java after 17.
    return [*match.group(1).split(), "-Djava.security.manager=allow"]
