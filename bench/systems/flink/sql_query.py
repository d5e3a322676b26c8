"""A query in Flink's SQL that asks a gateway for the score of each payment, by `ML_PREDICT`."""

from pyflink.table import StreamTableEnvironment

from anabranch.flink import environment
from bench.harness.messages import ServeCommand
from bench.systems.anabranch_job import config_of
from bench.workloads.events import FRAUD

#: Rows of a task under way, and requests of one row that may wait at a time.
_UNDER_WAY, _REQUESTS_OF_A_ROW = 1000, 64


def run(command: ServeCommand) -> None:
    """Run the query until this process is stopped."""
    tables = StreamTableEnvironment.create(environment(config_of(command), command.flink_url))
    tables.get_config().set("table.exec.async-ml-predict.max-concurrent-operations", str(_UNDER_WAY))
    options = {"provider": "anabranch", "endpoint": command.gateway_url, "model": FRAUD}
    if command.rows_together:
        options |= {"max-rows": str(command.rows_together), "max-requests": str(_REQUESTS_OF_A_ROW)}
    kafka = {
        "connector": "kafka",
        "properties.bootstrap.servers": command.bootstrap_servers,
        "format": "json",
    }
    source = {
        "topic": command.requests_topic,
        "properties.group.id": command.group_id,
        "scan.startup.mode": "earliest-offset",
    }
    for statement in (
        "CREATE TEMPORARY TABLE payments (id STRING, amount DOUBLE, minute_of_day INT, `user` ROW<age INT>) "
        + _with(kafka | source),
        "CREATE TEMPORARY TABLE scored (id STRING, score FLOAT) " + _with(kafka | {"topic": command.responses_topic}),
        "CREATE TEMPORARY MODEL fraud INPUT (a FLOAT, b FLOAT, c FLOAT) OUTPUT (fair FLOAT, fraud FLOAT) "
        + _with(options),
        "CREATE TEMPORARY VIEW given AS SELECT id, CAST(amount AS FLOAT) AS a, CAST(`user`.age AS FLOAT) AS b, "
        "CAST(minute_of_day AS FLOAT) AS c FROM payments",
    ):
        tables.execute_sql(statement)
    tables.execute_sql(
        "INSERT INTO scored SELECT id, fraud AS score FROM ML_PREDICT(TABLE given, MODEL fraud, DESCRIPTOR(a, b, c))"
    ).wait()


def _with(options: dict[str, str]) -> str:
    return "WITH (" + ", ".join(f"'{key}' = '{value}'" for key, value in options.items()) + ")"
