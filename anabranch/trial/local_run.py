"""One task of the job in this process, with the classes that Flink drives.

frames --> [ TaskLoop ] --> answers, dead letters
               |  ^
  shards, units, parts: run at once
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from time import time

import msgspec

from anabranch.flink_job.config import Config
from anabranch.operators.backends.base import Backend, Session
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.execution.stage import Stage
from anabranch.operators.core.execution.step import Step
from anabranch.operators.core.flows.event_admission import EventAdmission
from anabranch.operators.core.flows.flow_spec import FlowSpec
from anabranch.operators.core.flows.flows import Flows
from anabranch.operators.core.flows.formats.registered_schemas import SchemaRegistry
from anabranch.operators.core.merging.aggregator import Aggregator, WindowUpdate
from anabranch.operators.core.outputs import Answer, DeadLetterRecord, Output, Shard, Unit, WindowPart
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import Action, TaskLoop
from anabranch.operators.sessions.step_functions import load_function
from anabranch.schemas.frames import write_requests
from anabranch.schemas.limits import REQUEST_FRAME_RECORDS
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.records import CarryingSource, Source
from anabranch.schemas.tensors import Buffer
from anabranch.schemas.wire.carried import EVENT, PARTITION_BITS, Carried, flow_number


def _now_ms() -> float:
    return time() * 1000


class LocalRun:
    """Serves records with one task; deadlines of flows are not applied.

    Raises:
        ModelLoadFailed: A model or a function of a flow cannot be loaded.
    """

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        flows: Iterable[FlowSpec],
        backend: Backend,
        registry: SchemaRegistry | None = None,
    ) -> None:
        self._catalog = catalog
        self._backend = backend
        self._sessions: dict[tuple[str, str], Session] = {}
        self._stages: dict[tuple[str, str], list[Stage]] = {}
        served = [
            (msgspec.structs.replace(spec, deadline_ms=0), catalog.find(spec.model_name, spec.model_version))
            for spec in flows
        ]
        self._flows = Flows(served, registry=registry).with_functions(load_function)
        kafka = config.kafka
        self._writer = writer = ResponseWriter(
            kafka.requests_topic,
            kafka.response_limit_bytes,
            _now_ms,
            max_original_bytes=kafka.original_limit_bytes,
            flows=self._flows,
        )
        policy = config.scheduling
        admission = EventAdmission(
            catalog, kafka.max_message_bytes, policy.default_priority, writer.defects, flows=self._flows
        )
        router = Router(catalog, lambda _: BatchCostModel())
        self._inference = InferenceTask(catalog, self._session_of, writer, 0)
        self._pipeline = RequestPipeline(admission, router, self._inference, writer, policy)
        self._aggregator = Aggregator(writer, policy, lambda: 0.0, _now_ms, run=1)
        self._windows: dict[str, bytes] = {}
        self._kept: dict[str, list[bytes]] = {}
        self._loop = TaskLoop(0, self._pipeline, lambda: (), self, lambda: 0.0, _now_ms, policy)

    def load(self, model: ModelSpec) -> None:
        """Load a model, its members and its stages, which are loaded on first use otherwise; raise ModelLoadFailed."""
        members = () if model.ensemble is None else model.ensemble.members
        for member in members:
            self.load(self._catalog.find(*member))
        if model.stages:
            self._stages_of(model)
        elif not members:
            self._session_of(model)

    def serve(self, records: Iterable[tuple[Buffer | None, Source]]) -> Iterator[Answer | DeadLetterRecord]:
        """Serve records, and yield what the job writes."""
        rest = iter(records)
        while frame := list(islice(rest, REQUEST_FRAME_RECORDS)):
            yield from self._carry_out(self._loop.on_frame(write_requests(frame)))
        yield from self._carry_out(self._loop.on_end(0))

    def _carry_out(self, actions: Iterator[Action]) -> Iterator[Answer | DeadLetterRecord]:
        for action in actions:
            if isinstance(action, list):
                for output in action:
                    yield from self._take(output)

    def _take(self, output: Output) -> Iterator[Answer | DeadLetterRecord]:
        if isinstance(output, Answer | DeadLetterRecord):
            yield output
        elif isinstance(output, WindowPart):
            yield from self._merge(output)
        elif isinstance(output, Unit):
            for part in self._run_stages(output):
                yield from self._merge(part)
        elif isinstance(output, Shard):
            for done in self._inference.on_exchange(output.value, _now_ms()):
                yield from self._take(done)

    def _run_stages(self, unit: Unit) -> Iterator[WindowPart]:
        units = [unit]
        for stage in self._stages_of(self._catalog.find(*unit.model)):
            outputs = [output for each in units for output in stage.on_unit(each.value, _now_ms())]
            units = [output for output in outputs if isinstance(output, Unit)]
            yield from (output for output in outputs if isinstance(output, WindowPart))

    def _merge(self, part: WindowPart) -> Iterator[Answer | DeadLetterRecord]:
        key = part.key
        kept = self._kept.get(key, [])
        update: WindowUpdate = self._aggregator.on_record(part.value, self._windows.get(key), lambda: kept)
        if update.clears_kept:
            self._kept.pop(key, None)
        if update.keep is not None:
            self._kept.setdefault(key, []).append(bytes(update.keep))
        if update.forgets:
            self._windows.pop(key, None)
        elif update.snapshot is not None:
            self._windows[key] = update.snapshot
        yield from update.outputs

    def _session_of(self, model: ModelSpec) -> Session:
        key = (model.path, model.sha256)
        if key not in self._sessions:
            self._sessions[key] = self._backend.load(model)
        return self._sessions[key]

    def _stages_of(self, model: ModelSpec) -> list[Stage]:
        key = (model.name, model.version)
        if key not in self._stages:
            self._stages[key] = [self._stage(model, index) for index in range(len(model.stages))]
        return self._stages[key]

    def _stage(self, model: ModelSpec, index: int) -> Stage:
        session = self._session_of(model.stage(index))
        if not model.is_chain:
            return Stage(model, index, session, _now_ms, 0)
        spec = model.stages[index]
        before = None if spec.before is None else load_function(spec.before, spec)
        after = None if spec.after is None else load_function(spec.after, spec)
        return Step(model, index, session, _now_ms, 0, before=before, after=after)

    def own_batch(self) -> AbstractContextManager[None]:
        """No other task needs the processor."""
        return nullcontext()

    def idle(self) -> AbstractContextManager[None]:
        """No other task needs the processor."""
        return nullcontext()

    def rest(self) -> None:
        """No other task needs the processor."""


def event_record(
    topic: str, offset: int, event: bytes, key: bytes | None = None, headers: Mapping[str, bytes] | None = None
) -> tuple[bytes, Source]:
    """Return an event as the job reads it from partition 0 of its topic."""
    carried = Carried(topic, EVENT, key, tuple((headers or {}).items())).encode()
    return event, CarryingSource(flow_number(topic) << PARTITION_BITS, offset, round(_now_ms()), carried)
