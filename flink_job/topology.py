"""The job as a picture in code; every arrow below is a line of `build`.

              one chain in every task: no network in it, and frames of many requests on the way
requests --> [ frame ] --> [ serve (keyed): admit > shard > infer ] --> [ unpack ] -- answers --> responses
                              |   |
                              |   +-- openings --+
                              +-- shards         v
                                    |   key_by(request) --> [ aggregate ] --> responses
                                    v            ^
                                rebalance --> [ infer ]

serve and aggregate -- dead letters --> errors
"""

from uuid import uuid4

from pyflink.common import Types
from pyflink.datastream import StreamExecutionEnvironment

from flink_job import java
from flink_job.config import Config, shares_memory
from flink_job.kafka import read_requests, write
from flink_job.keyed import VALUE_TYPE, exchange_by_key, keep_by_key, keys_by_group
from operators.aggregate import AggregateFunction
from operators.backends.base import Backend
from operators.core.answering import Answering
from operators.core.batching import Order
from operators.core.exchange import Options
from operators.infer import InferFunction
from operators.rows import KEYED_BYTES, PARTS
from operators.serve import LETTERS_TAG, PARTS_TAG, SHARDS_TAG, ServeFunction
from operators.task import now_ms
from schemas.model import Catalog


def build(env: StreamExecutionEnvironment, config: Config, catalog: Catalog, backend: Backend) -> None:
    """Adds the job to an environment; nothing runs yet."""
    kafka, scheduling = config.kafka, config.scheduling
    answering = Answering(kafka.requests_topic, kafka.max_message_bytes, now_ms)
    groups = keys_by_group(config.job.max_parallelism)
    exchange = Options(
        job=uuid4().hex,
        shares_memory=shares_memory(config),
        claim_from_bytes=config.exchange.claim_from_bytes,
        arena_bytes=config.exchange.arena_bytes,
    )

    requests = read_requests(env, config, groups)
    answers = (
        keep_by_key(requests, Types.INT())
        .process(
            ServeFunction(
                catalog,
                backend,
                answering,
                max_message_bytes=kafka.max_message_bytes,
                default_priority=scheduling.default_priority,
                order=Order(scheduling.priority_step_ms, scheduling.no_deadline_ms),
                work_slice_ms=scheduling.work_slice_ms,
                max_waiting_bytes=scheduling.max_waiting_bytes,
                max_backlog_ms=scheduling.max_backlog_ms if scheduling.overload == "refuse" else None,
                keys_by_group=groups,
                exchange=exchange,
            ),
            output_type=VALUE_TYPE,
        )
        .name("serve")
    )
    partials = (
        answers.get_side_output(SHARDS_TAG)
        .rebalance()
        .process(InferFunction(catalog, backend, answering, exchange), output_type=PARTS)
        .name("infer")
    )
    merged = (
        exchange_by_key(answers.get_side_output(PARTS_TAG).union(partials), Types.STRING())
        .process(
            AggregateFunction(answering, scheduling.window_timeout_ms, scheduling.remember_ms, exchange),
            output_type=KEYED_BYTES,
        )
        .name("aggregate")
    )

    write(java.unpack_answers(answers, KEYED_BYTES), config, kafka.responses_topic, "responses")
    write(merged, config, kafka.responses_topic, "merged-responses")
    letters = answers.get_side_output(LETTERS_TAG).union(merged.get_side_output(LETTERS_TAG))
    write(letters, config, kafka.errors_topic, "errors")
