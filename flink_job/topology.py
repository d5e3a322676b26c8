"""The job as a picture in code; every arrow below is a line of `build`.

             one chain in every task: no network between these, and frames of many requests on the way
requests --> [ admit ] --> [ shard (keyed) ] --> [ infer ] -- answers -------------------------> responses
                                                   |   |
                                                   |   +-- openings --+
                                                   +-- shards         v
                                                         |   key_by(request) --> [ aggregate ] --> responses
                                                         v            ^
                                                     rebalance --> [ infer shard ]

infer and aggregate -- dead letters --> errors       (what admit and shard refuse travels through infer)
"""

from pyflink.common import Types
from pyflink.datastream import StreamExecutionEnvironment

from flink_job import java
from flink_job.config import Config
from flink_job.kafka import read_requests, write
from flink_job.keyed import VALUE_TYPE, exchange_by_key, keep_by_key, keys_by_group
from operators.admit import AdmitFunction
from operators.aggregate import AggregateFunction
from operators.backends.base import Backend
from operators.core.answering import Answering
from operators.infer import (
    KEYED_BYTES,
    LETTERS_TAG,
    PARTS,
    PARTS_TAG,
    SHARDS_TAG,
    InferFunction,
    InferShardFunction,
)
from operators.shard import ShardFunction
from schemas.model import Catalog


def build(env: StreamExecutionEnvironment, config: Config, catalog: Catalog, backend: Backend) -> None:
    """Adds the job to an environment; nothing runs yet."""
    kafka, scheduling = config.kafka, config.scheduling
    answering = Answering(kafka.requests_topic, kafka.max_message_bytes)
    groups = keys_by_group(config.job.max_parallelism)

    requests = read_requests(env, config)
    admitted = requests.process(
        AdmitFunction(catalog, kafka.max_message_bytes, groups),
        output_type=Types.ROW([Types.INT(), VALUE_TYPE]),
    ).name("admit")
    work = (
        keep_by_key(admitted, Types.INT())
        .process(
            ShardFunction(
                catalog,
                scheduling.default_priority,
                scheduling.work_slice_ms,
                scheduling.max_waiting_bytes,
                groups,
            ),
            output_type=VALUE_TYPE,
        )
        .name("shard")
    )
    answers = work.process(InferFunction(catalog, backend, answering), output_type=VALUE_TYPE).name("infer")

    partials = (
        answers.get_side_output(SHARDS_TAG)
        .rebalance()
        .process(InferShardFunction(catalog, backend, answering), output_type=PARTS)
        .name("infer shard")
    )
    merged = (
        exchange_by_key(answers.get_side_output(PARTS_TAG).union(partials), Types.STRING())
        .process(
            AggregateFunction(answering, scheduling.window_timeout_ms, scheduling.remember_ms),
            output_type=KEYED_BYTES,
        )
        .name("aggregate")
    )

    write(java.unpack_answers(answers, KEYED_BYTES), config, kafka.responses_topic, "responses")
    write(merged, config, kafka.responses_topic, "merged-responses")
    letters = answers.get_side_output(LETTERS_TAG).union(merged.get_side_output(LETTERS_TAG))
    write(letters, config, kafka.errors_topic, "errors")
