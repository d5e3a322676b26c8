"""The local stack: a broker and a Flink cluster that outlive the command.

.anabranch/stack.json   processes
           logs/
           kafka/       topics
           flink/       settings and temporary files
           checkpoints/
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import urlsplit

import msgspec
import psutil

from anabranch.stack import gateways, stack_record, supervisor
from anabranch.stack.errors import NotEnoughMemory, NotRunning, StackError
from anabranch.stack.flink.cluster import JOB_MANAGER_MEMORY_MB, TASK_MANAGER_MEMORY_MB, FlinkCluster
from anabranch.stack.flink.rest import FlinkJob, FlinkRest
from anabranch.stack.flink.task_placement import Worker, workers
from anabranch.stack.gateways import GatewayAddress, GatewayPorts, GatewayProcess
from anabranch.stack.kafka.broker import HEAP_MB, KafkaBroker
from anabranch.stack.ports import answers
from anabranch.stack.processes import ProcessRecord, stop_all
from anabranch.stack.restart_policy import RestartLimits
from anabranch.stack.service import ServiceGroup
from anabranch.stack.stack_record import Restarts, StackRecord

DEFAULT_DATA_DIR = Path(".anabranch")
DEFAULT_KAFKA_PORT = 9092
DEFAULT_FLINK_PORT = 8081
DEFAULT_TASK_MANAGERS = 2

_STOP_GRACE_S = 10.0
#: Part of its memory that a new JVM has touched.
_TOUCHED_PART = 0.6
_GATEWAY_MB = 200
_CORE = {"broker", "job-manager"}
_RESTART_TIMEOUT_S = 60.0
_POLL_S = 0.2

Progress = Callable[[str], None]


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway; its `pid` is None if it has ended."""

    name: str
    http_url: str
    grpc_url: str
    pid: int | None


class StackStatus(msgspec.Struct, frozen=True, kw_only=True):
    """State of the stack.

    Attributes:
        running: True if broker and JobManager run.
        bootstrap_servers: Address for Kafka clients.
        flink_url: REST interface and web page.
        broker_pid, job_manager_pid, supervisor_pid: None if it has ended.
        gone: Names of processes that ended by themselves.
        restarts: Restarts by process.
        gateways: Doors for HTTP and gRPC.
        jobs: Flink's jobs, the newest first.
        workers: Flink's TaskManagers and their tasks.
    """

    running: bool
    data_dir: str
    bootstrap_servers: str | None = None
    flink_url: str | None = None
    broker_pid: int | None = None
    job_manager_pid: int | None = None
    task_manager_pids: list[int] = []
    supervisor_pid: int | None = None
    gone: list[str] = []
    restarts: dict[str, Restarts] = {}
    gateways: list[GatewayStatus] = []
    jobs: list[FlinkJob] = []
    workers: list[Worker] = []


def data_dir(chosen: Path | None = None) -> Path:
    """Return the chosen folder, else `$ANABRANCH_DATA_DIR`, else `.anabranch`."""
    return (chosen or Path(os.environ.get("ANABRANCH_DATA_DIR") or DEFAULT_DATA_DIR)).resolve()


