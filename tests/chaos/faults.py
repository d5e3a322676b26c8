"""The faults: each is done to a stand, held for a time and undone, and returns the evidence that it happened."""

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Protocol

import psutil

from anabranch.stack.processes import ProcessRecord, stop_all
from tests.chaos.proxy import TcpProxy, Weather
from tests.chaos.stand import DISK_BYTES, Stand
from tests.chaos.workload import POISON_KINDS

_RESTART_TIMEOUT_S = 240.0


class FaultMissed(Exception):
    """A fault did not happen, so that surviving it proves nothing."""


class LoadControl(Protocol):
    """The parts of the load that faults change."""

    def move_clock(self, by_s: float) -> None:
        """Moves the timestamps of the sender."""

    def send_poison(self, kind: str) -> None:
        """Sends one bad request."""

    def upgraded(self, generation: int, from_s: float) -> None:
        """Notes that other models answer."""


@dataclass
class Fault(ABC):
    """One fault.

    Attributes:
        kind: Its name in the suite.
        is_outage: The service may pause from its begin on; otherwise it has to recover from its end on.
    """

    stand: Stand
    load: LoadControl
    random: Random
    hold_s: float = 0.0
    kind: ClassVar[str]
    is_outage: ClassVar[bool] = False

    @abstractmethod
    def begin(self) -> str:
        """Makes it happen; returns a few words about it."""

    def end(self) -> str:
        """Undoes it; returns evidence that it happened."""
        return ""


class Kill(Fault):
    """A process is killed, and the supervisor starts it again."""

    is_outage = True

    def victims(self) -> list[ProcessRecord]:
        """Returns the processes that are killed."""
        raise NotImplementedError

    def begin(self) -> str:
        victims = self.victims()
        pids = {record.name: record.pid for record in victims}
        stop_all(victims, 0)
        _await(lambda: all(self._is_new(name, pid) for name, pid in pids.items()), f"{', '.join(pids)} is not started")
        return ", ".join(f"{name} {pid} -> {self.stand.processes()[name].pid}" for name, pid in pids.items())

    def _is_new(self, name: str, pid: int) -> bool:
        record = self.stand.processes().get(name)
        return record is not None and record.pid != pid and record.find() is not None


class KillTaskManager(Kill):
    """One TaskManager with its Python workers."""

    kind = "kill a TaskManager"

    def victims(self) -> list[ProcessRecord]:
        return [self.random.choice(self.stand.task_managers())]


class KillAllTaskManagers(Kill):
    """All TaskManagers at once."""

    kind = "kill all TaskManagers"

    def victims(self) -> list[ProcessRecord]:
        return self.stand.task_managers()


class KillJobManager(Kill):
    """The JobManager, which forgets the job; `anabranch run` submits it again."""

    kind = "kill the JobManager"

    def victims(self) -> list[ProcessRecord]:
        return [self.stand.processes()["job-manager"]]


class KillBroker(Kill):
    """The broker, whose topics stay."""

    kind = "kill the broker"

    def victims(self) -> list[ProcessRecord]:
        return [self.stand.processes()["broker"]]


class KillEverything(Fault):
    """All processes at once, then the same commands as at first."""

    kind = "kill everything"
    is_outage = True

    def begin(self) -> str:
        before = {name: record.pid for name, record in self.stand.processes().items()}
        runs = self.stand.runs
        self.stand.kill_everything()
        with self.stand.unserved():
            self.stand.up()
        after = {name: record.pid for name, record in self.stand.processes().items()}
        if any(after[name] == pid for name, pid in before.items() if name in after):
            raise FaultMissed(f"a process survived: {before}, {after}")
        _await(lambda: self.stand.runs > runs, "`anabranch run` was not started again")
        return f"{len(before)} processes, and `anabranch run`"


#: Beam's worker that runs Python functions.
_WORKER = "pyflink.fn_execution.beam.beam_boot"


