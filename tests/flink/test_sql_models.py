"""`CREATE MODEL ... WITH ('provider' = 'anabranch')`: ML_PREDICT asks a gateway, many rows in a request."""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from pyflink.table import StreamTableEnvironment, TableEnvironment

from anabranch.flink import environment
from anabranch.flink_job.config import Config
from tests.gateway.conftest import Served, gateways, summary

ROWS = 1000
FLINK = {"restart-strategy.type": "none", "table.exec.async-ml-predict.max-concurrent-operations": "500"}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    def same(inputs: Any) -> Any:
        return {"y": next(iter(inputs.values()))}

    def picky(inputs: Any) -> Any:
        if (inputs["x"][:, 0] % 100 == 7).any():
            raise ValueError("seven")
        return same(inputs)

    more = {"whole": "INT64", "small": "UINT8", "truth": "BOOL"}
    summaries = [*(summary(name, datatype) for name, datatype in more.items()), summary("picky", "FP32")]
    with gateways(summaries, {**dict.fromkeys(more, same), "picky": picky}) as start:
        yield start(timeout_s=10.0)


@pytest.fixture(scope="module")
def tables() -> TableEnvironment:
    """Numbers from 0 to 999."""
    tables = StreamTableEnvironment.create(environment(Config().replace(job={"parallelism": 1, "flink": FLINK})))
    tables.execute_sql(
        "CREATE TEMPORARY TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', "
        f"'number-of-rows' = '{ROWS}', 'fields.n.kind' = 'sequence', 'fields.n.start' = '0', "
        f"'fields.n.end' = '{ROWS - 1}')"
    )
    return tables


def create(tables: TableEnvironment, url: str, name: str, columns: str, **options: str) -> None:
    listed = {"provider": "anabranch", "endpoint": url, "model": name, **options}
    texts = ", ".join(f"'{key.replace('_', '-')}' = '{value}'" for key, value in listed.items())
    tables.execute_sql(f"DROP TEMPORARY MODEL IF EXISTS `{name}`")
    tables.execute_sql(f"CREATE TEMPORARY MODEL `{name}` {columns} WITH ({texts})")


def predict(tables: TableEnvironment, name: str, columns: str) -> list[list[Any]]:
    """The rows of all numbers, in order, with other columns for the model."""
    names = ", ".join(part.rsplit(" AS ", 1)[1] for part in columns.split("; "))
    tables.execute_sql("DROP TEMPORARY VIEW IF EXISTS given")
    tables.execute_sql(f"CREATE TEMPORARY VIEW given AS SELECT n, {columns.replace('; ', ', ')} FROM numbers")
    query = f"SELECT * FROM ML_PREDICT(TABLE given, MODEL `{name}`, DESCRIPTOR({names}))"
    with tables.sql_query(query).execute().collect() as results:
        return sorted((list(row) for row in results), key=lambda row: int(row[0]))


def test_predicted_rows_are_those_of_the_model_in_few_requests(tables: TableEnvironment, gateway: Served) -> None:
    create(tables, gateway.url, "same", "INPUT (x ARRAY<FLOAT>) OUTPUT (y ARRAY<FLOAT>)", max_requests="1")
    asked = len(gateway.job.requests)
    found = predict(tables, "same", "ARRAY[CAST(n AS FLOAT), CAST(0.5 AS FLOAT)] AS x")
    assert [row[0] for row in found] == list(range(ROWS))
    assert [row[2] for row in found] == [[n, 0.5] for n in range(ROWS)]
    assert len(gateway.job.requests) - asked < ROWS / 5


