"""Processes that we start, find again and stop, with all that they started in turn."""

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

_MARKER = "ANABRANCH_PROCESS"
_START_TIME_TOLERANCE_S = 5.0
#: How often to look for the marker of a process that shows none, and how long to wait between two looks.
_EXEC_LOOKS = 15
_EXEC_PAUSE_S = 0.02
_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.05
_MARKER_TIMEOUT_S = 1.0


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down about a process, so that another run of ours finds it, and never takes another for it.

    Attributes:
        name: What it is in the stack: `broker`, `job-manager`, `task-manager-1`.
        pid: Its process id.
        started_at: When it started, in seconds since the epoch.
        marker: What `ANABRANCH_PROCESS` is in its environment, and in that of all its descendants.
    """

    name: str
    pid: int
    started_at: float
    marker: str

    def find(self) -> psutil.Process | None:
        """Returns the process if it still runs; a process that only got its number later is not taken for it."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            same_start = abs(process.create_time() - self.started_at) < _START_TIME_TOLERANCE_S
            if same_start and process.status() != psutil.STATUS_ZOMBIE and _settled_marker_of(process) == self.marker:
                return process
        return None


@dataclass(frozen=True)
class LocalProcess:
    """A process that this one started.

    Attributes:
        record: How to find it again.
        log_path: What it wrote about itself.
        popen: Its handle.
    """

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
        """Starts a process in a session of its own: no Ctrl-C that is meant for us reaches it.

        Args:
            name: What it is in the stack.
            command: What to run.
            environment: Variables over those of this process.
            directory: Where its stack keeps its files; with the name, it tells the process from any other.
            out_path: Where its output goes, appended.
            log_path: Where its log is, if not in its output.
            tied: whether it ends when this process does, however that ends.
        """
        marker = f"{directory.resolve()}#{name}"
        for folder in (directory, out_path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        tie = shutil.which("setpriv") if tied else None
        with out_path.open("ab") as out:
            popen = subprocess.Popen(
                [tie, "--pdeathsig", "KILL", *command] if tie else list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, _MARKER: marker},
                # Not where the user happens to be: that folder may go, and stray files would land in it.
                cwd=directory,
                # A group, so that Ctrl-C is not for it; but no session: Linux gives each of these an equal share of the
                # processor (autogroups), and lets one that has much to do keep the others waiting for a second or more.
                process_group=0,
            )
        try:
            process = psutil.Process(popen.pid)
            _await_marker(process, popen)
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
        """Whether it still runs."""
        return self.popen.poll() is None

    def check(self) -> None:
        """Makes sure that it still runs.

        Raises:
            StartFailed: it ended; the message has the last error of its log.
        """
        code = self.popen.poll()
        if code is not None:
            raise StartFailed(self.record.name, f"ended with exit code {code}", self.log_path)

    def await_ready(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        """Waits until `is_ready` says so.

        Raises:
            StartFailed: the process ended, or the time is up.
        """
        give_up_at = monotonic() + timeout_s
        while not is_ready():
            self.check()
            if monotonic() > give_up_at:
                raise StartFailed(self.record.name, f"was not ready within {timeout_s:.0f} s", self.log_path)
            sleep(_POLL_S)

    def await_success(self, timeout_s: float) -> None:
        """Waits until it has done its work.

        Raises:
            StartFailed: it ended with an error, or the time is up.
        """
        try:
            code = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise StartFailed(self.record.name, f"did not end within {timeout_s:.0f} s", self.log_path) from None
        if code:
            raise StartFailed(self.record.name, f"ended with exit code {code}", self.log_path)

    def stop(self, grace_s: float) -> None:
        """Ends it and its descendants; asks first, and kills after `grace_s`. No harm if it has ended."""
        self.stop_together([self], grace_s)

    @staticmethod
    def stop_together(processes: Sequence[LocalProcess], grace_s: float) -> None:
        """As `stop`, for several at once."""
        stop_all([process.record for process in processes], grace_s)
        for process in processes:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait()

    def kill(self) -> None:
        """Ends it and its descendants at once, as a crash of the machine under it would."""
        self.stop(0)

    def detach(self) -> None:
        """Lets it outlive this process: Python shall not warn that it still runs."""
        if self.popen.returncode is None:
            self.popen.returncode = 0


def stop_all(records: Iterable[ProcessRecord], grace_s: float) -> None:
    """Ends these processes and all their descendants; returns when none is left.

    They are asked to end, all at once, and killed if they are still there after `grace_s`.
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
    """Whatever descends from our processes: also what outlived its parent, which no list of children has any more."""
    return [process for process in psutil.process_iter() if _marker_of(process) in markers]


def _await_marker(process: psutil.Process, popen: subprocess.Popen[bytes]) -> None:
    """Waits until the environment can be read: for a moment after its start, a process seems to have none."""
    give_up_at = monotonic() + _MARKER_TIMEOUT_S
    while _marker_of(process) is None and popen.poll() is None and monotonic() < give_up_at:
        sleep(0.001)


def _settled_marker_of(process: psutil.Process) -> str | None:
    """The marker of a process that may have been started a moment ago: while it becomes its command, it shows none."""
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
    # psutil makes sure that the number has not passed to another process.
    with suppress(psutil.Error):
        process.send_signal(number)
