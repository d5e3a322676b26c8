"""The measuring environment: one broker, the topics, and the processes that send, serve and read."""

import itertools
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, KafkaException, TopicPartition

from anabranch.served_models import publish
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from anabranch.stack.processes import LocalProcess
from bench.harness.accounting import ProcessorTime
from bench.harness.door_load import DoorLog
from bench.harness.messages import (
    DoorCommand,
    DoorProtocol,
    LoadCommand,
    ReadCommand,
    ServeCommand,
    ServeDoorsCommand,
)
from bench.harness.response_log import ResponseLog
from bench.harness.schedule import poisson_offsets_ns
from bench.systems.peer_installation import interpreter_of
from bench.systems.registry import System
from bench.workloads.workload import Workload

PARTITIONS = 4

_ROOT = Path(__file__).resolve().parents[2]
_STOP_GRACE_S = 3.0
_STALL_S = 90.0
_READ_PATIENCE_S = 20.0
_LOAD_TIMEOUT_S = 900.0
_POLL_S = 0.02
#: Time between two polls, as a share of the expected remaining time.
_POLL_SHARE, _MOST_POLL_S = 0.25, 0.5
_OFFSETS_TIMEOUT_S, _DOORS_TIMEOUT_S = 30.0, 120.0
#: Syslog level that silences the admin client's messages at its end.
_NOTICE = 5


class Stalled(Exception):
    """A system stopped answering."""


class Topics(msgspec.Struct, frozen=True):
    """The topics of one run."""

    requests: str
    responses: str
    errors: str


class Doors(msgspec.Struct, frozen=True):
    """HOST:PORT of a server."""

    http: str
    grpc: str


