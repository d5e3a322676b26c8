"""Models as functions of Flink's SQL, on a cluster, in both modes."""

from pathlib import Path
from typing import Any

import pytest
from pyflink.table import DataTypes, StreamTableEnvironment

from anabranch.flink import environment
from anabranch.flink_job.config import Config
from anabranch.flink_sql import register
from anabranch.stack.flink.cluster import FlinkCluster
from tests.docs.pages import lines_of_own_job
from tests.flink.conftest import FIRST_PROCESS

ROWS = 300
QUERY = """
    SELECT n, `double`(n, n, n, n), lookup(n), pair(n, n, n, 2, 2, 2).`sum`[3], strict(n), scalar(pairs),
           text(name, 'ä'), tens(CASE WHEN MOD(n, 3) = 0 THEN NULL ELSE n END)
    FROM numbers WHERE tens(n) >= 0
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", FIRST_PROCESS)
def test_function_of_each_model_answers_each_row(model_repository: Path, mode: str, cluster: FlinkCluster) -> None:
    flink = {"restart-strategy.type": "none"}
    job = {"execution_mode": mode, "parallelism": 2, "checkpoint_interval_ms": 500, "flink": flink}
    tables = StreamTableEnvironment.create(environment(Config().replace(job=job), cluster.url))
    assert "strict" in register(tables, model_repository)
    rows = [(n, str(n), [[float(n), 1.0]]) for n in range(ROWS)]
    pairs = DataTypes.FIELD("pairs", DataTypes.ARRAY(DataTypes.ARRAY(DataTypes.DOUBLE())))
    types = [DataTypes.FIELD("n", DataTypes.BIGINT()), DataTypes.FIELD("name", DataTypes.STRING()), pairs]
    tables.create_temporary_view("numbers", tables.from_elements(rows, DataTypes.ROW(types)))
    with tables.sql_query(QUERY).execute().collect() as results:
        found = sorted((list(row) for row in results), key=lambda row: int(row[0]))
    assert found == [answers_to(n) for n in range(ROWS)]


def answers_to(n: int) -> list[Any]:
    looked_up = 10.0 * n if n < 8 else None
    return [n, [2.0 * n + 2] * 4, looked_up, n + 2.0, looked_up, n + 1.0, [str(n), "ä"], 10.0 * n if n % 3 else None]


@pytest.mark.long
@pytest.mark.timeout(200)
def test_page_of_an_own_job_names_colours_in_sql() -> None:
    named = [line.split("|")[2:4] for line in lines_of_own_job(1) if line.startswith("| +I")]
    assert sorted((int(number), name.strip()) for number, name in named) == [(1, "red"), (2, "blue")]