class KillWorker(Fault):
    """The Python worker of a TaskManager in process mode."""

    kind = "kill a Python worker"
    is_outage = True

    def begin(self) -> str:
        _await(lambda: bool(self._workers()), "no Python worker runs in process mode")
        worker = self.random.choice(sorted(self._workers(), key=lambda process: process.pid))
        worker.kill()
        worker.wait(10)
        return f"process {worker.pid}"

    def _workers(self) -> list[psutil.Process]:
        families = [self.stand.family(record)[1:] for record in self.stand.task_managers()]
        found = []
        for process in (each for family in families for each in family):
            with suppress(psutil.Error):
                if _WORKER in process.cmdline():
                    found.append(process)
        return found


class Stop(Fault):
    """Processes get SIGSTOP, and SIGCONT after a time."""

    def victims(self) -> Iterable[psutil.Process]:
        """Returns the processes that are stopped."""
        raise NotImplementedError

    def begin(self) -> str:
        self._stopped = list(self.victims())
        for process in self._stopped:
            process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        states = {process.status() for process in self._stopped}
        if states != {psutil.STATUS_STOPPED}:
            raise FaultMissed(f"processes are {states} after SIGSTOP")
        return f"{len(self._stopped)} processes for {self.hold_s:.0f} s"

    def end(self) -> str:
        for process in self._stopped:
            # It may have been killed meanwhile.
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        return ""


class StopTaskManager(Stop):
    """One TaskManager with its Python workers."""

    kind = "stop a TaskManager"

    def victims(self) -> Iterable[psutil.Process]:
        return self.stand.family(self.random.choice(self.stand.task_managers()))


class StopJobManager(Stop):
    """The JobManager."""

    kind = "stop the JobManager"

    def victims(self) -> Iterable[psutil.Process]:
        return self.stand.family(self.stand.processes()["job-manager"])


class StopBroker(Stop):
    """The broker."""

    kind = "stop the broker"

    def victims(self) -> Iterable[psutil.Process]:
        return self.stand.family(self.stand.processes()["broker"])


class StopEverything(Stop):
    """All processes, as a suspended machine does."""

    kind = "stop everything"

    def victims(self) -> Iterable[psutil.Process]:
        families = [self.stand.family(record) for record in self.stand.processes().values()]
        return [process for family in (*families, self.stand.run_family()) for process in family]


class BadWeather(Fault):
    """A network lets no data, little data, or the data of one direction pass."""

    weathers: ClassVar[tuple[Weather, ...]]

    def network(self) -> TcpProxy:
        """Returns the network."""
        return self.stand.kafka_network

    def begin(self) -> str:
        self._before = self.network().hit
        weather = self.random.choice(self.weathers)
        self.network().set(weather)
        return f"{weather} for {self.hold_s:.0f} s"

    def end(self) -> str:
        hit = self.network().hit - self._before
        self.network().set("fair")
        if not hit:
            raise FaultMissed("no data met the fault of the network")
        return f"{hit} connections or pieces of data"


class CutKafka(BadWeather):
    """Connections to the broker are reset and refused, or fall silent."""

    kind = "cut the network to Kafka"
    weathers: ClassVar[tuple[Weather, ...]] = ("cut", "silent")


class SlowKafka(BadWeather):
    """The broker's network has 150 ms of latency and 256 KiB/s a connection."""

    kind = "slow the network to Kafka"
    weathers = ("slow",)


class HalveKafka(BadWeather):
    """Requests reach the broker and answers do not, or the other way round."""

    kind = "halve the network to Kafka"
    weathers = ("no-up", "no-down")


class CutCluster(BadWeather):
    """TaskManagers and JobManager lose each other."""

    kind = "cut the network to the JobManager"
    weathers: ClassVar[tuple[Weather, ...]] = ("cut", "silent")

    def network(self) -> TcpProxy:
        return self.stand.cluster_network


class SlowCluster(CutCluster):
    """Messages between TaskManagers and JobManager take 150 ms more."""

    kind = "slow the network to the JobManager"
    weathers = ("slow",)


class HalveCluster(CutCluster):
    """Messages between TaskManagers and JobManager pass in one direction only."""

    kind = "halve the network to the JobManager"
    weathers = ("no-up", "no-down")