class BenchEnvironment:
    """A broker for a `with` block, and its clients.

    Args:
        folder: Folder of data, logs and files between processes; several GB.
        repository: The models that every system serves.
    """

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        self._repository = repository
        self._broker = KafkaBroker(folder / "kafka", log_dir=folder / "logs")
        self._temporary = folder / "tmp"
        self._numbers = itertools.count(1)
        self._workload_paths: dict[str, Path] = {}
        self._has_models_topic = False

    def __enter__(self) -> Self:
        """Start the broker."""
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._broker.start()
        self._offsets = self._new_client()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the broker."""
        self._offsets.close()
        self._broker.stop()

    @property
    def bootstrap_servers(self) -> str:
        """The broker's address."""
        return self._broker.bootstrap_servers

    def account(self, *system: LocalProcess) -> ProcessorTime:
        """Measure the processor time of the broker and of a system's processes."""
        return ProcessorTime({"broker": [self._broker.process.pid], "system": [process.pid for process in system]})

    def topics(self, requests: str | None = None) -> Topics:
        """Create topics for a run; `requests` names an earlier run's topic."""
        number = next(self._numbers)
        topics = Topics(requests or f"requests-{number}", f"responses-{number}", f"errors-{number}")
        stamped = {"message.timestamp.type": "LogAppendTime"}
        self._broker.create_topics(
            Topic(topics.requests, PARTITIONS),
            Topic(topics.responses, PARTITIONS, stamped),
            Topic(topics.errors, PARTITIONS),
        )
        return topics

    @contextmanager
    def serving(self, system: System, topics: Topics, flink_url: str | None = None) -> Iterator[LocalProcess]:
        """Start a system's process, and stop it after the block.

        Raises:
            PeerMissing: A peer's packages or jars are missing.
        """
        command = self._serve_command(
            system.kind,
            topics,
            parallelism=system.parallelism,
            mode=system.mode or "thread",
            flink_url=flink_url,
            overload=system.overload,
            balance=system.balance,
            busy_folder=system.busy_folder,
            slowdown=system.slowdown,
            delivery=system.delivery,
            checkpoint_folder=system.checkpoint_folder,
            checkpoint_interval_ms=system.checkpoint_interval_ms,
            events=system.events,
            gateway_url=system.gateway_url,
            rows_together=system.rows_together,
        )
        if system.checkout:
            process = self._start_checkout(Path(system.checkout), command)
        else:
            process = self._start("system", "bench.systems", command.to_argument(), interpreter_of(system.kind))
        try:
            yield process
        finally:
            process.stop(_STOP_GRACE_S)

    def send(
        self,
        topic: str,
        workload: Workload,
        count: int,
        first_id: int,
        rate_per_s: float | None,
        seed: int = 0,
        partitions: int = PARTITIONS,
    ) -> npt.NDArray[np.int64]:
        """Send by a Poisson schedule or at once; return the scheduled times in ns."""
        offsets_ns = None if rate_per_s is None else poisson_offsets_ns(rate_per_s, count, seed)
        with self.generating(offsets_ns, topic, workload, count, first_id, partitions) as generator:
            return generator.send()[0]

    @contextmanager
    def generating(
        self,
        offsets_ns: npt.NDArray[np.int64] | None,
        topic: str,
        workload: Workload,
        count: int,
        first_id: int,
        partitions: int = PARTITIONS,
    ) -> Iterator["Generator"]:
        """Start a generator process that waits for its signal, and kill it after the block.

        Args:
            offsets_ns: Send times after the start; None sends at full speed.
            partitions: Number of partitions with requests.
        """
        out, offsets_path = self._new_file("load.npz"), None
        if offsets_ns is not None:
            offsets_path = str(self._new_file("offsets.npy"))
            np.save(offsets_path, offsets_ns)
        command = LoadCommand(
            bootstrap_servers=self.bootstrap_servers,
            topic=topic,
            partitions=partitions,
            workload_path=str(self._path_of(workload)),
            first_id=first_id,
            count=count,
            offsets_path=offsets_path,
            go_path=str(self._new_file("go")),
            out_path=str(out),
        )
        process = self._start("load", "bench.harness.load", command.to_argument())
        try:
            yield Generator(process, Path(command.go_path), out)
        finally:
            process.kill()

    @contextmanager
    def generating_beside(self, workload: Workload, rate_per_s: float, seconds: float) -> Iterator[Callable[[], None]]:
        """Load broker and machine with requests that no system reads.

        Args:
            seconds: Longest time to send.

        Yields:
            A function that returns once the first request is stored.
        """
        topics, count = self.topics(), max(1, round(rate_per_s * seconds))
        offsets_ns = poisson_offsets_ns(rate_per_s, count, seed=0)
        try:
            with self.generating(offsets_ns, topics.requests, workload, count, 0) as generator:

                def begin() -> None:
                    generator.begin()
                    self.await_answers(topics.requests, 1, generator.process)

                yield begin
        finally:
            self.drop(topics.requests, topics.responses, topics.errors)

    @contextmanager
    def reading(
        self, topic: str, workload: Workload, expected: int, start_offsets: tuple[int, ...]
    ) -> Iterator["Reader"]:
        """Start a reader process and wait until it has its place in the topic."""
        command = ReadCommand(
            bootstrap_servers=self.bootstrap_servers,
            topic=topic,
            start_offsets=start_offsets,
            expected=expected,
            patience_s=_READ_PATIENCE_S,
            workload_path=str(self._path_of(workload)),
            ready_path=str(self._new_file("ready")),
            out_path=str(self._new_file("answers.npz")),
        )
        process = self._start("reader", "bench.harness.response_log", command.to_argument())
        try:
            process.await_ready(Path(command.ready_path).exists, _OFFSETS_TIMEOUT_S)
            yield Reader(process, Path(command.out_path))
        finally:
            process.kill()

    def read(self, topic: str, workload: Workload, expected: int) -> ResponseLog:
        """Read all answers of a topic from its start."""
        with self.reading(topic, workload, expected, (0,) * PARTITIONS) as reader:
            return reader.finish()

    @contextmanager
    def serving_at_gateway(self, topics: Topics) -> Iterator[tuple[LocalProcess, Doors]]:
        """Start this project's gateway to a job that serves the topics, and stop it after the block."""
        kafka = self._serve_command("anabranch", topics)
        # These import Flink.
        from anabranch.flink_job.job import read_models  # noqa: PLC0415
        from bench.systems.anabranch_job import config_of  # noqa: PLC0415

        job = config_of(kafka)
        if not self._has_models_topic:
            self._broker.create_topics(Topic(job.kafka.models_topic, 1, {"cleanup.policy": "compact"}))
            self._has_models_topic = True
        publish(job, read_models(job))
        config, ready = self._new_file("gateway.toml"), self._new_file("gateway.json")
        config.write_text(config_text(kafka))
        arguments = ["gateway", "--config", str(config), "--http-port", "0", "--grpc-port", "0", "--json"]
        process = self._launch(
            "gateway", ["sh", "-c", f'exec "$0" -m anabranch "$@" > {ready}', sys.executable, *arguments], {}
        )
        try:
            process.await_ready(lambda: ready.exists() and ready.stat().st_size > 0, _DOORS_TIMEOUT_S)
            found = msgspec.json.decode(ready.read_bytes())
            yield process, Doors(found["http_url"].removeprefix("http://"), found["grpc_url"].removeprefix("grpc://"))
        finally:
            process.stop(_STOP_GRACE_S)

    @contextmanager
    def serving_at_doors(self, system: System) -> Iterator[tuple[LocalProcess, Doors]]:
        """Start a peer that answers at doors of its own, and stop it after the block.

        Raises:
            PeerMissing: Its packages are missing.
        """
        ready = self._new_file("doors.json")
        command = ServeDoorsCommand(kind=system.kind, repository=str(self._repository), ready_path=str(ready))
        module = "bench.systems.serving.doors"
        process = self._start("doors", module, command.to_argument(), interpreter_of(system.kind))
        try:
            process.await_ready(ready.exists, _DOORS_TIMEOUT_S)
            yield process, msgspec.json.decode(ready.read_bytes(), type=Doors)
        finally:
            process.stop(_STOP_GRACE_S)

    def ask(
        self,
        address: str,
        protocol: DoorProtocol,
        workload: Workload,
        *,
        connections: int,
        warm_up_s: float,
        seconds: float,
        rate_per_s: float | None = None,
        seed: int = 0,
    ) -> DoorLog:
        """Ask a door in a closed loop, or by a Poisson schedule."""
        out, offsets_path = self._new_file("asked.npz"), None
        if rate_per_s is not None:
            offsets_path = str(self._new_file("offsets.npy"))
            np.save(offsets_path, poisson_offsets_ns(rate_per_s, round(rate_per_s * (warm_up_s + seconds)), seed))
        command = DoorCommand(
            address=address,
            protocol=protocol,
            workload_path=str(self._path_of(workload)),
            connections=connections,
            warm_up_s=warm_up_s,
            seconds=seconds,
            out_path=str(out),
            offsets_path=offsets_path,
        )
        self.run_to_end("client", "bench.harness.door_load", command.to_argument())
        return DoorLog.load(out)

    def end_offsets(self, topic: str) -> tuple[int, ...]:
        """Return the number of records written to each partition of a topic."""
        return tuple(self._end_offset(TopicPartition(topic, partition)) for partition in range(PARTITIONS))

    def _new_client(self) -> Consumer:
        return Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": "bench-offsets"})

    def _end_offset(self, place: TopicPartition) -> int:
        give_up_at = monotonic() + _OFFSETS_TIMEOUT_S
        while True:
            try:
                return int(self._offsets.get_watermark_offsets(place, _OFFSETS_TIMEOUT_S)[1])
            except KafkaException as error:
                # A topic may have no leader yet, and a client may lose it for good.
                if monotonic() > give_up_at:
                    raise Stalled(f"no end offset of topic {place.topic} from the broker: {error}") from error
                sleep(_POLL_S)
                self._offsets.close()
                self._offsets = self._new_client()

    def await_answers(self, topic: str, wanted: int, process: LocalProcess) -> int:
        """Wait until a topic has `wanted` records, and return their number.

        Raises:
            Stalled: No record was added for a long time.
            StartFailed: The system's process ended.
        """
        seen, stalled_at = -1, 0.0
        began_s = monotonic()
        stored = first = sum(self.end_offsets(topic))
        while stored < wanted:
            if stored > seen:
                seen, stalled_at = stored, monotonic() + _STALL_S
            if monotonic() > stalled_at:
                raise Stalled(
                    f"{seen} of {wanted} answers arrived, then none for {_STALL_S:.0f} s; see {process.log_path}"
                )
            process.check()
            left_s = (wanted - stored) * (monotonic() - began_s) / max(stored - first, 1)
            sleep(min(max(left_s * _POLL_SHARE, _POLL_S), _MOST_POLL_S))
            stored = sum(self.end_offsets(topic))
        return stored

    def drop(self, *topics: str) -> None:
        """Delete topics, so that the disk does not fill."""
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - only here

        # The client must outlive its futures.
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": _NOTICE})
        for future in admin.delete_topics(list(topics)).values():
            try:
                future.result()
            except KafkaException:
                continue

    def run_to_end(self, name: str, module: str, argument: str) -> None:
        """Run one of the benchmark's programs to its end.

        Raises:
            StartFailed: It failed, or took too long.
        """
        process = self._start(name, module, argument)
        try:
            process.await_success(_LOAD_TIMEOUT_S)
        finally:
            process.kill()

    def _start(self, name: str, module: str, argument: str, python: Path = Path(sys.executable)) -> LocalProcess:
        return self._launch(name, [str(python), "-m", module, argument], {"PYTHONPATH": str(_ROOT)})

    def _start_checkout(self, checkout: Path, command: ServeCommand) -> LocalProcess:
        """Start the job of another checkout by its own command line."""
        config = self._new_file("config.toml")
        config.write_text(config_text(command))
        program = checkout / ".venv" / "bin" / "anabranch"
        return self._launch(
            "system", [str(program), "run", "--mini-cluster", "--config", str(config)], {"PYTHONPATH": ""}
        )

    def _launch(self, name: str, arguments: Sequence[str], variables: Mapping[str, str]) -> LocalProcess:
        number = next(self._numbers)
        logs = self.folder / "logs"
        return LocalProcess.start(
            f"{name}-{number}",
            arguments,
            # A MiniCluster leaves its checkpoints in TMPDIR.
            environment={"FLINK_LOG_DIR": str(logs / f"{name}-{number}"), "TMPDIR": str(self._temporary), **variables},
            directory=self.folder,
            out_path=logs / f"{name}-{number}.out",
            tied=True,
        )

    def _serve_command(self, kind: str, topics: Topics, **options: Any) -> ServeCommand:
        return ServeCommand(
            kind=kind,
            bootstrap_servers=self.bootstrap_servers,
            requests_topic=topics.requests,
            responses_topic=topics.responses,
            errors_topic=topics.errors,
            group_id=topics.responses,
            repository=str(self._repository),
            **options,
        )

    def _path_of(self, workload: Workload) -> Path:
        if workload.name not in self._workload_paths:
            path = self._workload_paths[workload.name] = self._new_file("workload.npz")
            workload.save(path)
        return self._workload_paths[workload.name]

    def _new_file(self, name: str) -> Path:
        return self.folder / f"{next(self._numbers)}-{name}"