def up(
    folder: Path,
    *,
    task_managers: int = DEFAULT_TASK_MANAGERS,
    kafka_port: int = DEFAULT_KAFKA_PORT,
    flink_port: int = DEFAULT_FLINK_PORT,
    task_manager_memory_mb: int = TASK_MANAGER_MEMORY_MB,
    restart_limits: RestartLimits | None = None,
    kafka_settings: Mapping[str, str] | None = None,
    flink_settings: Mapping[str, str] | None = None,
    gateway: GatewayPorts | None = None,
    progress: Progress = lambda _: None,
) -> tuple[StackStatus, bool]:
    """Start the stack, or the missing TaskManagers, gateway and supervisor of a running one.

    A stack without broker or JobManager is started anew. After a failed start
    no new process is left.

    Args:
        task_managers: Number of TaskManagers, of one slot each.
        kafka_port: 0 takes a free port.
        flink_port: 0 takes a free port.
        task_manager_memory_mb: Memory of each TaskManager's JVM.
        restart_limits: Limits of the supervisor of a new stack.
        kafka_settings: Settings of a new broker that override all others.
        flink_settings: Options of a new cluster that override all others.
        gateway: Ports of its gateway; None for no gateway.
        progress: Receives a description of each step.

    Returns:
        The status, and whether a process was started.

    Raises:
        StackError, InstallationError: The stack did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _await_restart(folder, progress)
    with stack_record.lock(folder):
        record = stack_record.read(folder)
        alive = _alive(record) if record else []
        if record and record.ready and {process.name for process in alive} >= _CORE:
            names = {process.name for process in alive}
            missing = task_managers - sum(name.startswith("task-manager-") for name in names)
            if missing > 0:
                _check_memory(missing * task_manager_memory_mb)
                progress("Adding Flink TaskManagers")
                _add_task_managers(folder, record, alive, missing)
            has_no_gateway = gateway is not None and gateways.NAME not in names
            if gateway is not None and has_no_gateway:
                progress("Adding a gateway")
                _add_gateway(folder, record, gateways.NAME, gateway, _place(record))
            if supervisor.NAME not in names:
                _start_supervisor(folder, record)
            return _status_of(folder, record), missing > 0 or has_no_gateway or supervisor.NAME not in names
        if record:
            progress("Stopping the rest of the last stack")
            _stop(folder, record)
        needed_mb = task_managers * task_manager_memory_mb + JOB_MANAGER_MEMORY_MB + HEAP_MB
        _check_memory(needed_mb + (_GATEWAY_MB if gateway else 0))
        (folder / "checkpoints").mkdir(exist_ok=True)
        broker = KafkaBroker(folder / "kafka", kafka_port, log_dir=folder / "logs", tied=False, settings=kafka_settings)
        cluster = FlinkCluster(
            folder / "flink",
            task_managers,
            flink_port,
            task_manager_memory_mb=task_manager_memory_mb,
            log_dir=folder / "logs",
            tied=False,
            settings={"execution.checkpointing.dir": (folder / "checkpoints").as_uri(), **(flink_settings or {})},
        )
        limits = restart_limits or RestartLimits()
        return _status_of(folder, _start(folder, broker, cluster, gateway, limits, progress)), True


def _await_restart(folder: Path, progress: Progress) -> None:
    """Wait for broker and JobManager that the supervisor has just started again."""
    give_up_at = monotonic() + _RESTART_TIMEOUT_S
    while (record := stack_record.read(folder)) and record.ready and _is_silent(record) and monotonic() < give_up_at:
        progress("Waiting for processes that start again")
        sleep(_POLL_S)


def _alive(record: StackRecord) -> list[ProcessRecord]:
    return [process for process in record.processes if process.find()]


def _is_silent(record: StackRecord) -> bool:
    """Tell whether broker and JobManager run, but one of them does not answer."""
    if not {process.name for process in _alive(record)} >= _CORE:
        return False
    try:
        FlinkRest(record.flink_url).jobs()
    except StackError:
        return True
    return not answers(int(record.bootstrap_servers.rpartition(":")[2]))


def _start(
    folder: Path,
    broker: KafkaBroker,
    cluster: FlinkCluster,
    ports: GatewayPorts | None,
    limits: RestartLimits,
    progress: Progress,
) -> StackRecord:
    door: GatewayProcess | None = None
    try:
        progress("Starting the Kafka broker")
        broker.launch()
        progress("Starting Flink")
        cluster.launch()
        record = StackRecord(
            bootstrap_servers=broker.bootstrap_servers,
            flink_url=cluster.url,
            processes=_records(broker, cluster),
            services=broker.services | cluster.services,
            restart_limits=limits,
        )
        # From here on, `up` and `down` find them.
        stack_record.write(folder, record)
        progress("Waiting for the Kafka broker")
        broker.await_ready()
        if ports is not None:
            # Its imports run beside Flink's start.
            door = GatewayProcess(folder, gateways.NAME, ports, _place(record))
            door.launch()
            _remember(folder, record, door)
        progress("Waiting for Flink")
        cluster.await_ready()
        if door is not None:
            progress("Waiting for the gateway")
            door.await_ready()
            record.gateways[gateways.NAME] = door.address
            _remember(folder, record, door)
        record.ready = True
        _start_supervisor(folder, record)
    except BaseException:
        if door is not None:
            door.kill()
        cluster.kill()
        broker.kill()
        stack_record.path_of(folder).unlink(missing_ok=True)
        raise
    _detach(broker, cluster, *([door] if door else []))
    return record


def add_gateway(folder: Path, ports: GatewayPorts, arguments: Sequence[str]) -> GatewayAddress:
    """Start another gateway of a running stack, and return its address.

    Args:
        arguments: Options of `anabranch gateway`, without ports.

    Raises:
        NotRunning: No stack runs.
        PortInUse: A port is taken.
        StartFailed: It ended, or did not serve in time.
    """
    require(folder)
    with stack_record.lock(folder):
        record = stack_record.read(folder)
        if record is None:
            raise NotRunning(f"no stack runs in {folder}: start one with `anabranch up`")
        name = gateways.next_name([process.name for process in record.processes])
        return _add_gateway(folder, record, name, ports, arguments)


def _add_gateway(
    folder: Path, record: StackRecord, name: str, ports: GatewayPorts, arguments: Sequence[str]
) -> GatewayAddress:
    door = GatewayProcess(folder, name, ports, arguments)
    door.start()
    try:
        record.gateways[name] = door.address
        _remember(folder, record, door)
    except BaseException:
        door.kill()
        raise
    _detach(door)
    return record.gateways[name]


def _place(record: StackRecord) -> list[str]:
    return ["--bootstrap-servers", record.bootstrap_servers, "--flink-url", record.flink_url]


def _remember(folder: Path, record: StackRecord, group: ServiceGroup) -> None:
    new = _records(group)
    names = {process.name for process in new}
    record.processes = [*(process for process in record.processes if process.name not in names), *new]
    record.services |= group.services
    record.restarts = {name: restarts for name, restarts in record.restarts.items() if name not in names}
    stack_record.write(folder, record)


def _add_task_managers(folder: Path, record: StackRecord, alive: list[ProcessRecord], missing: int) -> None:
    cluster = FlinkCluster(
        folder / "flink", rest_port=urlsplit(record.flink_url).port or 0, log_dir=folder / "logs", tied=False
    )
    try:
        for _ in range(missing):
            cluster.add_task_manager()
        record.processes = [*alive, *_records(cluster)]
        known = record.services | cluster.services
        names = {process.name for process in record.processes}
        record.services = {name: each for name, each in known.items() if name in names}
        record.restarts = {name: each for name, each in record.restarts.items() if name in names}
        record.gateways = {name: each for name, each in record.gateways.items() if name in names}
        stack_record.write(folder, record)
    except BaseException:
        cluster.kill()
        raise
    _detach(cluster)


def _start_supervisor(folder: Path, record: StackRecord) -> None:
    process = supervisor.service(folder).start(tied=False)
    try:
        others = [other for other in record.processes if other.name != supervisor.NAME]
        record.processes = [*others, process.record]
        stack_record.write(folder, record)
    except BaseException:
        process.kill()
        raise
    process.detach()


def _records(*groups: ServiceGroup) -> list[ProcessRecord]:
    return [process.record for group in groups for process in group.processes]


def _detach(*groups: ServiceGroup) -> None:
    for group in groups:
        for process in group.processes:
            process.detach()


def down(folder: Path) -> None:
    """Stop the stack of the folder with all descendants of its processes.

    Raises:
        NotRunning: No stack runs.
    """
    if not stack_record.path_of(folder).exists():
        raise NotRunning(f"no stack runs in {folder}")
    with stack_record.lock(folder):
        record = stack_record.read(folder)
        if record is None:
            raise NotRunning(f"no stack runs in {folder}")
        _stop(folder, record)


def status(folder: Path) -> StackStatus:
    """Return the state of the stack of the folder."""
    record = stack_record.read(folder)
    return _status_of(folder, record) if record else StackStatus(running=False, data_dir=str(folder))


def addresses(folder: Path) -> dict[str, str]:
    """Return Flink's address by the broker's, without asking either; empty without a stack."""
    record = stack_record.read(folder)
    return {record.bootstrap_servers: record.flink_url} if record else {}


def require(folder: Path) -> StackStatus:
    """Return the status of a running stack.

    Raises:
        NotRunning: No stack runs.
    """
    found = status(folder)
    if not found.running:
        raise NotRunning(f"no stack runs in {folder}: start one with `anabranch up`")
    return found


def _status_of(folder: Path, record: StackRecord) -> StackStatus:
    alive = {process.name: process.pid for process in _alive(record)}
    running = alive.keys() >= _CORE
    jobs: list[FlinkJob] = []
    placed: list[Worker] = []
    if "job-manager" in alive:
        try:
            rest = FlinkRest(record.flink_url)
            jobs = rest.jobs()
        except StackError:
            # It starts or stops.
            running = False
        else:
            # A job may end between two calls.
            with suppress(StackError):
                placed = workers(rest, jobs)
    return StackStatus(
        running=running,
        data_dir=str(folder),
        bootstrap_servers=record.bootstrap_servers,
        flink_url=record.flink_url,
        broker_pid=alive.get("broker"),
        job_manager_pid=alive.get("job-manager"),
        supervisor_pid=alive.get(supervisor.NAME),
        restarts=record.restarts,
        gateways=[
            GatewayStatus(name=name, http_url=each.http_url, grpc_url=each.grpc_url, pid=alive.get(name))
            for name, each in record.gateways.items()
        ],
        task_manager_pids=[pid for name, pid in alive.items() if name.startswith("task-manager-")],
        gone=[process.name for process in record.processes if process.name not in alive],
        jobs=jobs,
        workers=placed,
    )


def _stop(folder: Path, record: StackRecord) -> None:
    stop_all(record.processes, _STOP_GRACE_S)
    stack_record.path_of(folder).unlink(missing_ok=True)


def _check_memory(limit_mb: int) -> None:
    needed_mb = int(limit_mb * _TOUCHED_PART)
    available_mb = psutil.virtual_memory().available // 2**20
    if available_mb < needed_mb:
        raise NotEnoughMemory(needed_mb, available_mb)