class FillDisk(Fault):
    """The disk of the checkpoints is full, or their folder is gone."""

    kind = "fill the disk of the checkpoints"

    def begin(self) -> str:
        self._failed = self.stand.counts().get("failed", 0)
        self._runs = self.stand.runs
        self._ballast = self.stand.checkpoints / "ballast"
        self._away = self.stand.checkpoints.with_name("checkpoints-away")
        if not self.stand.has_own_disk:
            # A file in place of the folder refuses writes of any user.
            self.stand.checkpoints.rename(self._away)
            self.stand.checkpoints.touch()
            return f"no folder for {self.hold_s:.0f} s"
        with self._ballast.open("wb", buffering=0) as file, suppress(OSError):
            for _ in range(2 * DISK_BYTES // 2**16):
                file.write(bytes(2**16))
            raise FaultMissed("the disk is larger than it should be")
        return f"no space for {self.hold_s:.0f} s"

    def end(self) -> str:
        failed = self.stand.counts().get("failed", 0) - self._failed
        if self.stand.has_own_disk:
            self._ballast.unlink()
        else:
            self.stand.checkpoints.unlink()
            self._away.rename(self.stand.checkpoints)
        if failed <= 0 and self.stand.runs == self._runs:
            raise FaultMissed("no checkpoint failed")
        return f"{failed} failed checkpoints" if failed > 0 else "the job failed"


class Rescale(Fault):
    """`anabranch rescale`."""

    is_outage = True
    tasks: ClassVar[tuple[int, ...]]

    def begin(self) -> str:
        before = self.stand.parallelism
        self.stand.parallelism = self.random.choice([tasks for tasks in self.tasks if tasks != before])
        self.stand.write_config()
        old = self.stand.running_job()
        self.stand.command("rescale", str(self.stand.parallelism))
        if self.stand.running_job() in (None, old):
            raise FaultMissed("the job was not replaced")
        return f"{before} -> {self.stand.parallelism} tasks"


class RescaleUp(Rescale):
    """More tasks."""

    kind = "rescale up"
    tasks = (3,)


class RescaleDown(Rescale):
    """Fewer tasks."""

    kind = "rescale down"
    tasks = (1, 2)


class Upgrade(Fault):
    """`anabranch upgrade` with another generation of the models."""

    kind = "upgrade with changed models"
    is_outage = True

    def begin(self) -> str:
        before, from_s = self.stand.generation, time.monotonic()
        self.stand.generation = 1 - before
        self.stand.write_config()
        self.stand.command("upgrade")
        self.load.upgraded(self.stand.generation, from_s)
        return f"models {before} -> {self.stand.generation}"


class MoveClock(Fault):
    """The sender's clock is ahead or behind: hours, less than the topic keeps records, or more than a broker takes."""

    kind = "move the client's clock"

    def begin(self) -> str:
        by_s = self.random.choice((-80_000.0, -3600.0, -60.0, 60.0, 3600.0, 86_400.0))
        self.load.move_clock(by_s)
        return f"by {by_s:+.0f} s for {self.hold_s:.0f} s"

    def end(self) -> str:
        self.load.move_clock(0.0)
        return ""


class SendPoison(Fault):
    """Bad requests of every kind, several times."""

    kind = "send poison"
    times = 3

    def begin(self) -> str:
        for _ in range(self.times):
            for kind in self.random.sample(POISON_KINDS, len(POISON_KINDS)):
                self.load.send_poison(kind)
        return f"{self.times} requests of each of {len(POISON_KINDS)} kinds"


def _named(base: Any) -> Iterable[type[Fault]]:
    if hasattr(base, "kind"):
        yield base
    for derived in base.__subclasses__():
        yield from _named(derived)


FAULTS: dict[str, type[Fault]] = {fault.kind: fault for fault in _named(Fault)}


def _await(is_done: Callable[[], bool], problem: str) -> None:
    end = time.monotonic() + _RESTART_TIMEOUT_S
    while not is_done():
        if time.monotonic() > end:
            raise FaultMissed(f"{problem} within {_RESTART_TIMEOUT_S:.0f} s")
        time.sleep(0.1)