def config_text(command: ServeCommand) -> str:
    """Return the job's TOML configuration, with keys of every version."""
    tables: dict[str, dict[str, str | int]] = {
        "kafka": {
            "bootstrap_servers": command.bootstrap_servers,
            "requests_topic": command.requests_topic,
            "responses_topic": command.responses_topic,
            "errors_topic": command.errors_topic,
            "group_id": command.group_id,
        },
        "job": {"parallelism": command.parallelism, "execution_mode": command.mode},
        "models": {"repository": command.repository},
    }
    lines = []
    for table, keys in tables.items():
        # JSON strings and numbers are TOML values too.
        lines += [f"[{table}]", *(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in keys.items())]
    return "\n".join([*lines, ""])


def await_model(doors: Doors, model: str) -> None:
    """Wait until a gateway serves a model; raise Stalled if it does not."""
    url = f"http://{doors.http}/v2/models/{model}/ready"
    give_up_at = monotonic() + _STALL_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=_OFFSETS_TIMEOUT_S):
                return
        except OSError as error:
            if monotonic() > give_up_at:
                raise Stalled(f"{url} does not answer: {error}") from error
            sleep(_MOST_POLL_S)


class Generator:
    """A process that sends requests on a signal."""

    def __init__(self, process: LocalProcess, go_path: Path, out_path: Path) -> None:
        self.process = process
        self._go_path = go_path
        self._out_path = out_path

    def begin(self) -> None:
        """Give the signal and return at once."""
        self._go_path.touch()

    def send(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Give the signal and wait for the end; return scheduled and actual send times in nanoseconds."""
        self.begin()
        self.process.await_success(_LOAD_TIMEOUT_S)
        with np.load(self._out_path) as file:
            return file["scheduled_ns"], file["sent_ns"]


class Reader:
    """A process that collects answers."""

    def __init__(self, process: LocalProcess, out_path: Path) -> None:
        self._process = process
        self._out_path = out_path

    def finish(self) -> ResponseLog:
        """Wait until the reader has all answers or gave up, and return them."""
        self._process.await_success(_LOAD_TIMEOUT_S)
        return ResponseLog.load(self._out_path)
