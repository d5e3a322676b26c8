"""Models as SQL functions, without Flink: arguments to rows, outputs to columns, and rows at fault."""

from collections.abc import Sized
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyflink.table import DataTypes

from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_sql import ModelFunction, expected_of, forms_of, register, result_type
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.schemas.model import BatchingVerdict, Catalog, ModelSpec
from tests.core.models import catalog as catalog_of_rows
from tests.core.models import session_of
from tests.flink.models import write_repository


class Fakes:
    def load(self, model: ModelSpec) -> Any:
        return session_of(model)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write_repository(folder)
    return folder


@pytest.fixture(scope="module")
def catalog(repository: Path) -> Catalog:
    return read_repository(repository, Config().defaults)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each request that functions make."""
    calls: list[int] = []
    ask = ModelFunction._ask

    def counted(function: ModelFunction, rows: Any) -> Any:
        calls.append(len(rows))
        return ask(function, rows)

    monkeypatch.setattr(ModelFunction, "_ask", counted)
    return calls


def call(catalog: Catalog, name: str, *columns: Any, config: Config | None = None) -> Any:
    function = ModelFunction(config or Config(), catalog, catalog.find(name, ""), OnnxBackend())
    function.open(None)
    return function.eval(*(pd.Series(column) if isinstance(column, Sized) else column for column in columns))


def test_function_of_elements_stacks_its_arguments(catalog: Catalog) -> None:
    decimals = [Decimal("0.5"), Decimal(3)]
    found = call(catalog, "double", [1, 2], [0.5, 1.5], decimals, np.array([7, 8], np.int8))
    assert found.tolist() == [[4, 3, 3, 16], [6, 5, 8, 18]]


def test_function_of_constants_repeats_them(catalog: Catalog) -> None:
    assert call(catalog, "double", [1, 2], 0.5, Decimal(3), 7).tolist() == [[4, 3, 8, 16], [6, 3, 8, 16]]
    with pytest.raises(ConfigError, match="'tens' has no column among its arguments"):
        call(catalog, "tens", 1)


def test_function_of_arrays_groups_rows_by_their_shapes(catalog: Catalog) -> None:
    arrays = [np.arange(1 + n % 3, dtype=np.float64) for n in range(7)]
    assert call(catalog, "wide", arrays).tolist() == [[float(each.mean())] for each in arrays]


def test_function_of_many_rows_runs_them_in_few_calls(catalog: Catalog, calls: list[int]) -> None:
    assert call(catalog, "tens", range(1000)).tolist() == [10.0 * n for n in range(1000)]
    assert calls == [1000]
    small = Config().replace(kafka={"max_message_bytes": 4096})
    assert call(catalog, "tens", range(1000), config=small).tolist() == [10.0 * n for n in range(1000)]
    assert len(calls) == 1 + 5


def test_function_of_a_model_without_strangers_runs_rows_alone(catalog: Catalog, calls: list[int]) -> None:
    model = catalog.find("tens", "")
    whole = replace(model, verdict=BatchingVerdict(level="whole"))
    alone = Catalog({**catalog.models, "tens": {model.version: whole}})
    assert call(alone, "tens", [1, 2, 3]).tolist() == [10.0, 20.0, 30.0]
    assert calls == [1, 1, 1]


def test_function_row_at_fault_is_null_and_logged(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    found = call(catalog, "lookup", [n % 10 for n in range(100)])
    assert found.isnull().sum() == 20
    assert [value for value in found if value is not None] == [10.0 * (n % 10) for n in range(100) if n % 10 < 8]
    [line] = [record.getMessage() for record in caplog.records if record.name == "anabranch.functions"]
    assert line.startswith("lookup: 20 rows became NULL; the last: inference_failed: ")


def test_function_rows_at_fault_are_logged_now_and_then(
    catalog: Catalog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = ModelFunction(Config(), catalog, catalog.find("lookup", ""), OnnxBackend())
    function.open(None)
    for at_s in (100.0, 101.0, 102.0, 120.0):
        monkeypatch.setattr("anabranch.flink_sql.monotonic", lambda at_s=at_s: at_s)
        function.eval(pd.Series([1, 9]))
    lines = [record.getMessage() for record in caplog.records if record.name == "anabranch.functions"]
    assert [line.partition(" became")[0] for line in lines] == ["lookup: 1 rows", "lookup: 3 rows"]


@pytest.mark.parametrize("faulty", ["one", 0.5, 2.0**60, float(2**53)])
def test_function_argument_at_fault_is_null(catalog: Catalog, faulty: Any) -> None:
    assert call(catalog, "tens", [1, faulty, None]).tolist() == [10.0, None, None]


def test_function_of_integers_beside_a_null_is_exact(catalog: Catalog) -> None:
    assert call(catalog, "tens", pd.Series([2**52 + 0.0, float("nan")]))[0] == np.float32(10) * np.float32(2**52)
    assert call(catalog, "tens", pd.Series([2**60]))[0] == np.float32(10) * np.float32(2**60)


def test_function_with_several_outputs_gives_a_row(catalog: Catalog) -> None:
    found = call(catalog, "pair", [1, 2], [1, 2], [1, None], [3, 3], [3, 3], [3, 3])
    assert found["sum"].tolist() == [[4, 4, 4], None]
    assert found["product"].tolist() == [[3, 3, 3], None]
    array = DataTypes.ARRAY(DataTypes.FLOAT())
    expected = DataTypes.ROW([DataTypes.FIELD("sum", array), DataTypes.FIELD("product", array)])
    assert result_type(catalog.find("pair", "")) == expected


def test_function_of_texts_gives_texts(catalog: Catalog) -> None:
    assert call(catalog, "text", ["a", "ä"], ["b", ""]).tolist() == [["a", "b"], ["ä", ""]]


@pytest.mark.parametrize(("name", "expected"), [("strict", [10.0, None]), ("careful", [10.0, 90.0])])
def test_function_of_an_ensemble_merges_its_members(catalog: Catalog, name: str, expected: list[Any]) -> None:
    assert call(catalog, name, [1, 9]).tolist() == expected


def test_function_of_a_model_in_stages_runs_them(calls: list[int]) -> None:
    served = catalog_of_rows(ensembles=True)
    made = [ModelFunction(Config(), served, served.find(name, ""), Fakes()) for name in ("cut", "rows")]
    texts = ["a", "b", None]
    for function in made:
        function.open(None)
    staged, whole = (function.eval(*map(pd.Series, ([1, 2, 3], [4, 5, 6], texts))) for function in made)
    assert staged["y"].tolist() == whole["y"].tolist()
    assert staged["y"].notnull().tolist() == [True, True, False]
    assert calls == [2, 2]


def test_function_without_batch_axis_runs_each_row(catalog: Catalog) -> None:
    assert call(catalog, "scalar", [np.ones((2, 2)), np.ones((3, 2))]).tolist() == [4.0, 6.0]


def test_function_of_fixed_rows_runs_any_number(catalog: Catalog) -> None:
    assert call(catalog, "single", [1, 2, 3], 5).tolist() == [[3, 15], [6, 15], [9, 15]]


def test_function_without_its_model_file_does_not_open(catalog: Catalog) -> None:
    gone = replace(catalog.find("tens", ""), path="/nowhere")
    broken = Catalog({**catalog.models, "tens": {"1": gone}})
    for name in ("tens", "strict"):
        with pytest.raises(ModelLoadFailed):
            call(broken, name, [1])


def test_functions_of_a_repository_are_registered_by_name(catalog: Catalog, repository: Path) -> None:
    registered = {}

    class Tables:
        def create_temporary_system_function(self, name: str, function: Any) -> None:
            registered[name] = function

    assert register(Tables(), repository) == list(registered)
    assert set(registered) == set(catalog.models)


def test_function_with_wrong_arguments_is_refused(catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match=r"'double' has 3 arguments, expected \(x ARRAY<NUMBER>\), or 4 arguments"):
        call(catalog, "double", [1], [1], [1])


@pytest.mark.parametrize(
    ("name", "forms", "expected"),
    [
        (
            "double",
            ["[NUMBER", "NUMBER,NUMBER,NUMBER,NUMBER"],
            "(x ARRAY<NUMBER>), or 4 arguments for the elements of a row",
        ),
        ("wide", ["[NUMBER|NUMBER"], "(x ARRAY<NUMBER>)"),
        ("tens", ["NUMBER"], "(i NUMBER)"),
        ("scalar", ["[[NUMBER"], "(x ARRAY<ARRAY<NUMBER>>)"),
        ("text", ["[TEXT", "TEXT,TEXT"], "(s ARRAY<TEXT>), or 2 arguments for the elements of a row"),
    ],
)
def test_function_arguments_are_described(catalog: Catalog, name: str, forms: list[str], expected: str) -> None:
    model = catalog.find(name, "")
    assert (forms_of(model), expected_of(model)) == (forms, expected)
