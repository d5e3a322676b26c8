"""A local stack whose network and disk can fail, with `anabranch run` attached as a service manager would keep it.

client -- [ proxy ] -- broker                 supervisor: starts broker, JobManager and TaskManagers again
              |                               service:    starts `anabranch run` again if no job runs
TaskManager --+-- [ proxy ] -- JobManager
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import psutil

from anabranch.jobs.control import ENDED
from anabranch.stack import local_stack, stack_record
from anabranch.stack.errors import StackError, StartFailed
from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.kafka.topics import Topic, create_topics
from anabranch.stack.ports import LOOPBACK, free_port
from anabranch.stack.processes import ProcessRecord, stop_all
from anabranch.stack.restart_policy import RestartLimits
from tests.chaos.models import write_models
from tests.chaos.proxy import TcpProxy
from tests.chaos.workload import MAX_MESSAGE_BYTES

JOB = "chaos"
REQUESTS, RESPONSES, LETTERS = "chaos-requests", "chaos-responses", "chaos-errors"
PARTITIONS = 4
#: Of each TaskManager.
SLOTS = 3
DISK_BYTES = 64 * 1024 * 1024
CHECKPOINT_INTERVAL_MS = 1000

_COMMAND_TIMEOUT_S = 400.0
_READY_TIMEOUT_S = 400.0
_POLL_S = 0.5
#: Variable of a process and its descendants.
MARKER = "ANABRANCH_PROCESS"
_STARTS = 4


class Stand:
    """The stack, its job and the commands that a user gives.

    Attributes:
        kafka_network: Between the broker and all its clients.
        cluster_network: Between TaskManagers and JobManager.
        generation: Generation of the served models.
        runs: Number of times that `anabranch run` was started.
    """

    def __init__(self, folder: Path, mode: str, delivery: str, balance: str, task_managers: int) -> None:
        """Start nothing yet."""
        self._task_managers = task_managers
        self.folder = folder.resolve()
        self._mode, self._delivery, self._balance = mode, delivery, balance
        self._ports = dict(zip(("kafka", "direct", "controller", "rest", "rpc"), _free_ports(), strict=False))
        self.kafka_network = TcpProxy(free_port(), self._ports["kafka"])
        self.cluster_network = TcpProxy(free_port(), self._ports["rpc"])
        self.parallelism = 2
        self.generation = 0
        self.runs = 0
        self._run: subprocess.Popen[bytes] | None = None
        self._is_served = threading.Event()
        self._stopped = threading.Event()
        self._served_lock = threading.Lock()
        self._resources = ExitStack()

    @property
    def bootstrap_servers(self) -> str:
        """Address of the broker behind the proxy."""
        return f"{LOOPBACK}:{self.kafka_network.port}"

    @property
    def direct_servers(self) -> str:
        """Address of the broker without the proxy, for the reader that judges."""
        return f"{LOOPBACK}:{self._ports['direct']}"

    @property
    def rest(self) -> FlinkRest:
        """Flink's REST interface."""
        return FlinkRest(f"http://{LOOPBACK}:{self._ports['rest']}")

    @property
    def checkpoints(self) -> Path:
        """Folder of the job's state, a small disk of its own where the system allows that."""
        return self.folder / "stack" / "checkpoints"

    def __enter__(self) -> Self:
        """Starts the stack and its job, and waits until the job serves."""
        with ExitStack() as resources:
            resources.callback(self._down)
            self.checkpoints.mkdir(parents=True)
            self.has_own_disk = _mount(self.checkpoints)
            if self.has_own_disk:
                resources.callback(_unmount, self.checkpoints)
                # The stack ends before its disk.
                resources.callback(self._down)
            resources.enter_context(self.kafka_network)
            resources.enter_context(self.cluster_network)
            for generation in (0, 1):
                write_models(self._repository(generation), generation)
            self.write_config()
            self.up()
            sizes = {"max.message.bytes": str(2 * MAX_MESSAGE_BYTES)}
            topics = Topic(REQUESTS, PARTITIONS, sizes), Topic(RESPONSES, 1, sizes), Topic(LETTERS, 1, sizes)
            create_topics(self.direct_servers, topics)
            self._start_run()
            self.await_served()
            service = threading.Thread(target=self._serve, daemon=True)
            service.start()
            resources.callback(service.join, 30)
            resources.callback(self._stopped.set)
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends all processes."""
        self._resources.close()

    # ---- commands of a user

    def up(self) -> None:
        """`anabranch up`, with the network in between; again if a busy machine is too slow for it."""
        for _ in range(_STARTS - 1):
            with suppress(StartFailed, subprocess.TimeoutExpired):
                self._up()
                return
        self._up()

    def _up(self) -> None:
        ports = self._ports
        local_stack.up(
            self.folder / "stack",
            task_managers=self._task_managers,
            kafka_port=ports["kafka"],
            flink_port=ports["rest"],
            restart_limits=RestartLimits(max_restarts=100),
            kafka_settings={
                "controller.quorum.voters": f"1@{LOOPBACK}:{ports['controller']}",
                "listeners": f"PLAINTEXT://{LOOPBACK}:{ports['kafka']},DIRECT://{LOOPBACK}:{ports['direct']},"
                f"CONTROLLER://{LOOPBACK}:{ports['controller']}",
                "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers},DIRECT://{self.direct_servers}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "inter.broker.listener.name": "DIRECT",
            },
            flink_settings={
                "taskmanager.numberOfTaskSlots": str(SLOTS),
                "jobmanager.rpc.port": str(self.cluster_network.port),
                "jobmanager.rpc.bind-port": str(ports["rpc"]),
            },
        )

    def command(self, *words: str) -> None:
        """Gives a command that replaces the job, and waits for its end."""
        with self._served_lock:
            arguments = self._anabranch(*words)
            # One attempt can meet a job that Flink restarts.
            for attempt in range(3):
                done = subprocess.run(
                    arguments, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
                )
                with (self.folder / "commands.log").open("a") as log:
                    log.write(
                        f"{time.strftime('%X')} {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}\n"
                    )
                if done.returncode == 0:
                    return
                if attempt < 2 and self.running_job() is None:
                    break
                time.sleep(2)
        raise StackError(f"`anabranch {' '.join(words)}` failed: {done.stderr[-500:]}")

    def write_config(self) -> None:
        """Writes `anabranch.toml` for the present tasks and models."""
        (self.folder / "anabranch.toml").write_text(
            f"""