#: Model, its columns, the columns of each number, and its result.
CASES: dict[str, tuple[str, str, str, Callable[[int], list[Any]]]] = {
    "numbers, by element": (
        "same",
        "INPUT (a FLOAT, b INT) OUTPUT (c DOUBLE, d BIGINT)",
        "CAST(n / 2e0 AS FLOAT) AS a; CAST(n AS INT) AS b",
        lambda n: [n / 2, n],
    ),
    "half floats": (
        "half",
        "INPUT (X ARRAY<DOUBLE>) OUTPUT (Y ARRAY<FLOAT>)",
        "ARRAY[n / 4e0, -65504e0] AS v",
        lambda n: [[n / 4, -65504.0]],
    ),
    "long integers": (
        "whole",
        "INPUT (a BIGINT, b DECIMAL(20, 0)) OUTPUT (c BIGINT, d DECIMAL(20, 0))",
        "-n AS a; CAST(9007199254740993 + n AS DECIMAL(20, 0)) AS b",
        lambda n: [-n, Decimal(9007199254740993 + n)],
    ),
    "truth values": (
        "truth",
        "INPUT (a BOOLEAN, b BOOLEAN) OUTPUT (c BOOLEAN, d BOOLEAN)",
        "n > 3 AS a; n < 3 AS b",
        lambda n: [n > 3, n < 3],
    ),
    "texts": (
        "text",
        "INPUT (s ARRAY<STRING>) OUTPUT (t ARRAY<STRING>)",
        "ARRAY[CAST(n AS STRING), 'ä'] AS s",
        lambda n: [[str(n), "ä"]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_columns_become_tensors_of_each_datatype(tables: TableEnvironment, gateway: Served, case: str) -> None:
    name, columns, given, expected = CASES[case]
    create(tables, gateway.url, name, columns)
    found = predict(tables, name, given)
    assert [row[2 + given.count(";") :] for row in found] == [expected(n) for n in range(ROWS)]


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (
            "INPUT (a FLOAT, b FLOAT) OUTPUT (c STRING, d STRING)",
            "CAST(1 AS FLOAT) AS a; CAST(2 AS FLOAT) AS b",
            "OUTPUT column c has type STRING, expected one for FP32 of shape [2]",
        ),
        (
            "INPUT (a FLOAT, b FLOAT, c FLOAT) OUTPUT (y ARRAY<FLOAT>)",
            "CAST(1 AS FLOAT) AS a; CAST(2 AS FLOAT) AS b; CAST(3 AS FLOAT) AS c",
            "INPUT has 3 columns, expected 1 for [x], or 2 for the elements of a row",
        ),
        ("INPUT (x ARRAY<ARRAY<FLOAT>>) OUTPUT (y ARRAY<FLOAT>)", "ARRAY[ARRAY[CAST(1 AS FLOAT)]] AS x", "ARRAY<ARRAY"),
    ],
)
def test_columns_that_do_not_fit_fail_the_query(
    tables: TableEnvironment, gateway: Served, columns: str, given: str, message: str
) -> None:
    create(tables, gateway.url, "same", columns)
    with pytest.raises(Exception, match=re.escape(message)):
        predict(tables, "same", given)


def test_rows_at_fault_become_null_and_their_neighbours_do_not(tables: TableEnvironment, gateway: Served) -> None:
    create(tables, gateway.url, "small", "INPUT (a INT, b INT) OUTPUT (c INT, d INT)")
    found = predict(
        tables, "small", "CAST(n AS INT) AS a; CAST(CASE WHEN MOD(n, 5) = 0 THEN NULL ELSE 1 END AS INT) AS b"
    )
    assert [row[3:] for row in found] == [[n, 1] if n < 256 and n % 5 else [None, None] for n in range(ROWS)]
    create(tables, gateway.url, "picky", "INPUT (x ARRAY<FLOAT>) OUTPUT (y ARRAY<FLOAT>)")
    found = predict(tables, "picky", "ARRAY[CAST(n AS FLOAT), CAST(1 AS FLOAT)] AS x")
    assert [row[2] for row in found] == [None if n % 100 == 7 else [n, 1.0] for n in range(ROWS)]


def test_unknown_model_fails_the_query_and_says_so(tables: TableEnvironment, gateway: Served) -> None:
    create(tables, gateway.url, "fraud", "INPUT (x ARRAY<FLOAT>) OUTPUT (y ARRAY<FLOAT>)")
    with pytest.raises(Exception, match=r"model fraud at .* does not answer: .*404"):
        predict(tables, "fraud", "ARRAY[CAST(n AS FLOAT)] AS x")
