"""The local stack as one thing: a broker and a Flink cluster that outlive the command that started them.

Everything lies in one data folder, which may be removed when the stack is down::

    .anabranch/stack.json   what runs: addresses, process ids and when each started
               logs/        of every process
               kafka/       topics
               flink/       settings and temporary files
               checkpoints/ for jobs
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil

from anabranch.stack.errors import NotEnoughMemory, NotRunning, StackError
from anabranch.stack.flink_cluster import JOB_MANAGER_MEMORY_MB, TASK_MANAGER_MEMORY_MB, FlinkCluster
from anabranch.stack.flink_rest import FlinkJob, FlinkRest
from anabranch.stack.kafka_broker import HEAP_MB, KafkaBroker
from anabranch.stack.processes import ProcessRecord, stop_all
from anabranch.stack.task_placement import Worker, workers

DEFAULT_DATA_DIR = Path(".anabranch")
DEFAULT_KAFKA_PORT = 9092
DEFAULT_FLINK_PORT = 8081
DEFAULT_TASK_MANAGERS = 2

_STOP_GRACE_S = 10.0
# A JVM that has just started has touched about this part of what it may take.
_TOUCHED_PART = 0.6

Progress = Callable[[str], None]


class StackRecord(msgspec.Struct, kw_only=True):
    """What `stack.json` holds.

    Attributes:
        bootstrap_servers: Where the broker listens.
        flink_url: Where the cluster's REST interface is.
        processes: What was started, the broker first, the JobManager second.
        ready: Whether all of it served once; false when a start was cut off.
    """

    bootstrap_servers: str
    flink_url: str
    processes: list[ProcessRecord] = []
    ready: bool = False


class StackStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The stack as it is now.

    Attributes:
        running: Whether broker and JobManager run.
        data_dir: The folder that it lives in.
        bootstrap_servers: What Kafka clients connect to.
        flink_url: REST interface and web page of the cluster.
        broker_pid: Process id of the broker; None if it is gone.
        job_manager_pid: Process id of the JobManager; None if it is gone.
        task_manager_pids: Process ids of the TaskManagers that run.
        gone: Names of processes that were started and have ended by themselves.
        jobs: Flink's jobs, the newest first.
        workers: Flink's TaskManagers, and what each of them runs.
    """

    running: bool
    data_dir: str
    bootstrap_servers: str | None = None
    flink_url: str | None = None
    broker_pid: int | None = None
    job_manager_pid: int | None = None
    task_manager_pids: list[int] = []
    gone: list[str] = []
    jobs: list[FlinkJob] = []
    workers: list[Worker] = []


def data_dir(chosen: Path | None = None) -> Path:
    """Returns the data folder: the chosen one, else `ANABRANCH_DATA_DIR`, else `.anabranch` here."""
    return (chosen or Path(os.environ.get("ANABRANCH_DATA_DIR") or DEFAULT_DATA_DIR)).resolve()


