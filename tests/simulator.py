"""A job without Flink, with a scheduler that a seed decides.

    frames --> [ TaskLoop ] x tasks -- answers, dead letters
                  |   |
           queued +   +--> flying (any order, doubled, lost) --> [ InferenceTask ] --> flying --> [ Aggregator ]
                                                  +--> [ Stage ] --> flying --> [ Stage ] --^

Until each second crash credits bound the exchange: tickets return in any order, doubled, lost, and after a crash.

It drives the classes that Flink drives. Batches are neither doubled nor lost, as in Flink. `State` is the data that
Flink keeps, with the records in the exchange; everything else is lost in a crash. `simulate(seed)` repeats a run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.inference_task import InferenceTask, RanApart
from anabranch.operators.core.execution.stage import Stage
from anabranch.operators.core.merging.aggregator import Aggregator, WindowUpdate
from anabranch.operators.core.outputs import Answer, DeadLetterRecord, Offload, Output, Shard, Unit, WindowPart
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.operators.core.scheduling.credits import Credits
from anabranch.operators.core.scheduling.key_groups import task_key
from anabranch.operators.core.scheduling.load_balancer import LaneBalancers, OtherTasks
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.split_request import Readers
from anabranch.operators.core.scheduling.task_loop import Action, Settlement, TaskLoop
from anabranch.operators.core.transport.ticket import Ticket, decode_return, has_ticket, open_ticket
from anabranch.operators.core.transport.ticket_book import TicketBook
from anabranch.schemas.frames import write_requests
from anabranch.schemas.messages import Encoding
from anabranch.schemas.model import Batching, Catalog, ModelSpec
from anabranch.schemas.records import (
    AnyRecord,
    BatchRecord,
    CarryingSource,
    RecordKind,
    ShardRecord,
    Source,
    UnitRecord,
    decode_record,
    kind_of,
)
from anabranch.schemas.signatures import decode_signature
from anabranch.schemas.tensors import Array
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.carried import Carried
from anabranch.schemas.wire.dead_letters import decode_dead_letter
from tests.core.models import ENSEMBLES, MAX_MESSAGE_BYTES, catalog, session_of
from tests.oracle import Fate, Sent, check_answer

KEYS_BY_GROUP = tuple(range(128))
#: Longer than a run: only lost records are waited for, and no window is forgotten while copies fly.
WINDOW_TIMEOUT_MS, REMEMBER_MS = 100_000, 1_000_000
#: Room for a few requests, so that tasks are full at times.
MAX_WAITING_BYTES, FEW_WAITING_BYTES = 3_000, 500
NO_LIMIT_MS, BACKLOG_LIMIT_MS = 1e9, 2.0
LONGEST_RUN_MS = 1.0
#: With these, every task with two batches is late, and every batch is worth its transfer.
COSTS = (Measurement(1, 3.0), Measurement(8, 20.0))
BACKLOG_MS = 0.0
#: Time after which a ticket is lost.
LEASE_MS = 50.0
#: More than any run needs after its last request.
MOST_STEPS = 5_000


Flying = TypeVar("Flying", bound=Shard | Unit | Offload)


@dataclass(frozen=True)
class Faults:
    """Probability of each fault, per step or per record."""

    double: float = 0.1
    lose: float = 0.05
    crash: float = 0.1
    rescale: bool = True


@dataclass
class State:
    """Data that survives a crash."""

    offset: int = 0
    waiting: dict[int, dict[int, bytes]] = field(default_factory=dict)
    queue_timers: set[tuple[int, int]] = field(default_factory=set)
    flying: list[Shard | Unit | Offload | WindowPart] = field(default_factory=list)
    windows: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, list[bytes]] = field(default_factory=dict)
    window_timers: dict[str, int] = field(default_factory=dict)
    arrived: dict[str, set[int]] = field(default_factory=dict)  # rows at each window, -1 for its OPENING
    forgotten: set[str] = field(default_factory=set)


class Task:
    """One task: a `TaskLoop` and an `InferenceTask`, with simulated state and time."""

    def __init__(self, job: "Simulation", task: int, tasks: int) -> None:
        self._job = job
        self.key = task_key(task, tasks, KEYS_BY_GROUP)
        self._current_key = self.key
        self._is_full = False
        self._admission = Admission(job.catalog, MAX_MESSAGE_BYTES, 5, job.response_writer.defects)
        self.inference = InferenceTask(job.catalog, job.session_of, job.response_writer, task)
        self.desk = Desk(job, task, tasks) if job.has_credits else None
        others = None if self.desk is None else OtherTasks(self.desk.exchange, task)
        self._loop = TaskLoop(
            self.key,
            self._new_pipeline(),
            lambda: job.state.waiting.get(self._current_key, {}).items(),
            self,
            lambda: 0.0,
            lambda: job.now_ms,
            job.policy,
            LaneBalancers(job.policy, tasks, others) if job.offloads else None,
            self.desk,
        )
        self._call_began_ms = 0.0
        self._last_timer_ms: int | None = None
        self._frames_came = False

    def process(self, frame: bytes) -> Iterator[Output]:
        self._frames_came = True
        yield from self._carry_out(self.key, self._loop.on_frame(frame), is_quiet=False)

    def on_timer(self, key: int, at_ms: int) -> Iterator[Output]:
        is_own = key == self.key
        is_superseded = is_own and self._last_timer_ms not in (None, at_ms)
        is_quiet = is_own and not is_superseded and not self._frames_came
        if is_own and not is_superseded:
            self._last_timer_ms, self._frames_came = None, False
        actions = self._carry_out(key, self._loop.on_timer(key, at_ms), is_quiet=is_quiet)
        if is_superseded:
            assert not list(actions), "a superseded timer works"
            return
        yield from actions

    def _carry_out(self, key: int, actions: Iterator[Action], *, is_quiet: bool) -> Iterator[Output]:
        """`ServeFunction._carry_out`, on simulated state."""
        self._current_key, self._call_began_ms, state = key, self._job.now_ms, self._job.state
        waiting = state.waiting.setdefault(key, {})
        for action in actions:
            if isinstance(action, Settlement):
                for number in action.departed:
                    waiting.pop(number, None)
                waiting.update(action.arrived)
                if action.wake_at_ms is not None and key != self.key:
                    assert action.wake_at_ms >= int(self._job.now_ms), "no pause for requests"
                    state.queue_timers.add((action.wake_at_ms, key))
                elif action.wake_at_ms is not None:
                    in_past = action.wake_at_ms < int(self._job.now_ms)
                    assert in_past <= is_quiet, "no pause while requests come in"
                    self._last_timer_ms = action.wake_at_ms
                    state.queue_timers.add((action.wake_at_ms, key))
                continue
            yield from action
            if action and isinstance(action[0], Offload):
                self._job.now_ms += self._job.exchange_wait_ms()

    @contextmanager
    def own_batch(self) -> Iterator[None]:
        """Checks that the slice is not over; an offloaded batch may run first."""
        of = self._loop._own if self._current_key == self.key else None
        in_slice = self._job.now_ms - self._call_began_ms < self._job.policy.work_slice_ms
        assert in_slice or self._job.now_ms == self._call_began_ms or (of is not None and of.is_full), "slice is over"
        self._job.now_ms += self._job.lock_wait_ms()
        yield

    @contextmanager
    def idle(self) -> Iterator[None]:
        yield

    def rest(self) -> None:
        """Offloaded batches run anyway."""

    def on_unit(self, unit: Unit) -> Sequence[Unit | WindowPart]:
        """Runs a UNIT in the stage that its tensors call for, like `StageFunction`; its ticket goes on with a UNIT."""
        ticket, unit = opened(unit)
        model = self._job.catalog.find(*unit.model)
        live = {spec.name for spec in decode_signature(UnitRecord.decode(unit.value).signature).inputs}
        index = 0 if "h" not in live else 1 if "label" not in live else 2
        stage = Stage(model, index, self._job.session_of(model.stage(index)), self._job.response_writer.now_ms, task=0)
        outputs = stage.on_unit(unit.value, self._job.now_ms)
        if ticket is None:
            return outputs
        passed_on = [each._replace(value=ticket.encode() + each.value) for each in outputs if isinstance(each, Unit)]
        if not passed_on:
            self._job.give_back(ticket)
        return [*passed_on, *[each for each in outputs if not isinstance(each, Unit)]]

    def on_exchange(self, record: Shard | Offload) -> Iterator[Output]:
        """Runs a SHARD or a BATCH like `InferFunction`."""
        ticket, record = opened(record)
        yield from self.inference.on_exchange(record.value, self._job.now_ms)
        if ticket is not None:
            self._job.give_back(ticket)

    def _new_pipeline(self) -> RequestPipeline:
        desk = self.desk
        return RequestPipeline(
            self._admission,
            Router(
                self._job.catalog,
                self._job.costs_of,
                ShardRecord.encode if desk is None else lambda shard: desk.issue() + shard.encode(),
                pack_unit=lambda model, unit: (
                    (b"" if desk is None else desk.issue(model, rows=unit.rows)) + unit.encode()
                ),
                gate_of=(lambda _: self._job) if desk is None else desk.gate_of,
            ),
            self.inference,
            self._job.response_writer,
            self._job.policy,
            SlowBatches(self._job) if self._job.runs_apart else None,
            BatchRecord.encode if desk is None else lambda batch: desk.issue(None, desk.task) + batch.encode(),
        )


class QuickCredits(Credits):
    """Credits whose tickets are lost after a time that fits a run."""

    def expire(self, now_ms: float) -> int:
        return super().expire(now_ms + self._lease_ms - LEASE_MS)


class Desk:
    """The tickets of one attempt of a task, with simulated datagrams."""

    def __init__(self, job: "Simulation", task: int, tasks: int) -> None:
        self._job = job
        self.task = task
        self._tasks = tasks
        self._book = TicketBook(job.new_token(), bytes(4), 1)
        self.exchange = QuickCredits(tasks, tasks, task)
        self._credits = [self.exchange]
        self._book.add(self.exchange)
        self._targets: dict[str, int] = {}  # by model
        self._expected: list[set[int]] = [set()]

    def gate_of(self, model: ModelSpec) -> Readers:
        return self._credits[self._target_of(model)]

    def issue(self, model: ModelSpec | None = None, avoid: int = -1, rows: int = 1) -> bytes:
        target = 0 if model is None else self._target_of(model)
        encoded = self._book.issue(target, self._job.now_ms, avoid, rows)
        ticket, _ = open_ticket(encoded)
        assert ticket.reader != avoid or self._tasks == 1, "a batch went to its own task"
        self._expected[target].add(ticket.number)
        return encoded

    def _target_of(self, model: ModelSpec) -> int:
        if not model.stages:
            return 0
        if model.name not in self._targets:
            self._credits.append(QuickCredits(self._tasks, self._tasks, self.task, 3 * self._tasks))
            self._targets[model.name] = self._book.add(self._credits[-1])
            self._expected.append(set())
        return self._targets[model.name]

    def collect(self) -> bool:
        came = False
        for datagram in self._job.arriving():
            if self._book.take_back(datagram, self._job.now_ms):
                back, came = decode_return(datagram), True
                if back.token == self._book._token:
                    self._expected[back.target].discard(back.number)
                    self._job.tickets_back += 1
        for credit, expected in zip(self._credits, self._expected, strict=True):
            assert credit._under_way.keys() == expected, "tickets that are expected back"
        self._book.expire(self._job.now_ms)
        for credit, expected in zip(self._credits, self._expected, strict=True):
            self._job.tickets_lost += len(expected) - credit.under_way
            expected.intersection_update(credit._under_way)
            assert min(credit._at_reader) >= 0
            assert sum(credit._at_reader) == credit.under_way, "records at each reader"
        return came

    def wait(self, timeout_ms: float) -> bool:
        self._job.now_ms += timeout_ms
        waits_on = self.collect() or self._job.is_patient()
        self._job.passed += not waits_on
        return waits_on


def opened(record: Flying) -> tuple[Ticket | None, Flying]:
    """Takes the ticket off a record, if it has one."""
    if not has_ticket(record.value):
        return None, record
    ticket, value = open_ticket(record.value)
    return ticket, record._replace(value=bytes(value))  # type: ignore[return-value]


class SlowBatches:
    """Slow batches beside a task, which end at random, and are lost in a crash."""

    def __init__(self, job: "Simulation") -> None:
        self._job = job
        self._under_way: list[RanApart] = []

    @property
    def has_room(self) -> bool:
        return not self._under_way and self._job.has_room

    def start(self, run: Callable[[], RanApart]) -> None:
        assert not self._under_way, "two slow batches at once"
        self._job.ran_apart += 1
        self._under_way.append(run())

    def take(self) -> RanApart | None:
        return self._under_way.pop() if self._under_way and self._job.ends() else None

    def wait(self, timeout_ms: float) -> None:
        self._job.now_ms += timeout_ms


class SlowSession:
    """A session of `tests.core.models` whose runs take simulated time."""

    def __init__(self, job: "Simulation", model: ModelSpec) -> None:
        self._job = job
        self._model = model
        self._session = session_of(model)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        began_ms, arrays = self._job.now_ms, list(inputs.values())
        self._job.run_takes()
        rows = len(arrays[0]) if self._model.batchable else 1
        elements = sum(array.size for array in arrays)
        if not self._job.offloads:
            self._job.costs_of(self._model).observe(rows, self._job.now_ms - began_ms, elements // (rows or 1))
        return self._session.run(outputs, inputs)


class Simulation:
    """One run.

    Args:
        sent: Records of the requests topic.
        served: Models of `tests.core.models`.
    """

    def __init__(
        self,
        sent: Sequence[Sent],
        served: Catalog,
        seed: int,
        faults: Faults,
        credits: bool | None = None,  # noqa: A002
    ) -> None:
        self.catalog = served
        self.sent = sent
        self._random = Random(seed)
        self.refuses = self._random.random() < 0.3
        self.offloads = self._random.random() < 0.7
        self.crowds = self._random.random() < 0.5
        self.runs_apart = self._random.random() < 0.5
        self._network = Random(~seed)  # tickets
        self._runs = 0
        self._credits = credits
        self.has_credits = False
        self._returning: list[bytes] = []
        self.tickets_back = self.tickets_lost = self.passed = 0
        self.policy = SchedulingPolicy(
            work_slice_ms=self._random.choice((0.0, 0.2, 1.0, 10.0)),
            overload="refuse" if self.refuses else "wait",
            max_backlog_ms=self._random.choice((NO_LIMIT_MS, BACKLOG_LIMIT_MS)),
            max_waiting_bytes=FEW_WAITING_BYTES if self.refuses else MAX_WAITING_BYTES,
            offload_backlog_ms=BACKLOG_MS,
            slow_batch_ms=self._random.choice((0.0, 0.0, 5.0)),
            window_timeout_ms=WINDOW_TIMEOUT_MS,
            remember_ms=REMEMBER_MS,
        )
        gives_up_ms = 0.0 if self.offloads else LONGEST_RUN_MS  # costs are learned from runs
        self.offloaded = self.ran_apart = 0  # batches that were run
        self.fates = {each.request_id: Fate(may_be_refused=self.refuses, gives_up_ms=gives_up_ms) for each in sent}
        self.now_ms = 0.0
        self.state = State()
        self.visible: list[tuple[float, Answer | DeadLetterRecord]] = []  # by a read_committed reader
        self.seen: list[tuple[float, Answer | DeadLetterRecord]] = []  # by a read_uncommitted reader
        self.crashes = 0
        self.restored = self.restored_begun = 0  # queued requests in a crash
        self._faults = faults
        self.response_writer = ResponseWriter("requests", MAX_MESSAGE_BYTES, lambda: self.now_ms)
        self._checkpoint = (deepcopy(self.state), 0)
        self._start(tasks=self._random.randint(1, 4))

    def run(self) -> None:
        """Runs until everything is answered and forgotten."""
        while self.state.offset < len(self.sent) or self._random.random() < 0.9:
            self._step()
        self._faults = Faults(0, 0, 0)
        steps = 0
        while self._has_work() or self.state.queue_timers or self.state.window_timers:
            steps += 1
            assert steps < MOST_STEPS, "the job comes to no rest"
            self._step()
            if not self._has_work():  # idle until the next timer
                timers = [*[at_ms for at_ms, _ in self.state.queue_timers], *self.state.window_timers.values()]
                self.now_ms = max(self.now_ms, min(timers, default=0))

    #: Unknown: see `Readers`.
    row_ms = 0.0

    @property
    def has_room(self) -> bool:
        """Tells whether the readers in other tasks take another record."""
        return not self.crowds or self._random.random() < 0.5

    def new_token(self) -> bytes:
        """Name of another attempt of a task."""
        return self._network.randbytes(8)

    def give_back(self, ticket: Ticket) -> None:
        """Sends a ticket back, which may be lost or doubled."""
        if self._network.random() >= self._faults.lose:
            self._returning += [ticket.encode_return()] * (1 + (self._network.random() < self._faults.double))

    def arriving(self) -> Iterator[bytes]:
        """Some of the tickets on their way: each desk gets all of them, as if all had one port."""
        for datagram in list(self._returning):
            if self._network.random() < 0.5:
                yield datagram
            if self._network.random() < 0.2:
                self._returning.remove(datagram)

    def is_patient(self) -> bool:
        """Tells whether a full task waits on for tickets."""
        return self._network.random() < 0.5

    def ends(self) -> bool:
        """Tells whether a slow batch has ended."""
        return self._random.random() < 0.5

    def exchange_wait_ms(self) -> float:
        """Time for which the exchange blocks a task after an offloaded batch."""
        return self._random.choice((0.0, 0.0, 100.0))

    def lock_wait_ms(self) -> float:
        """Time for which an offloaded batch delays an own one."""
        return self._random.choice((0.0, 0.0, 0.0, 0.3))

    def session_of(self, model: ModelSpec) -> "SlowSession":
        """A session that takes simulated time."""
        return SlowSession(self, model)

    def run_takes(self) -> None:
        """Advances the clock by the time of one batch."""
        self.now_ms += self._random.choice((0.0, 0.0, 0.3, LONGEST_RUN_MS))

    # ---- the scheduler

    def _step(self) -> None:
        chance = self._random.random()
        if chance < self._faults.crash:
            self._crash()
        elif chance < 0.2:
            self._checkpoint = (deepcopy(self.state), len(self.visible))
        elif chance < 0.35:
            self.now_ms += self._random.choice((0.3, 1.0, 4.0))
        else:
            self._random.choice((self._read, self._fly, self._fire))()

    def _has_work(self) -> bool:
        return self.state.offset < len(self.sent) or bool(self.state.flying)

    def _read(self) -> None:
        if self.state.offset == len(self.sent):
            return
        task = self._random.choice(self._tasks)
        frame = []
        for request in self.sent[self.state.offset :][: self._random.choice((1, 2, 4, 8))]:
            self.now_ms = max(self.now_ms, request.timestamp_ms)
            frame.append((request.encode(), source_of(request, self.state.offset)))
            self.state.offset += 1
        self._take(task.process(write_requests(frame)))

    def _fly(self) -> None:
        if not self.state.flying:
            return
        record = self.state.flying.pop(self._random.randrange(len(self.state.flying)))
        if isinstance(record, Offload):
            self.offloaded += 1
            self._take(self._reader_of(record).on_exchange(record))
            return
        if isinstance(record, WindowPart) and record.key in self.state.forgotten:
            copied = _numbers_in(record) <= self.state.arrived[record.key]
            assert copied, "a window was forgotten before all rows came"
            return
        if self._random.random() < self._faults.double:
            self.state.flying.append(record)
        is_opening = isinstance(record, WindowPart) and kind_of(record.value) is RecordKind.OPENING
        if not is_opening and self._random.random() < self._faults.lose:
            bare = record if isinstance(record, WindowPart) else opened(record)[1]
            for name, first_row, rows in _rows_in(decode_record(bare.value)):
                self.fates[name].lost |= set(range(first_row, first_row + rows))
        elif isinstance(record, Unit):
            self.state.flying += self._reader_of(record).on_unit(record)
        elif isinstance(record, Shard):
            self._take(self._reader_of(record).on_exchange(record))
        else:
            snapshot = self.state.windows.get(record.key)
            self.state.arrived.setdefault(record.key, set()).update(_numbers_in(record))
            update = self._aggregator.on_record(record.value, snapshot, self._kept_by(record.key))
            self._apply(record.key, update)

    def _reader_of(self, record: Shard | Unit | Offload) -> Task:
        """The task that a ticket names, as in `ReaderPartitioner.java`, or any."""
        task = self._random.choice(self._tasks)
        return self._tasks[open_ticket(record.value)[0].reader % len(self._tasks)] if has_ticket(record.value) else task

    def _fire(self) -> None:
        due = [timer for timer in self.state.queue_timers if timer[0] <= self.now_ms]
        windows = [(at_ms, key) for key, at_ms in self.state.window_timers.items() if at_ms <= self.now_ms]
        if due:
            self.state.queue_timers.remove(timer := min(due))
            owner = next((task for task in self._tasks if task.key == timer[1]), self._tasks[0])
            self._take(owner.on_timer(timer[1], timer[0]))
        elif windows:
            at_ms, key = min(windows)
            del self.state.window_timers[key]
            update = self._aggregator.on_timer(at_ms, self.state.windows.get(key), self._kept_by(key))
            self._apply(key, update)

    def _crash(self) -> None:
        self.crashes += 1
        state, visible = self._checkpoint
        self.state = deepcopy(state)
        held = [number for waiting in state.waiting.values() for number in waiting]
        self.restored += sum(number >= 0 for number in held)
        self.restored_begun += sum(number < 0 for number in held)
        del self.visible[visible:]
        self.now_ms += self._random.choice((0.0, 1.0, 30.0))
        self._start(self._random.randint(1, 4) if self._faults.rescale else len(self._tasks))

    def costs_of(self, model: ModelSpec) -> BatchCostModel:
        """Costs that a crash forgets; measured if batches are offloaded."""
        return self._costs.setdefault(model.name, BatchCostModel(COSTS if self.offloads else (), model.fixed_rows))

    def _start(self, tasks: int) -> None:
        self._costs: dict[str, BatchCostModel] = {}  # by model
        self._runs += 1
        # A restart may change the setting, and finds records with and without tickets.
        self.has_credits = self._network.random() < 0.5 if self._credits is None else self._credits
        self._tasks = [Task(self, task, tasks) for task in range(tasks)]
        self._aggregator = Aggregator(
            self.response_writer, self.policy, lambda: 0.0, lambda: self.now_ms, run=self._runs
        )

    # ---- outputs and windows

    def _take(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            if isinstance(output, Answer | DeadLetterRecord):
                self._emit(output)
            else:
                self.state.flying.append(output)

    def _emit(self, output: Answer | DeadLetterRecord) -> None:
        self.visible.append((self.now_ms, output))
        self.seen.append((self.now_ms, output))

    def _apply(self, key: str, update: WindowUpdate) -> None:
        """`AggregateFunction._carry_out`, on simulated state."""
        state = self.state
        if update.clears_kept:
            state.kept.pop(key, None)
        if update.keep is not None:
            state.kept.setdefault(key, []).append(update.keep)
        if update.forgets:
            state.windows.pop(key, None)
            state.forgotten.add(key)
        elif update.snapshot is not None:
            state.windows[key] = update.snapshot
        if update.cancel_at_ms is not None:
            assert state.window_timers.pop(key) == update.cancel_at_ms, "another timer than that of the window"
        if update.wake_at_ms is not None:
            assert key not in state.window_timers, "a second timer for a window"
            state.window_timers[key] = update.wake_at_ms
        assert (key in state.windows) == (key in state.window_timers), "each window has one timer"
        for output in update.outputs:
            self._emit(output)
        assert not update.outputs or key not in state.kept, "an answered window keeps records"

    def _kept_by(self, key: str) -> Callable[[], list[bytes]]:
        return lambda: self.state.kept.get(key, [])


def source_of(request: Sent, offset: int) -> Source:
    """Every second request carries a header and a reply partition."""
    if offset % 2:
        return Source(0, offset, request.timestamp_ms)
    return CarryingSource(0, offset, request.timestamp_ms, carried_by(request.request_id))


def carried_by(request_id: str) -> bytes:
    """The carried fields of a request that has some."""
    return Carried(partition=3, headers=(("traceparent", request_id.encode()),)).encode()


def _rows_in(record: AnyRecord) -> list[tuple[str, int, int]]:
    """Id, first row and rows of each request in a record; members of an ensemble count on."""
    assert not isinstance(record, BatchRecord)
    segments = record.segments if isinstance(record, UnitRecord) else (record.segment,)
    return [(each.id, each.member * each.total_rows + each.first_row, each.rows) for each in segments]


def _numbers_in(part: WindowPart) -> set[int]:
    """Row numbers of a PARTIAL or FAILURE, -1 of an OPENING."""
    if kind_of(part.value) is RecordKind.OPENING:
        return {-1}
    return {row for _, first, rows in _rows_in(decode_record(part.value)) for row in range(first, first + rows)}


def check(job: Simulation) -> None:
    """Checks the guarantees of a run that has ended.

    Raises:
        AssertionError: A guarantee was broken.
    """
    left = job.state
    assert not any(left.waiting.values()), "requests still wait"
    assert not left.windows and not left.kept, "windows were not forgotten"  # noqa: PT018
    _check_answers(job, job.visible, most=1)
    _check_answers(job, job.seen, most=1 + job.crashes)


def _check_answers(job: Simulation, outputs: Sequence[tuple[float, Answer | DeadLetterRecord]], most: int) -> None:
    answers: dict[str, int] = dict.fromkeys(job.fates, 0)
    failures, dead_letters = dict(answers), dict(answers)
    by_id = {request.request_id: request for request in job.sent}
    offsets = {request.request_id: offset for offset, request in enumerate(job.sent)}
    for at_ms, output in outputs:
        name = output.key.decode()
        assert output.carried == (b"" if offsets[name] % 2 else carried_by(name)), "headers are lost"
        if isinstance(output, DeadLetterRecord):
            dead_letters[decode_dead_letter(output.value).id] += 1
            continue
        answer = codec.decode_response(output.value)
        assert output.key == answer.id.encode()
        assert codec.encoding_of(output.value) is by_id[answer.id].encoding
        check_answer(by_id[answer.id], answer, job.fates[answer.id], at_ms)
        assert job.fates[answer.id].lost or at_ms < WINDOW_TIMEOUT_MS, "waited for rows that had arrived"
        answers[answer.id] += 1
        failures[answer.id] += hasattr(answer, "code") or "error_code" in answer.parameters
    assert all(1 <= count <= most for count in answers.values()), f"answers for each request: {answers}"
    assert dead_letters == failures, "dead letters and failures differ"


def some_requests(random: Random, count: int) -> list[Sent]:
    """Requests of every kind, drawn at random."""
    return [
        Sent(
            request_id=f"{number}",
            model=random.choice(
                ("rows", "rows", "pairs", "pairs", "whole", "cut", "cut", "sums", "long", "long", *ENSEMBLES)
            ),
            values=tuple(
                random.choice((-1.0, -1.0, -2.0, -3.0)) if random.random() < 0.03 else float(1000 * number + row)
                for row in range(2 * random.choice((1, 1, 1, 2, 3, 5, 9)))
            ),
            timestamp_ms=number,
            encoding=random.choice((Encoding.PROTOBUF, Encoding.PROTOBUF, Encoding.JSON)),
            priority=random.choice((0, 0, 1, 9)),
            partial=random.random() < 0.4,
            timeout_ms=random.choice((None, None, None, None, 5, 60)),
        )
        for number in range(count)
    ]


def some_batching(random: Random) -> Batching:
    """A model's batching, drawn at random."""
    return Batching(
        shard_rows=random.choice((1, 2, 4, 5)),
        max_rows=random.choice((1, 4, 8)),
        max_delay_ms=random.choice((0.0, 0.0, 2.0, 20.0)),
    )


def simulate(
    seed: int,
    count: int = 20,
    faults: Faults | None = None,
    credits: bool | None = None,  # noqa: A002
) -> Simulation:
    """Runs one seed to its end and checks it; a failure names the seed."""
    random = Random(seed)
    models = ("rows", "pairs", "whole", "cut", "sums", "long", "less", "more")
    served = catalog(by_model={model: some_batching(random) for model in models}, ensembles=True)
    job = Simulation(some_requests(random, count), served, seed, faults or Faults(), credits)
    try:
        job.run()
        check(job)
    except Exception as error:
        error.add_note(f"to repeat: tests.simulator.simulate({seed}, {count}, {faults})")
        raise
    return job
