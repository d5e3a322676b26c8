"""Processes with all their descendants."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Self

import msgspec
import psutil

from anabranch.stack.errors import StartFailed

#: Java reads the names of files by the locale.
JAVA_LOCALE = {"LC_ALL": "C.UTF-8"}

_MARKER = "ANABRANCH_PROCESS"
_START_TIME_TOLERANCE_S = 5.0
#: A process shows no environment while it becomes its command.
_EXEC_LOOKS = 15
_EXEC_PAUSE_S = 0.02
_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.05
_EXEC_TIMEOUT_S = 1.0
_TIE = "setpriv"


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Identity of a process.

    Attributes:
        started_at: Start in seconds since the epoch.
        marker: Its `ANABRANCH_PROCESS` variable, which descendants inherit.
    """

    name: str
    pid: int
    started_at: float
    marker: str

    def find(self) -> psutil.Process | None:
        """Return the process if it still runs."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            same_start = abs(process.create_time() - self.started_at) < _START_TIME_TOLERANCE_S
            if same_start and process.status() != psutil.STATUS_ZOMBIE and _settled_marker_of(process) == self.marker:
                return process
        return None


@dataclass(frozen=True)
class LocalProcess:
    """A child process."""

    record: ProcessRecord
    log_path: Path
    popen: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        out_path: Path,
        log_path: Path | None = None,
        tied: bool,
    ) -> Self:
        """Start a process in its own process group, where Ctrl-C does not reach it.

        Args:
            directory: Folder of its files; identifies it together with the name.
            out_path: Receives its output.
            log_path: Default: `out_path`.
            tied: Ends it with this process, even if this one is killed.
        """
        marker = f"{directory.resolve()}#{name}"
        for folder in (directory, out_path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        tie = shutil.which(_TIE) if tied else None
        with out_path.open("ab") as out:
            popen = subprocess.Popen(
                [tie, "--pdeathsig", "KILL", *command] if tie else list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, _MARKER: marker},
                # The user may remove the current folder.
                cwd=directory,
                # Not a session: Linux gives each an equal share of the processor.
                process_group=0,
            )
        try:
            process = psutil.Process(popen.pid)
            _await_exec(process, popen)
            record = ProcessRecord(name=name, pid=popen.pid, started_at=process.create_time(), marker=marker)
        except BaseException:
            popen.kill()
            popen.wait()
            raise
        return cls(record, log_path or out_path, popen)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.record.pid

    def is_alive(self) -> bool:
        """Return true if it still runs."""
        return self.popen.poll() is None

    def check(self) -> None:
        """Raise `StartFailed` with the last error of its log if it has ended."""
        code = self.popen.poll()
        if code is not None:
            raise StartFailed(self.record.name, f"ended with exit code {code}", self.log_path)

    def await_ready(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `is_ready` returns true.

        Raises:
            StartFailed: It ended, or the time is up.
        """
        give_up_at = monotonic() + timeout_s
        while not is_ready():
            self.check()
            if monotonic() > give_up_at:
                raise StartFailed(self.record.name, f"was not ready within {timeout_s:.0f} s", self.log_path)
            sleep(_POLL_S)

    def await_success(self, timeout_s: float) -> None:
        """Wait until it ends; raise `StartFailed` for an error or after the time."""
        try:
            code = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise StartFailed(self.record.name, f"did not end within {timeout_s:.0f} s", self.log_path) from None
        if code:
            raise StartFailed(self.record.name, f"ended with exit code {code}", self.log_path)

    def stop(self, grace_s: float) -> None:
        """End it and its descendants; see `stop_all`."""
        self.stop_together([self], grace_s)

    @staticmethod
    def stop_together(processes: Sequence[LocalProcess], grace_s: float) -> None:
        """End several processes and their descendants; see `stop_all`."""
        stop_all([process.record for process in processes], grace_s)
        for process in processes:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait()

    def kill(self) -> None:
        """End it and its descendants at once."""
        self.stop(0)

    def detach(self) -> None:
        """Let it outlive this process."""
        if self.popen.returncode is None:
            self.popen.returncode = 0


def stop_all(records: Iterable[ProcessRecord], grace_s: float) -> None:
    """End processes and all their descendants.

    Sends SIGTERM first, and SIGKILL after `grace_s`.
    """
    records = list(records)
    roots = [process for record in records if (process := record.find())]
    if grace_s > 0:
        for root in roots:
            _signal(root, signal.SIGTERM)
        psutil.wait_procs(roots, timeout=grace_s)
    family = [*roots, *_marked({record.marker for record in records})]
    for process in family:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(family, timeout=_KILL_TIMEOUT_S)


def _marked(markers: set[str]) -> list[psutil.Process]:
    """Return the processes and all descendants."""
    return [process for process in psutil.process_iter() if _marker_of(process) in markers]


def _await_exec(process: psutil.Process, popen: subprocess.Popen[bytes]) -> None:
    """Wait until the environment can be read, and the process is tied."""
    give_up_at = monotonic() + _EXEC_TIMEOUT_S
    while popen.poll() is None and monotonic() < give_up_at:
        if _marker_of(process) is not None and not _is_tying(process):
            return
        sleep(0.001)


def _is_tying(process: psutil.Process) -> bool:
    try:
        return process.name() == _TIE
    except psutil.Error:
        return False


def _settled_marker_of(process: psutil.Process) -> str | None:
    """Return the marker of a process that may be new."""
    for _ in range(_EXEC_LOOKS):
        marker = _marker_of(process)
        if marker is not None:
            return marker
        sleep(_EXEC_PAUSE_S)
    return None


def _marker_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(_MARKER)
    except (psutil.Error, OSError):
        return None


def _signal(process: psutil.Process, number: int) -> None:
    # psutil checks the id.
    with suppress(psutil.Error):
        process.send_signal(number)
