"""A PyFlink job of a user with `anabranch.flink.infer` between its source and its sink.

Elements are the events in JSON, as bytes. One kind names the fields, as a flow does; the other one has functions, in
which msgspec leaves the items undecoded.
"""

from typing import Any

import msgspec
from pyflink.common import Types

from anabranch.flink import environment, infer
from anabranch.schemas.limits import KAFKA_FETCH_BYTES, PRODUCE_BATCH_BYTES
from bench.harness.messages import ServeCommand
from bench.systems.anabranch_job import config_of
from bench.systems.flink.naive_map import sink_of, source_of
from bench.workloads.events import FRAUD, PATHS, SCORE


class _User(msgspec.Struct):
    name: str
    age: int
    country: str


class _Payment(msgspec.Struct):
    id: str
    amount: float
    currency: str
    minute_of_day: int
    user: _User
    items: msgspec.Raw
    note: str


class _ScoredPayment(_Payment):
    score: float = 0.0


#: As of our own job's source and sinks, which are no part of `infer`.
_SOURCE = {
    "fetch.max.bytes": str(KAFKA_FETCH_BYTES),
    "receive.buffer.bytes": "-1",
    "source.reader.element.queue.capacity": "8",
}
_SINK = {"max.in.flight.requests.per.connection": "1", "batch.size": str(PRODUCE_BATCH_BYTES)}

_read, _read_to_score = msgspec.json.Decoder(_Payment).decode, msgspec.json.Decoder(_ScoredPayment).decode


def inputs(message: bytes) -> dict[str, Any]:
    """Return the three fields."""
    event = _read(message)
    return {"x": [event.amount, event.user.age, event.minute_of_day]}


def outputs(message: bytes, found: dict[str, Any]) -> bytes:
    """Return the event with its score."""
    event = _read_to_score(message)
    event.score = float(found["y"][1])
    return msgspec.json.encode(event)


def run(command: ServeCommand) -> None:
    """Run the job until this process is stopped."""
    config = config_of(command)
    env = environment(config, command.flink_url)
    env.set_parallelism(command.parallelism)
    names_fields = "fields" in command.kind

    scored = infer(
        source_of(env, command, _SOURCE),
        model=FRAUD,
        repository=command.repository,
        inputs={"x": list(PATHS)} if names_fields else inputs,
        outputs={SCORE: "y[1]"} if names_fields else outputs,
        uid="score",
        parallelism=command.parallelism,
        output_type=Types.PRIMITIVE_ARRAY(Types.BYTE()),
        config=config,
    )
    scored.sink_to(sink_of(command, _SINK))
    env.execute("infer")
