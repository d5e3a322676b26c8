"""A standalone Flink cluster on this machine: one JobManager, and TaskManagers that come and go.

Python work is scaled by TaskManager processes with one slot each: the slots of one process share one interpreter lock.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from anabranch.errors import StackError
from anabranch.stack.flink_rest import FlinkRest
from anabranch.stack.ports import LOOPBACK, claim, free_port
from anabranch.stack.processes import LocalProcess
from flink_job.installation import LibpythonNotFound, flink_home, process_environment

JOB_MANAGER_MEMORY_MB = 1024
TASK_MANAGER_MEMORY_MB = 1536

_READY_TIMEOUT_S = 90.0
_STOP_GRACE_S = 5.0
_LOGGING_FILES = ("log4j-console.properties", "logback-console.xml")


class Cluster:
    """A cluster that lives as long as its `with` block, or from `launch` to `stop`."""

    def __init__(
        self,
        directory: Path,
        task_managers: int = 2,
        rest_port: int = 0,
        *,
        slots: int = 1,
        job_manager_memory_mb: int = JOB_MANAGER_MEMORY_MB,
        task_manager_memory_mb: int = TASK_MANAGER_MEMORY_MB,
        log_dir: Path | None = None,
        tied: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Looks at nothing and starts nothing yet.

        Args:
            directory: Where settings and temporary files go; made when it is missing.
            task_managers: How many to start.
            rest_port: Port of REST and web page on 127.0.0.1; 0 takes a free one.
            slots: Slots of each TaskManager.
            job_manager_memory_mb: What the JobManager's process may take.
            task_manager_memory_mb: What each TaskManager's JVM may take; models come on top.
            log_dir: Where logs go; by default into the directory.
            tied: whether its processes end when this one does, however that ends.
            settings: Flink options that have the last word.
        """
        self._directory = directory.resolve()
        self._log_dir = (log_dir or directory / "logs").resolve()
        self._wanted = task_managers
        self._rest_port = rest_port
        self._slots = slots
        self._job_manager_memory_mb = job_manager_memory_mb
        self._task_manager_memory_mb = task_manager_memory_mb
        self._tied = tied
        self._settings = dict(settings or {})
        self._job_manager: LocalProcess | None = None
        self.task_managers: dict[int, LocalProcess] = {}

    @property
    def url(self) -> str:
        """Address of the REST interface and of the web page."""
        return f"http://{LOOPBACK}:{self._rest_port}"

    @property
    def rest(self) -> FlinkRest:
        """The REST interface."""
        return FlinkRest(self.url)

    @property
    def job_manager(self) -> LocalProcess:
        """The JobManager's process.

        Raises:
            StackError: the cluster was not started.
        """
        if self._job_manager is None:
            raise StackError("the cluster was not started: call start(), or use it in a `with` block")
        return self._job_manager

    @property
    def processes(self) -> list[LocalProcess]:
        """All processes that were started and not removed, dead or alive."""
        return [*([self._job_manager] if self._job_manager else []), *self.task_managers.values()]

    def __enter__(self) -> Self:
        """Starts it, and returns when all TaskManagers are registered."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops it."""
        self.stop()

    def start(self) -> None:
        """Starts it, and returns when all TaskManagers are registered; when that fails, nothing is left running.

        Raises:
            InstallationError: Java, Flink or the jars are missing.
            PortInUse: the REST port is taken.
            StartFailed: a process ended, or was not ready in time.
        """
        try:
            self.launch()
            self.await_ready()
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Starts the processes and does not wait for them; the URL is known from here on.

        Raises:
            InstallationError, PortInUse: as for `start`.
        """
        self._rest_port = claim(self._rest_port, "--flink-port")
        self._write_settings()
        self._job_manager = self._flink("job-manager", "jobmanager.sh")
        for _ in range(self._wanted):
            self._launch_task_manager()

    def await_ready(self) -> None:
        """Returns when every TaskManager that was started is registered.

        Raises:
            StartFailed: a process ended, or was not ready in time.
        """
        self.job_manager.await_ready(self.rest.is_up, _READY_TIMEOUT_S)
        for name, process in self.task_managers.items():
            process.await_ready(functools.partial(self._is_registered, name), _READY_TIMEOUT_S)

    def add_task_manager(self) -> int:
        """Starts one more, waits until it is registered, and returns its number.

        Raises:
            StartFailed: it ended, or was not ready in time.
        """
        number = self._launch_task_manager()
        process = self.task_managers[number]
        process.await_ready(functools.partial(self._is_registered, number), _READY_TIMEOUT_S)
        return number

    def kill_task_manager(self, number: int) -> None:
        """Ends one with all its Python workers at once, as the loss of its machine would."""
        self.task_managers.pop(number).kill()

    def stop(self) -> None:
        """Ends all processes; jobs are lost unless their checkpoints were kept."""
        LocalProcess.stop_together(self.processes, _STOP_GRACE_S)
        self.task_managers.clear()

    def kill(self) -> None:
        """Ends all processes at once."""
        LocalProcess.stop_together(self.processes, 0)
        self.task_managers.clear()

    def _launch_task_manager(self) -> int:
        # Numbers are not used twice: a log tells of one process.
        number = 1 + max([*self.task_managers, *_numbers(self._log_dir)], default=0)
        resource = f"-Dtaskmanager.resource-id={_resource_id(number)}"
        self.task_managers[number] = self._flink(f"task-manager-{number}", "taskmanager.sh", resource)
        return number

    def _is_registered(self, number: int) -> bool:
        return _resource_id(number) in self.rest.task_manager_ids()

    def _flink(self, name: str, script: str, *arguments: str) -> LocalProcess:
        service = "standalonesession" if script == "jobmanager.sh" else "taskexecutor"
        log = self._log_dir / f"flink-{name}-{service}-0-local.log"
        return LocalProcess.start(
            name,
            [str(flink_home() / "bin" / script), "start-foreground", *arguments],
            environment={
                **_environment(),
                "FLINK_CONF_DIR": str(self._directory / "conf"),
                "FLINK_LOG_DIR": str(self._log_dir),
                "FLINK_PID_DIR": str(self._directory / "run" / name),
                # These two and the service make up the name of the log.
                "FLINK_IDENT_STRING": name,
                "HOSTNAME": "local",
            },
            directory=self._directory,
            # Beside the log, where Flink's web page looks for it.
            out_path=log.with_suffix(".out"),
            log_path=log,
            tied=self._tied,
        )

    def _write_settings(self) -> None:
        conf, temporary = self._directory / "conf", self._directory / "tmp"
        for folder in (conf, temporary, self._log_dir):
            folder.mkdir(parents=True, exist_ok=True)
        for name in _LOGGING_FILES:
            text = (flink_home() / "conf" / name).read_text()
            # What is in the log need not be in the console's file too.
            (conf / name).write_text(text.replace("rootLogger.appenderRef.console.ref = ConsoleAppender\n", ""))
        settings = {
            "env.java.opts.all": _java_options(),
            "jobmanager.rpc.address": LOOPBACK,
            "jobmanager.rpc.port": str(free_port()),
            "jobmanager.bind-host": LOOPBACK,
            "jobmanager.memory.process.size": f"{self._job_manager_memory_mb}m",
            "rest.address": LOOPBACK,
            "rest.bind-address": LOOPBACK,
            "rest.port": str(self._rest_port),
            "rest.bind-port": str(self._rest_port),
            "taskmanager.host": LOOPBACK,
            "taskmanager.bind-host": LOOPBACK,
            "taskmanager.numberOfTaskSlots": str(self._slots),
            "taskmanager.memory.process.size": f"{self._task_manager_memory_mb}m",
            # Only for process-mode workers, and these do not keep to it.
            "taskmanager.memory.managed.size": "64m",
            "taskmanager.memory.network.min": "64m",
            "taskmanager.memory.network.max": "128m",
            "taskmanager.load-balance.mode": "TASKS",
            "parallelism.default": str(max(1, self._wanted * self._slots)),
            # A lost TaskManager is noticed in seconds; a busy laptop still has time to answer.
            "heartbeat.interval": "2 s",
            "heartbeat.timeout": "10 s",
            "io.tmp.dirs": str(temporary),
            "web.submit.enable": "false",
            **self._settings,
        }
        # JSON is YAML, and its strings need no thought about quotes.
        lines = (f"{key}: {msgspec.json.encode(value).decode()}" for key, value in settings.items())
        (conf / "config.yaml").write_text("\n".join(lines) + "\n")


def _environment() -> dict[str, str]:
    try:
        return process_environment()
    except LibpythonNotFound:
        # Process mode works without; a job in thread mode is refused where it is submitted.
        return process_environment(thread_mode=False)


def _java_options() -> str:
    """The options without which Flink cannot look into the JDK, as Flink's own configuration has them."""
    text = (flink_home() / "conf" / "config.yaml").read_text()
    match = re.search(r"^ +all: (--add-.+)$", text, re.MULTILINE)
    if match is None:
        raise StackError(f"{flink_home()} has an unknown form of config.yaml: is it Flink 2.3?")
    return match.group(1)


def _resource_id(number: int) -> str:
    return f"task-manager-{number}"


def _numbers(log_dir: Path) -> list[int]:
    names = (path.name for path in log_dir.glob("flink-task-manager-*.out"))
    return [int(match.group(1)) for name in names if (match := re.match(r"flink-task-manager-(\d+)-", name))]
