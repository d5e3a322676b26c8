"""Operators and streams.

              fused in every task
requests --> [ frame ] --> [ serve (keyed): admit > route > infer ] --> [ unpack ] -- answers --> responses
                              |   |   |
                              |   |   +-- openings --+
                              |   +-- shards,        v
                              |       batches   key_by(request) --> [ aggregate ] --------------------> responses
                              |         v            ^    ^
                              |     rebalance --> [ infer ] --> [ unpack ] -- answers to batches -----> responses
                              |                           |
                              +-- units of a model in stages: rebalance --> [ stage 1 ] --> rebalance --> [ stage 2 ]

serve, infer and aggregate -- dead letters --> errors
"""

from typing import NamedTuple
from uuid import uuid4

from pyflink.common import Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment

from anabranch.flink_job import java
from anabranch.flink_job.config import Config, shares_memory
from anabranch.flink_job.flows.registry import registry_of
from anabranch.flink_job.flows.resolution import resolve
from anabranch.flink_job.kafka.connectors import read_requests, write
from anabranch.flink_job.slots import DEFAULT_GROUP, group_of
from anabranch.flink_job.state import operator_ids as ids
from anabranch.flink_job.stream_keying import VALUE_TYPE, exchange_by_key, keep_by_key, keys_by_group, side_output
from anabranch.operators.aggregate import AggregateFunction
from anabranch.operators.backends.base import Backend
from anabranch.operators.core.execution.stage import stage_name
from anabranch.operators.core.flows.flows import Flows
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.infer import InferFunction
from anabranch.operators.runtime.flink_types import BYTES, KAFKA_ROW, PARTS
from anabranch.operators.runtime.side_outputs import LETTERS_TAG, PARTS_TAG, WORK_TAG, units_tag
from anabranch.operators.runtime.task_context import now_ms
from anabranch.operators.serve import ServeFunction
from anabranch.operators.stage import FAILURES_TAG, StageFunction
from anabranch.schemas.model import Catalog, ModelSpec


class ServedStreams(NamedTuple):
    """Streams of frames of answers, of answers, and of dead letters."""

    frames: dict[str, DataStream]
    merged: DataStream
    letters: DataStream


def build(env: StreamExecutionEnvironment, config: Config, catalog: Catalog, backend: Backend) -> None:
    """Add the job to an environment."""
    kafka = config.kafka
    specs = resolve(config.flow, catalog, "the configuration")
    served_flows = [(spec, catalog.find(spec.model_name, spec.model_version)) for spec in specs]
    flows = Flows(served_flows, registry=registry_of(config))
    requests = read_requests(env, config, keys_by_group(config.job.max_parallelism))
    served = serve(requests, config, catalog, backend, flows)
    # A sink after a union would not be fused with its inputs.
    for name, stream in served.frames.items():
        write(java.unpack_answers(stream, KAFKA_ROW, ids.unpack_id(name)), config, kafka.responses_topic, name)
    write(served.merged, config, kafka.responses_topic, ids.AGGREGATE_RESPONSES)
    write(served.letters, config, kafka.errors_topic, ids.ERRORS, replies=False)


def serve(
    requests: DataStream,
    config: Config,
    catalog: Catalog,
    backend: Backend,
    flows: Flows,
    *,
    prefix: str = "",
    is_stored: bool = True,
) -> ServedStreams:
    """Serve a stream of `Row(task key, frame)`.

    Args:
        prefix: Start of the operators' names and identities.
        is_stored: False if no topic has the requests.
    """
    kafka = config.kafka
    response_writer = ResponseWriter(
        kafka.requests_topic,
        kafka.response_limit_bytes,
        now_ms,
        max_original_bytes=kafka.original_limit_bytes,
        repeats_all=not is_stored,
        flows=flows,
    )
    groups = keys_by_group(config.job.max_parallelism)
    exchange = TransportOptions(
        job=uuid4().hex,
        shares_memory=shares_memory(config),
        claim_from_bytes=config.exchange.claim_from_bytes,
        arena_bytes=config.exchange.arena_bytes,
        has_credits=config.exchange.credits == "on",
    )
    tasks = config.job.parallelism
    answers = (
        keep_by_key(requests, Types.INT())
        .process(
            ServeFunction(
                catalog,
                backend,
                response_writer,
                max_message_bytes=kafka.max_message_bytes,
                policy=config.scheduling,
                keys_by_group=groups,
                exchange=exchange,
                reply_topics=(kafka.responses_topic, *kafka.reply_topics),
                flows=flows,
            ),
            output_type=VALUE_TYPE,
        )
        .name(f"{prefix}serve")
        .uid(prefix + ids.SERVE)
        .set_parallelism(tasks)
    )
    exchanged = (
        _to_readers(side_output(answers, WORK_TAG), exchange)
        .process(
            InferFunction(catalog, backend, response_writer, exchange, config.scheduling.slow_batch_ms),
            output_type=VALUE_TYPE,
        )
        .name(f"{prefix}infer")
        .uid(prefix + ids.INFER)
        .set_parallelism(tasks)
    )
    parts = [side_output(answers, PARTS_TAG), side_output(exchanged, PARTS_TAG)]
    for model in catalog.in_stages():
        units = side_output(answers, units_tag((model.name, model.version)))
        parts += _through_stages(units, model, backend, response_writer, exchange, windows=tasks, prefix=prefix)
    merged = (
        exchange_by_key(parts[0].union(*parts[1:]), Types.STRING())
        .process(
            AggregateFunction(response_writer, config.scheduling, exchange),
            output_type=KAFKA_ROW,
        )
        .name(f"{prefix}aggregate")
        .uid(prefix + ids.AGGREGATE)
        .set_parallelism(tasks)
        # Flink's choice differs for inputs of several groups.
        .slot_sharing_group(DEFAULT_GROUP)
    )
    letters = [side_output(each, LETTERS_TAG) for each in (answers, exchanged, merged)]
    frames = {ids.SERVE_RESPONSES: answers, ids.INFER_RESPONSES: exchanged}
    return ServedStreams(frames, merged, letters[0].union(*letters[1:]))


def _to_readers(records: DataStream, exchange: TransportOptions) -> DataStream:
    return java.to_readers(records) if exchange.has_credits else records.rebalance()


def _through_stages(
    units: DataStream,
    model: ModelSpec,
    backend: Backend,
    response_writer: ResponseWriter,
    exchange: TransportOptions,
    *,
    windows: int,
    prefix: str,
) -> list[DataStream]:
    """Add the stages of a model; return their outputs and failures."""
    parts = []
    last = len(model.stages) - 1
    for index, stage in enumerate(model.stages):
        tasks = (
            (units.rebalance() if index else _to_readers(units, exchange))
            .process(
                StageFunction(model, index, backend, response_writer, exchange, windows),
                output_type=PARTS if index == last else BYTES,
            )
            .name(prefix + stage_name(model, index))
            .uid(prefix + ids.stage_id(model, index))
            .set_parallelism(stage.replicas)
            .slot_sharing_group(group_of(model, index))
        )
        parts.append(tasks if index == last else side_output(tasks, FAILURES_TAG))
        units = tasks
    return parts
