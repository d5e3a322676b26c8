"""A standalone Flink cluster on this machine: one JobManager, and TaskManagers that come and go.

Python work is scaled by TaskManager processes with one slot each: the slots of one process share one interpreter lock.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from anabranch.stack import flink_process
from anabranch.stack.errors import StackError
from anabranch.stack.flink_rest import FlinkRest
from anabranch.stack.ports import LOOPBACK, claim, free_port
from anabranch.stack.processes import LocalProcess

JOB_MANAGER_MEMORY_MB = 1024
TASK_MANAGER_MEMORY_MB = 1536

_READY_TIMEOUT_S = 90.0
_STOP_GRACE_S = 5.0


class FlinkCluster:
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
        self._chosen_settings = dict(settings or {})
        self._commands: dict[flink_process.Kind, list[str]] = {}
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
            InstallationError, PortInUse, StartFailed: as for `start`.
        """
        self._rest_port = claim(self._rest_port, "--flink-port")
        # A process that was killed leaves 25 MB there.
        shutil.rmtree(self._directory / "tmp", ignore_errors=True)
        (self._directory / "tmp").mkdir(parents=True)
        for log in self._old_logs():
            log.unlink()
        flink_process.write_settings(self._conf_dir, self._settings())
        self._job_manager = self._flink("job-manager", "job-manager")
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
        # Numbers are not used twice while a cluster lives: a log tells of one process.
        number = 1 + max(
            [*self.task_managers, *(int(log.stem.rsplit("-", 1)[1]) for log in self._old_logs())], default=0
        )
        resource = f"-Dtaskmanager.resource-id={_resource_id(number)}"
        self.task_managers[number] = self._flink("task-manager", f"task-manager-{number}", resource)
        return number

    def _is_registered(self, number: int) -> bool:
        return _resource_id(number) in self.rest.task_manager_ids()

    def _flink(self, kind: flink_process.Kind, name: str, *options: str) -> LocalProcess:
        log_path = self._log_dir / f"{name}.log"
        if kind not in self._commands:
            self._commands[kind] = flink_process.command(kind, self._conf_dir, log_path)
        own_log = f"-Dlog.file={log_path}"
        return LocalProcess.start(
            name,
            [own_log if part.startswith("-Dlog.file=") else part for part in self._commands[kind]] + list(options),
            environment=flink_process.environment(),
            directory=self._directory,
            # Beside the log, where Flink's web page looks for it.
            out_path=log_path.with_suffix(".out"),
            log_path=log_path,
            tied=self._tied,
        )

    def _old_logs(self) -> list[Path]:
        return list(self._log_dir.glob("task-manager-*.out"))

    @property
    def _conf_dir(self) -> Path:
        return self._directory / "conf"

    def _settings(self) -> dict[str, str]:
        return {
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
            **flink_process.COMMON_SETTINGS,
            "parallelism.default": str(max(1, self._wanted * self._slots)),
            "io.tmp.dirs": str(self._directory / "tmp"),
            # For `anabranch top`: Flink's own 10 s are long to wait for.
            "metrics.fetcher.update-interval": "1000",
            **self._chosen_settings,
        }


def _resource_id(number: int) -> str:
    return f"task-manager-{number}"
