"""Services of the stack: broker, JobManager and TaskManagers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from anabranch.stack.errors import StackError
from anabranch.stack.processes import LocalProcess


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a process, sufficient to start it again; see `LocalProcess.start`."""

    name: str
    command: list[str]
    environment: dict[str, str] = {}
    directory: str
    log_path: str
    out_path: str

    def start(self, *, tied: bool) -> LocalProcess:
        """Start the process."""
        return LocalProcess.start(
            self.name,
            self.command,
            environment=self.environment,
            directory=Path(self.directory),
            out_path=Path(self.out_path),
            log_path=Path(self.log_path),
            tied=tied,
        )


class ServiceGroup(ABC):
    """Services that start and stop together."""

    def __init__(self, *, tied: bool, ready_timeout_s: float, stop_grace_s: float) -> None:
        """Start nothing yet.

        Args:
            tied: Ends the processes when this process ends, even if it is killed.
            ready_timeout_s: Time to become ready.
            stop_grace_s: Time between SIGTERM and SIGKILL.
        """
        self._tied = tied
        self._ready_timeout_s = ready_timeout_s
        self._stop_grace_s = stop_grace_s
        self._services: dict[str, Service] = {}
        self._processes: dict[str, LocalProcess] = {}

    @abstractmethod
    def _describe(self) -> Iterator[Service]:
        """Claim ports, write settings and yield the services."""

    @abstractmethod
    def _is_ready(self, name: str) -> bool:
        """Return true if a service serves."""

    @property
    def services(self) -> dict[str, Service]:
        """Descriptions of the started services."""
        return dict(self._services)

    @property
    def processes(self) -> list[LocalProcess]:
        """Started processes, dead or alive."""
        return [*self._processes.values()]

    def __enter__(self) -> Self:
        """See `start`."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `stop`."""
        self.stop()

    def start(self) -> None:
        """Start the services and wait until they are ready. After a failure none is left.

        Raises:
            InstallationError: Java, Flink or jars are missing.
            PortInUse: A port is taken.
            StartFailed: A process ended, or was not ready in time.
        """
        try:
            self.launch()
            self.await_ready()
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Start the services without waiting. Then their addresses are known."""
        for service in self._describe():
            self._launch(service)

    def await_ready(self) -> None:
        """Wait until all services are ready."""
        for name in self._processes:
            self._await_ready(name)

    def stop(self) -> None:
        """End the services."""
        self._stop(self._stop_grace_s)

    def kill(self) -> None:
        """End the services at once, as a crash would."""
        self._stop(0)

    def _launch(self, service: Service) -> None:
        self._processes[service.name] = service.start(tied=self._tied)
        self._services[service.name] = service

    def _await_ready(self, name: str) -> None:
        self._processes[name].await_ready(partial(self._is_ready, name), self._ready_timeout_s)

    def _process(self, name: str) -> LocalProcess:
        if name not in self._processes:
            raise StackError(f"{name} was not started: call start(), or use a `with` block")
        return self._processes[name]

    def _forget(self, name: str) -> LocalProcess:
        process = self._process(name)
        del self._processes[name], self._services[name]
        return process

    def _stop(self, grace_s: float) -> None:
        LocalProcess.stop_together(self.processes, grace_s)
        self._processes.clear()
        self._services.clear()