[kafka]
bootstrap_servers = "{self.bootstrap_servers}"
requests_topic = "{REQUESTS}"
responses_topic = "{RESPONSES}"
errors_topic = "{LETTERS}"
group_id = "{JOB}"
max_message_bytes = {MAX_MESSAGE_BYTES}

[job]
name = "{JOB}"
parallelism = {self.parallelism}
execution_mode = "{self._mode}"
delivery = "{self._delivery}"
checkpoint_interval_ms = {CHECKPOINT_INTERVAL_MS}

[exchange]
claim_from_bytes = 256

[scheduling]
balance = "{self._balance}"

[models]
repository = "{self._repository(self.generation)}"
"""
        )

    # ---- processes

    def processes(self) -> dict[str, ProcessRecord]:
        """Processes of the stack by name, dead or alive."""
        record = stack_record.read(self.folder / "stack")
        return {process.name: process for process in record.processes} if record else {}

    def task_managers(self) -> list[ProcessRecord]:
        """TaskManagers that run now."""
        return [
            process for name, process in self.processes().items() if name.startswith("task-manager-") and process.find()
        ]

    def family(self, record: ProcessRecord) -> list[psutil.Process]:
        """A process and its descendants, which inherit its marker; some leave its process tree."""
        process = record.find()
        return [process, *(each for each in psutil.process_iter() if _is_descendant(each, record))] if process else []

    def run_family(self) -> list[psutil.Process]:
        """The attached `anabranch run` with its descendants."""
        if self._run is None or self._run.poll() is not None:
            return []
        with suppress(psutil.Error):
            process = psutil.Process(self._run.pid)
            return [process, *process.children(recursive=True)]
        return []

    def kill_everything(self) -> None:
        """Ends all processes at once, as a power cut does, the supervisor first."""
        with self._served_lock:
            run = self.run_family()
            processes = self.processes()
            for process in [*self.family(processes["supervisor"]), *run]:
                with suppress(psutil.Error):
                    process.kill()
            stop_all(processes.values(), 0)
            if self._run:
                self._run.wait()

    # ---- state of the job

    def running_job(self) -> str | None:
        """Returns the id of the job that has not ended, if the cluster answers and has one."""
        with suppress(StackError, msgspec.MsgspecError):
            return next((job.job_id for job in self.rest.jobs() if job.name == JOB and job.state not in ENDED), None)
        return None

    def ask(self, path: str) -> Any:
        """Returns the answer of the REST interface about the running job; None without one."""
        job_id = self.running_job()
        with suppress(StackError, msgspec.MsgspecError):
            return self.rest.get(f"/jobs/{job_id}{path}") if job_id else None
        return None

    def counts(self) -> dict[str, int]:
        """Returns Flink's counts of checkpoints of the running job."""
        found = self.ask("/checkpoints")
        return dict(found["counts"]) if found else {}

    def await_served(self) -> None:
        """Waits until all tasks of the job run."""
        end = time.monotonic() + _READY_TIMEOUT_S
        while not self._tasks_run():
            if time.monotonic() > end:
                raise TimeoutError("the job does not serve")
            time.sleep(_POLL_S)

    def _tasks_run(self) -> bool:
        found = self.ask("")
        return bool(found) and all(vertex["status"] == "RUNNING" for vertex in found["vertices"])

    # ---- the service that keeps `anabranch run`

    @contextmanager
    def unserved(self) -> Iterator[None]:
        """Keeps the service from starting `anabranch run`."""
        with self._served_lock:
            yield

    def _serve(self) -> None:
        while not self._stopped.wait(1.0):
            if self._served_lock.acquire(blocking=False):
                try:
                    if (self._run is None or self._run.poll() is not None) and self._cluster_is_idle():
                        self._start_run()
                finally:
                    self._served_lock.release()

    def _cluster_is_idle(self) -> bool:
        """Returns whether the cluster answers and runs no job."""
        try:
            return all(job.state in ENDED for job in self.rest.jobs())
        except (StackError, msgspec.MsgspecError):
            return False

    def _start_run(self) -> None:
        self.runs += 1
        with (self.folder / "run.log").open("ab") as log:
            log.write(f"---- {time.strftime('%X')}\n".encode())
            self._run = subprocess.Popen(
                self._anabranch("run"), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def _anabranch(self, *words: str) -> list[str]:
        options = ["--config", str(self.folder / "anabranch.toml"), "--data-dir", str(self.folder / "stack")]
        return [sys.executable, "-m", "anabranch", *words, *options]

    def _down(self) -> None:
        for process in self.run_family():
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
                process.kill()
        if self._run:
            self._run.wait()
        for record in self.processes().values():
            for process in self.family(record):
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)
        with suppress(StackError):
            local_stack.down(self.folder / "stack")

    def _repository(self, generation: int) -> Path:
        return self.folder / f"models-{generation}"


def _is_descendant(process: psutil.Process, record: ProcessRecord) -> bool:
    try:
        return process.pid != record.pid and process.environ().get(MARKER) == record.marker
    except (psutil.Error, OSError):
        return False


def _free_ports() -> Iterator[int]:
    while True:
        yield free_port()


def _mount(folder: Path) -> bool:
    """Puts a small file system at a folder; returns whether the system allows that."""
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=False)
