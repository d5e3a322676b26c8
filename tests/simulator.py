"""A job without Flink: the core, wired as the shells of `operators/` wire it, under a scheduler that a seed decides.

    frames --> [ chain ] x tasks -- answers, letters
                  |   |
          waiting +   +--> in flight (any order, doubled, lost) --> [ serving ] --> in flight --> [ window ]
                                                     +--> [ stage ] --> in flight --> [ stage ] --^
                                                                       |
                      batches (neither doubled nor lost: Flink does not)  +-- answers, letters

Everything in `State` is what the shells put into Flink state (and the exchange, as an unaligned checkpoint holds it);
everything else is lost in a crash. Whoever finds a seed that fails runs it again with `simulate(seed)`.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import ceil
from random import Random

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.execution.stage import Stage
from anabranch.operators.core.merging.request_window import Closing, Window, answer_of
from anabranch.operators.core.outputs import Answer, DeadLetterRecord, Offload, Output, Shard, Unit, WindowPart
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.operators.core.scheduling.batch_queue import UrgencyOrder
from anabranch.operators.core.scheduling.key_groups import lane_of
from anabranch.operators.core.scheduling.load_balancer import LoadBalancer
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import TaskLoop
from anabranch.schemas import codec
from anabranch.schemas.dead_letters import decode_letter
from anabranch.schemas.frames import write_requests
from anabranch.schemas.messages import Encoding
from anabranch.schemas.model import Batching, Catalog
from anabranch.schemas.records import Record, RecordKind, Source, decode_segments, decode_signature, kind_of
from tests.core.models import ENSEMBLES, MAX_MESSAGE_BYTES, catalog, session_of
from tests.oracle import Fate, Sent, check_answer

KEYS_BY_GROUP = tuple(range(128))
#: Far longer than a run lasts: only what was lost is ever waited for, and nothing is forgotten while copies fly.
WINDOW_TIMEOUT_MS, REMEMBER_MS = 100_000.0, 1_000_000.0
#: A few requests: now and then a task has too much in hand to read on.
MAX_WAITING_BYTES, FEW_WAITING_BYTES = 3_000, 500
NO_LIMIT_MS = 1e9
#: With these, whatever waits beside a batch is a task too far behind, and every batch is worth its way.
COSTS = (Measurement(1, 3.0), Measurement(8, 20.0))
BACKLOG_MS = 0.0


@dataclass(frozen=True)
class Faults:
    """How likely each fault is, at each step or for each record."""

    double: float = 0.1
    lose: float = 0.05
    crash: float = 0.1
    rescale: bool = True


@dataclass
class State:
    """What survives a crash."""

    offset: int = 0
    waiting: dict[int, dict[int, bytes]] = field(default_factory=dict)
    lane_timers: set[tuple[int, int]] = field(default_factory=set)
    flying: list[Shard | Unit | Offload | WindowPart] = field(default_factory=list)
    windows: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, list[bytes]] = field(default_factory=dict)
    window_timers: set[tuple[int, str]] = field(default_factory=set)


class Task:
    """`anabranch.operators.serve.ServeFunction`, line by line; when a slice of work is over, the seed decides."""

    def __init__(self, job: "Simulation", task: int, tasks: int) -> None:
        self._job = job
        self.lane = lane_of(task, tasks, KEYS_BY_GROUP)
        self._tasks = tasks
        self._mirror: TaskLoop | None = None
        self._wakes_at_ms: int | None = None
        self._admission = Admission(job.catalog, MAX_MESSAGE_BYTES, default_priority=5)
        self.serving = InferenceTask(job.catalog, session_of, job.response_writer, task)

    def process(self, frame: bytes) -> Iterator[Output]:
        mirror = self._mirror
        if mirror is None:
            mirror = self._mirror = self._chain()
            yield from mirror.restore(self._held(self.lane), self._job.now_ms)
        yield from mirror.on_frame(frame, self._job.now_ms)
        yield from self._work(mirror)
        self._save(self.lane, mirror)
        self._wake(mirror)

    def on_unit(self, unit: Unit) -> Sequence[Unit | WindowPart]:
        """`anabranch.operators.stage.StageFunction`: the next of the stages that have to see what travels."""
        model = self._job.catalog.find(*unit.model)
        live = {spec.name for spec in decode_signature(Record.decode(unit.value).signature).inputs}
        index = 0 if "h" not in live else 1 if "label" not in live else 2
        stage = Stage(model, index, session_of(model.stage(index)), self._job.response_writer.now_ms, task=0)
        return stage.on_unit(unit.value, self._job.now_ms)

    def on_timer(self, lane: int) -> Iterator[Output]:
        own = lane == self.lane
        mirror = self._mirror if own else None
        if mirror is None:
            mirror = self._chain()
            yield from mirror.restore(self._held(lane), self._job.now_ms)
            if own:
                self._mirror = mirror
        if own:
            self._wakes_at_ms = None
            yield from self._work(mirror)
            self._save(lane, mirror)
            self._wake(mirror)
        else:
            while (outputs := mirror.next(self._job.now_ms, all_is_due=True)) is not None:
                yield from outputs
            self._save(lane, mirror)

    def _work(self, mirror: TaskLoop) -> Iterator[Output]:
        while (outputs := mirror.next(self._job.now_ms)) is not None:
            yield from outputs
            if outputs and isinstance(outputs[0], Offload):
                mirror.note_wait(self._job.exchange_wait_ms(), self._job.now_ms)
            if self._job.slice_is_over() and not mirror.is_full:
                return

    def _chain(self) -> TaskLoop:
        return TaskLoop(
            self._admission,
            Router(self._job.catalog, lambda _: BatchCostModel(COSTS if self._job.offloads else ()), UrgencyOrder()),
            self.serving,
            self._job.response_writer,
            max_backlog_ms=NO_LIMIT_MS if self._job.refuses else None,
            max_waiting_bytes=FEW_WAITING_BYTES if self._job.refuses else MAX_WAITING_BYTES,
            offloading=LoadBalancer(self._tasks, BACKLOG_MS) if self._job.offloads else None,
        )

    def _held(self, lane: int) -> Iterable[tuple[int, bytes]]:
        return self._job.state.waiting.get(lane, {}).items()

    def _save(self, lane: int, mirror: TaskLoop) -> None:
        changes = mirror.settle()
        waiting = self._job.state.waiting.setdefault(lane, {})
        for number in changes.departed:
            waiting.pop(number, None)
        for number, frame in changes.arrived:
            waiting[number] = frame

    def _wake(self, mirror: TaskLoop) -> None:
        due_ms = mirror.next_deadline()
        if due_ms is None:
            return
        wake_at_ms = max(ceil(due_ms), int(self._job.now_ms))
        if self._wakes_at_ms is None or wake_at_ms < self._wakes_at_ms:
            self._wakes_at_ms = wake_at_ms
            self._job.state.lane_timers.add((wake_at_ms, self.lane))


class Simulation:
    """One run.

    Args:
        sent: What stands on the requests topic.
        served: The models of `tests.core.models`.
    """

    def __init__(self, sent: Sequence[Sent], served: Catalog, seed: int, faults: Faults) -> None:
        self.catalog = served
        self.sent = sent
        self._random = Random(seed)
        self.refuses = self._random.random() < 0.3
        self.offloads = self._random.random() < 0.7
        self.offloaded = 0  # batches that were run
        self.fates = {request.request_id: Fate(may_be_refused=self.refuses) for request in sent}
        self.now_ms = 0.0
        self.state = State()
        self.visible: list[tuple[float, Answer | DeadLetterRecord]] = []  # to a read_committed reader
        self.seen: list[tuple[float, Answer | DeadLetterRecord]] = []  # to a reader of everything
        self.crashes = 0
        self.restored = 0  # requests that waited through a crash
        self._faults = faults
        self.response_writer = ResponseWriter("requests", MAX_MESSAGE_BYTES, lambda: self.now_ms)
        self._checkpoint = (deepcopy(self.state), 0)
        self._start(tasks=self._random.randint(1, 4))

    def run(self) -> None:
        """Until everything is answered and forgotten."""
        while self.state.offset < len(self.sent) or self._random.random() < 0.9:
            self._step()
        self._faults = Faults(0, 0, 0)
        while self._has_work() or self.state.lane_timers or self.state.window_timers:
            self._step()
            if not self._has_work():  # nothing happens before the next timer
                timers = [*self.state.lane_timers, *self.state.window_timers]
                self.now_ms = max(self.now_ms, min((at_ms for at_ms, _ in timers), default=0))

    def exchange_wait_ms(self) -> float:
        """How long the exchange keeps a task that gives it a batch."""
        return self._random.choice((0.0, 0.0, 100.0))

    def slice_is_over(self) -> bool:
        """Whether a task that has run a batch is to look what else came in; running it took time."""
        self.now_ms += self._random.choice((0.0, 0.0, 0.3, 1.0))
        return self._random.random() < 0.7

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
            frame.append((request.encode(), Source(0, self.state.offset, request.timestamp_ms)))
            self.state.offset += 1
        self._take(task.process(write_requests(frame)))

    def _fly(self) -> None:
        if not self.state.flying:
            return
        record = self.state.flying.pop(self._random.randrange(len(self.state.flying)))
        if isinstance(record, Offload):
            self.offloaded += 1
            self._take(self._random.choice(self._tasks).serving.on_exchange(record.value, self.now_ms))
            return
        if self._random.random() < self._faults.double:
            self.state.flying.append(record)
        if kind_of(record.value) is not RecordKind.OPENING and self._random.random() < self._faults.lose:
            for name, first_row, rows in _rows_in(Record.decode(record.value)):
                self.fates[name].lost |= set(range(first_row, first_row + rows))
        elif isinstance(record, Unit):
            self.state.flying += self._random.choice(self._tasks).on_unit(record)
        elif isinstance(record, Shard):
            self._take(self._random.choice(self._tasks).serving.on_exchange(record.value, self.now_ms))
        else:
            self._window_process(record.key, record.value)

    def _fire(self) -> None:
        due = [timer for timer in self.state.lane_timers if timer[0] <= self.now_ms]
        windows = [timer for timer in self.state.window_timers if timer[0] <= self.now_ms]
        if due:
            self.state.lane_timers.remove(timer := min(due))
            owner = next((task for task in self._tasks if task.lane == timer[1]), self._tasks[0])
            self._take(owner.on_timer(timer[1]))
        elif windows:
            self.state.window_timers.remove(first := min(windows))
            self._window_timer(first[1])

    def _crash(self) -> None:
        self.crashes += 1
        state, visible = self._checkpoint
        self.state = deepcopy(state)
        self.restored += sum(map(len, state.waiting.values()))
        del self.visible[visible:]
        self.now_ms += self._random.choice((0.0, 1.0, 30.0))
        self._start(self._random.randint(1, 4) if self._faults.rescale else len(self._tasks))

    def _start(self, tasks: int) -> None:
        self._tasks = [Task(self, task, tasks) for task in range(tasks)]

    # ---- where outputs go, and `anabranch.operators.aggregate.AggregateFunction`

    def _take(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            if isinstance(output, Answer | DeadLetterRecord):
                self._emit(output)
            else:
                self.state.flying.append(output)

    def _emit(self, output: Answer | DeadLetterRecord) -> None:
        self.visible.append((self.now_ms, output))
        self.seen.append((self.now_ms, output))

    def _window_process(self, key: str, encoded: bytes) -> None:
        window = self._window(key)
        if window.is_closed:
            return
        before_ms = window.next_deadline()
        keep, closing = window.on_record(encoded, self.now_ms)
        if keep:
            self.state.kept.setdefault(key, []).append(encoded)
        self.state.windows[key] = window.snapshot()
        if window.next_deadline() != before_ms:
            self.state.window_timers.add((ceil(window.next_deadline()), key))
        self._close(key, closing)

    def _window_timer(self, key: str) -> None:
        if key not in self.state.windows:
            return
        window = self._window(key)
        if window.is_forgotten(self.now_ms):
            del self.state.windows[key]
            self.state.kept.pop(key, None)
            return
        closing = window.on_timer(self.now_ms)
        if closing is not None:
            self.state.windows[key] = window.snapshot()
            self.state.window_timers.add((ceil(window.next_deadline()), key))
        self._close(key, closing)

    def _window(self, key: str) -> Window:
        window = Window(WINDOW_TIMEOUT_MS, REMEMBER_MS)
        if key in self.state.windows:
            window.restore(self.state.windows[key])
        return window

    def _close(self, key: str, closing: Closing | None) -> None:
        if closing is not None:
            for output in answer_of(closing, self.state.kept.pop(key, []), self.response_writer):
                self._emit(output)


def _rows_in(record: Record) -> list[tuple[str, int, int]]:
    """Id, first row and rows of every request that a record is about."""
    if record.kind is RecordKind.UNIT:
        return [(member.id, member.first_row, member.rows) for member in decode_segments(record.original)]
    return [(record.id, record.first_row, record.rows)]


def check(job: Simulation) -> None:
    """Whether a run that has ended kept every promise.

    Raises:
        AssertionError: It did not.
    """
    left = job.state
    assert not any(left.waiting.values()), "requests still wait"
    assert not left.windows and not left.kept, "windows were not forgotten"  # noqa: PT018
    _check_answers(job, job.visible, most=1)
    _check_answers(job, job.seen, most=1 + job.crashes)


def _check_answers(job: Simulation, outputs: Sequence[tuple[float, Answer | DeadLetterRecord]], most: int) -> None:
    answers: dict[str, int] = dict.fromkeys(job.fates, 0)
    failures, letters = dict(answers), dict(answers)
    by_id = {request.request_id: request for request in job.sent}
    for at_ms, output in outputs:
        if isinstance(output, DeadLetterRecord):
            letters[decode_letter(output.value).id] += 1
            continue
        answer = codec.decode_response(output.value)
        assert output.key == answer.id.encode()
        assert codec.encoding_of(output.value) is by_id[answer.id].encoding
        check_answer(by_id[answer.id], answer, job.fates[answer.id], at_ms)
        assert job.fates[answer.id].lost or at_ms < WINDOW_TIMEOUT_MS, "waited for what was there"
        answers[answer.id] += 1
        failures[answer.id] += hasattr(answer, "code") or "error_code" in answer.parameters
    assert all(1 <= count <= most for count in answers.values()), f"answers for each request: {answers}"
    assert letters == failures, "a letter goes with every failure, and with nothing else"


def some_requests(random: Random, count: int) -> list[Sent]:
    """Requests of every kind, drawn at random."""
    return [
        Sent(
            request_id=f"{number}",
            model=random.choice(("rows", "rows", "pairs", "pairs", "whole", "cut", "cut", *ENSEMBLES)),
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


def simulate(seed: int, count: int = 20, faults: Faults | None = None) -> Simulation:
    """Runs one seed to its end and checks it; a failure names the seed."""
    random = Random(seed)
    models = ("rows", "pairs", "whole", "cut", "less", "more")
    served = catalog(by_model={model: some_batching(random) for model in models}, ensembles=True)
    job = Simulation(some_requests(random, count), served, seed, faults or Faults())
    try:
        job.run()
        check(job)
    except Exception as error:
        error.add_note(f"to see it again: tests.simulator.simulate({seed}, {count}, {faults})")
        raise
    return job