def up(
    folder: Path,
    *,
    task_managers: int = DEFAULT_TASK_MANAGERS,
    kafka_port: int = DEFAULT_KAFKA_PORT,
    flink_port: int = DEFAULT_FLINK_PORT,
    task_manager_memory_mb: int = TASK_MANAGER_MEMORY_MB,
    progress: Progress = lambda _: None,
) -> tuple[StackStatus, bool]:
    """Makes sure that a stack runs in the folder; returns its status, and whether anything had to be started.

    A stack that runs is left as it is; if it has fewer TaskManagers than asked for, those that are missing are added.
    One that has lost its broker or JobManager, or whose start was cut off, is stopped and started again: topics and
    checkpoints stay. When starting fails, or is interrupted, none of the new processes is left.

    Args:
        folder: The data folder.
        task_managers: How many TaskManagers, of one slot each.
        kafka_port: Where the broker listens; 0 takes a free port.
        flink_port: Where REST and web page are; 0 takes a free port.
        task_manager_memory_mb: What each TaskManager's JVM may take.
        progress: Is told what is being done, in a few words.

    Raises:
        InstallationError: Java, Flink or jars are missing.
        PortInUse: a port is taken.
        NotEnoughMemory: the machine has too little left.
        StartFailed: a process ended, or was not ready in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        record = _read(folder)
        alive = [process for process in record.processes if process.find()] if record else []
        if record and record.ready and {"broker", "job-manager"} <= {process.name for process in alive}:
            missing = task_managers + 2 - len(alive)
            if missing <= 0:
                return _status_of(folder, record), False
            _check_memory(missing * task_manager_memory_mb)
            progress("Adding Flink TaskManagers")
            return _status_of(folder, _add_task_managers(folder, record, alive, missing)), True
        if record:
            progress("Stopping what is left of the last stack")
            _stop(folder, record)
        _check_memory(task_managers * task_manager_memory_mb + JOB_MANAGER_MEMORY_MB + HEAP_MB)
        (folder / "checkpoints").mkdir(exist_ok=True)
        broker = KafkaBroker(folder / "kafka", kafka_port, log_dir=folder / "logs", tied=False)
        cluster = FlinkCluster(
            folder / "flink",
            task_managers,
            flink_port,
            task_manager_memory_mb=task_manager_memory_mb,
            log_dir=folder / "logs",
            tied=False,
            settings={"execution.checkpointing.dir": (folder / "checkpoints").as_uri()},
        )
        return _status_of(folder, _start(folder, broker, cluster, progress)), True


def _start(folder: Path, broker: KafkaBroker, cluster: FlinkCluster, progress: Progress) -> StackRecord:
    try:
        progress("Starting the Kafka broker")
        broker.launch()
        progress("Starting Flink")
        cluster.launch()
        record = StackRecord(
            bootstrap_servers=broker.bootstrap_servers,
            flink_url=cluster.url,
            processes=[process.record for process in (broker.process, *cluster.processes)],
        )
        # Written before they are ready: if we are killed now, the next `up` or `down` still finds them.
        _write(folder, record)
        progress("Waiting for the Kafka broker")
        broker.await_ready()
        progress("Waiting for Flink")
        cluster.await_ready()
        record.ready = True
        _write(folder, record)
    except BaseException:
        cluster.kill()
        broker.kill()
        _file(folder).unlink(missing_ok=True)
        raise
    for process in (broker.process, *cluster.processes):
        process.detach()
    return record


def _add_task_managers(folder: Path, record: StackRecord, alive: list[ProcessRecord], missing: int) -> StackRecord:
    # The settings of the running cluster are on disk; all else that a TaskManager needs is where to ask for it.
    cluster = FlinkCluster(
        folder / "flink", rest_port=urlsplit(record.flink_url).port or 0, log_dir=folder / "logs", tied=False
    )
    try:
        for _ in range(missing):
            cluster.add_task_manager()
        record.processes = [*alive, *(process.record for process in cluster.processes)]
        _write(folder, record)
    except BaseException:
        cluster.kill()
        raise
    for process in cluster.processes:
        process.detach()
    return record


def down(folder: Path) -> None:
    """Ends the stack of the folder, with all that its processes started; topics and checkpoints stay.

    Raises:
        NotRunning: there is none.
    """
    if not _file(folder).exists():
        raise NotRunning(f"no stack runs in {folder}")
    with _lock(folder):
        record = _read(folder)
        if record is None:
            raise NotRunning(f"no stack runs in {folder}")
        _stop(folder, record)


def status(folder: Path) -> StackStatus:
    """Returns how the stack of the folder is; starts and waits for nothing."""
    record = _read(folder)
    return _status_of(folder, record) if record else StackStatus(running=False, data_dir=str(folder))


def require(folder: Path) -> StackStatus:
    """Returns the status of a stack that runs.

    Raises:
        NotRunning: it does not.
    """
    found = status(folder)
    if not found.running:
        raise NotRunning(f"no stack runs in {folder}: start one with `anabranch up`")
    return found


def _status_of(folder: Path, record: StackRecord) -> StackStatus:
    alive = {process.name: process.pid for process in record.processes if process.find()}
    running = {"broker", "job-manager"} <= alive.keys()
    jobs: list[FlinkJob] = []
    placed: list[Worker] = []
    if "job-manager" in alive:
        try:
            rest = FlinkRest(record.flink_url)
            jobs = rest.jobs()
        except StackError:
            # It runs but does not serve yet, or no more.
            running = False
        else:
            # A job may end between two questions.
            with suppress(StackError):
                placed = workers(rest, jobs)
    return StackStatus(
        running=running,
        data_dir=str(folder),
        bootstrap_servers=record.bootstrap_servers,
        flink_url=record.flink_url,
        broker_pid=alive.get("broker"),
        job_manager_pid=alive.get("job-manager"),
        task_manager_pids=[pid for name, pid in alive.items() if name.startswith("task-manager-")],
        gone=[process.name for process in record.processes if process.name not in alive],
        jobs=jobs,
        workers=placed,
    )


def _stop(folder: Path, record: StackRecord) -> None:
    stop_all(record.processes, _STOP_GRACE_S)
    _file(folder).unlink(missing_ok=True)


def _check_memory(limit_mb: int) -> None:
    needed_mb = int(limit_mb * _TOUCHED_PART)
    available_mb = psutil.virtual_memory().available // 2**20
    if available_mb < needed_mb:
        raise NotEnoughMemory(needed_mb, available_mb)


def _file(folder: Path) -> Path:
    return folder / "stack.json"


def _read(folder: Path) -> StackRecord | None:
    try:
        return msgspec.json.decode(_file(folder).read_bytes(), type=StackRecord)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise StackError(
            f"{_file(folder)} cannot be read ({error}): end the processes it names, and remove it"
        ) from error


def _write(folder: Path, record: StackRecord) -> None:
    new = _file(folder).with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    new.replace(_file(folder))


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one `up` or `down` at a time into a folder; the others wait. The system lets go of it with the process."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
