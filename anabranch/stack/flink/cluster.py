"""A Flink cluster on this machine: one JobManager and any number of TaskManagers.

Slots of one TaskManager share one interpreter lock: prefer more TaskManagers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from anabranch.stack.flink import process as flink_process
from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.ports import LOOPBACK, claim, free_port
from anabranch.stack.processes import LocalProcess
from anabranch.stack.service import Service, ServiceGroup

JOB_MANAGER_MEMORY_MB = 1024
TASK_MANAGER_MEMORY_MB = 1536

_READY_TIMEOUT_S = 90.0
_STOP_GRACE_S = 5.0
_TASK_MANAGER = "task-manager-"


class FlinkCluster(ServiceGroup):
    """A cluster. Jobs end with it unless their checkpoints are kept."""

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
        """Start nothing yet.

        Args:
            directory: Folder of settings and temporary files.
            rest_port: Port of REST and web page; 0 takes a free one.
            task_manager_memory_mb: Memory of each TaskManager's JVM, without models.
            log_dir: Folder of the logs. Default: in the directory.
            tied: See `ServiceGroup`.
            settings: Flink options that override all others.
        """
        super().__init__(tied=tied, ready_timeout_s=_READY_TIMEOUT_S, stop_grace_s=_STOP_GRACE_S)
        self._directory = directory.resolve()
        self._log_dir = (log_dir or directory / "logs").resolve()
        self._wanted = task_managers
        self._rest_port = rest_port
        self._slots = slots
        self._job_manager_memory_mb = job_manager_memory_mb
        self._task_manager_memory_mb = task_manager_memory_mb
        self._chosen_settings = dict(settings or {})
        self._commands: dict[flink_process.Kind, list[str]] = {}

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
        """The JobManager's process."""
        return self._process("job-manager")

    @property
    def task_managers(self) -> dict[int, LocalProcess]:
        """The TaskManagers' processes by number."""
        return {
            int(name.removeprefix(_TASK_MANAGER)): process
            for name, process in self._processes.items()
            if name.startswith(_TASK_MANAGER)
        }

    def add_task_manager(self) -> int:
        """Start another TaskManager, wait until it is registered, and return its number."""
        service = self._new_task_manager()
        self._launch(service)
        self._await_ready(service.name)
        return int(service.name.removeprefix(_TASK_MANAGER))

    def kill_task_manager(self, number: int) -> None:
        """End a TaskManager and its Python workers at once."""
        self._forget(f"{_TASK_MANAGER}{number}").kill()

    def _describe(self) -> Iterator[Service]:
        self._rest_port = claim(self._rest_port, "--flink-port")
        # Killed processes leave 25 MB each.
        shutil.rmtree(self._temporary_dir, ignore_errors=True)
        self._temporary_dir.mkdir(parents=True)
        for log in self._old_logs():
            log.unlink()
        flink_process.write_settings(self._conf_dir, self._settings())
        yield self._flink("job-manager", "job-manager")
        for _ in range(self._wanted):
            yield self._new_task_manager()

    def _is_ready(self, name: str) -> bool:
        return self.rest.is_up() if name == "job-manager" else name in self.rest.task_manager_ids()

    def _new_task_manager(self) -> Service:
        # Numbers and logs are used once.
        logged = (int(log.stem.removeprefix(_TASK_MANAGER)) for log in self._old_logs())
        name = f"{_TASK_MANAGER}{1 + max([*self.task_managers, *logged], default=0)}"
        return self._flink("task-manager", name, f"-Dtaskmanager.resource-id={name}")

    def _flink(self, kind: flink_process.Kind, name: str, *options: str) -> Service:
        log_path = self._log_dir / f"{name}.log"
        if kind not in self._commands:
            self._commands[kind] = flink_process.command(kind, self._conf_dir, log_path)
        own_log = f"-Dlog.file={log_path}"
        return Service(
            name=name,
            command=[own_log if part.startswith("-Dlog.file=") else part for part in self._commands[kind]]
            + list(options),
            environment=flink_process.environment(),
            directory=str(self._directory),
            log_path=str(log_path),
            # Flink's web page looks for it beside the log.
            out_path=str(log_path.with_suffix(".out")),
        )

    def _old_logs(self) -> list[Path]:
        return list(self._log_dir.glob(f"{_TASK_MANAGER}*.out"))

    @property
    def _conf_dir(self) -> Path:
        return self._directory / "conf"

    @property
    def _temporary_dir(self) -> Path:
        """The folder of Flink's temporary files; Flink takes a comma or a colon for the end of its name."""
        folder = self._directory / "tmp"
        if not {",", os.pathsep} & set(str(folder)):
            return folder
        return Path(tempfile.gettempdir(), f"anabranch-{hashlib.sha256(bytes(folder)).hexdigest()[:16]}")

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
            "io.tmp.dirs": str(self._temporary_dir),
            # For `anabranch top`; Flink's default is 10 s.
            "metrics.fetcher.update-interval": "1000",
            **self._chosen_settings,
        }
