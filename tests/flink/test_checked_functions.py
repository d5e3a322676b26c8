"""A call of a model's function that cannot fit is refused when its query is planned, and defects of that are caught."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pyflink.table import StreamTableEnvironment
from pyflink.util.java_utils import add_jars_to_context_class_loader

from anabranch.flink import environment
from anabranch.flink_job import installation
from anabranch.flink_job.config import Config
from anabranch.flink_sql import register
from anabranch.operators.runtime import flink_compat
from anabranch.operators.runtime.flink_compat import CheckedFunction, java_gateway
from tests.planted import mutated

SOURCE = Path(installation.__file__).parents[1] / "java" / "CheckedFunction.java"
VALUES = "(1, 2.5, 'a', ARRAY[1, 2], DATE '2026-11-30', ARRAY[CAST(1 AS DOUBLE)], TRUE)"
NUMBERS = f"(VALUES {VALUES}) AS t (n, d, s, a, day_of, w, b)"
PLANNED = (
    "`double`(n, d, 1, NULL)",
    "`double`(a)",
    "wide(w)",
    "wide(n)",
    "text(s, 'b')",
    "text(ARRAY[s, s])",
    "tens(b)",
)
REFUSED = {
    "`double`(n, n)": "double: function got (INT, INT), expected (x ARRAY<NUMBER>), or 4 arguments",
    "`double`(n, s, n, n)": "double: function got (INT, CHAR(1), INT, INT), expected (x ARRAY<NUMBER>), or 4 arg",
    "text(s, n)": "text: function got (CHAR(1), INT), expected (s ARRAY<TEXT>), or 2 arguments",
    "text(s, ARRAY[s])": "text: function got (CHAR(1), ARRAY<CHAR(1) NOT NULL>), expected (s ARRAY<TEXT>), or 2",
    "tens(day_of)": "tens: function got (DATE), expected (i NUMBER): correct the query",
    "tens(n, n)": "tens: function got (INT, INT), expected (i NUMBER): correct the query",
    "tens()": "tens: function got (), expected (i NUMBER): correct the query",
    "wide(ARRAY[s])": "wide: function got (ARRAY<CHAR(1) NOT NULL>), expected (x ARRAY<NUMBER>): correct",
}


def check_calls(repository: Path) -> None:
    """Plans queries of calls that fit and of others."""
    tables = StreamTableEnvironment.create(environment(Config()))
    register(tables, repository)
    for call in PLANNED:
        assert "PythonCalc" in plan_of(tables, call), call
    for call, message in REFUSED.items():
        found = plan_of(tables, call)
        assert message in found, f"{call}: {found}"


def plan_of(tables: StreamTableEnvironment, call: str) -> str:
    """Returns the plan of a query, or the reasons for which it is refused."""
    try:
        return str(tables.explain_sql(f"SELECT {call} FROM {NUMBERS}"))
    except Exception as error:  # noqa: BLE001 - py4j has one class for all of Java's
        return f"refused: {error}"


def check_class(repository: Path) -> None:
    """A TaskManager reads a function as Flink's own, for it may lack this project's jar."""
    tables = StreamTableEnvironment.create(environment(Config()))
    made = []
    with patch.object(tables, "create_temporary_system_function", lambda _, function: made.append(function)):
        register(tables, repository)
    jvm: Any = java_gateway().jvm
    written = jvm.org.apache.flink.util.InstantiationUtil.serializeObject(made[0]._java_user_defined_function())
    loader = jvm.Thread.currentThread().getContextClassLoader()
    read = jvm.org.apache.flink.util.InstantiationUtil.deserializeObject(written, loader)
    assert read.getClass().getName() == "org.apache.flink.table.functions.python.PythonScalarFunction"
    assert str(read) == str(made[0]._java_user_defined_function())


@pytest.mark.timeout(100)
def test_function_call_that_cannot_fit_is_not_planned(model_repository: Path) -> None:
    check_calls(model_repository)


def test_function_reaches_taskmanagers_as_one_of_flink(model_repository: Path) -> None:
    check_class(model_repository)


_FORM, _ELEMENT = 'fits(form.split(","), types)', "fits(kind.substring(1), ((ArrayType) type).getElementType())"
_ONE = "if (!isOne) {\n                return false;"
#: A piece of the Java source, its replacement, and the check that has to fail.
PLANTED: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "every call fits": (_FORM, "true", check_calls),
    "no call fits": (_FORM, "false", check_calls),
    "only the first form is known": (": forms)", ": new String[] {forms[0]})", check_calls),
    "further arguments are ignored": ("kinds.length != types.size()", "kinds.length > types.size()", check_calls),
    "one of the arguments is enough": (_ONE, _ONE.replace("!", "").replace("false", "true"), check_calls),
    "the last kind of an argument decides": ("isOne |= fits(", "isOne = fits(", check_calls),
    "NULL is refused": ("type.is(LogicalTypeRoot.NULL)", "false", check_calls),
    "any array fits": (f" && {_ELEMENT}", "", check_calls),
    "an array fits an element": (
        f"type instanceof ArrayType && {_ELEMENT}",
        "fits(kind.substring(1), type)",
        check_calls,
    ),
    "a date is a number": ("type.is(LogicalTypeFamily.NUMERIC)", "!(type instanceof ArrayType)", check_calls),
    "a number is a text": ("type.is(LogicalTypeFamily.BINARY_STRING)", "!(type instanceof ArrayType)", check_calls),
    "TaskManagers need the class": ("private Object writeReplace()", "private Object neverCalled()", check_class),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Compiles the source with each defect, and gives the class of each."""
    folder = tmp_path_factory.mktemp("planted")
    text = SOURCE.read_text()
    names = {defect: f"Planted{number}" for number, defect in enumerate(PLANTED)}
    for defect, (old, new, _) in PLANTED.items():
        assert text.count(old) == 1, f"{old!r} is not in {SOURCE.name} once"
        source = text.replace(old, new).replace("CheckedFunction", names[defect])
        (folder / f"{names[defect]}.java").write_text(source)
    flink = installation.flink_home()
    libraries = [*flink.glob("opt/flink-python*.jar"), *flink.glob("lib/flink-table-api-java-uber*.jar")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ANABRANCH_JARS", str(installation.jars_dir()))
        patched.setattr(sys, "prefix", str(folder))
        jar = installation.compile_java("planted", folder, libraries)
    installation.activate()
    thread = java_gateway().jvm.Thread.currentThread()
    before = thread.getContextClassLoader()
    add_jars_to_context_class_loader([jar.as_uri()])
    yield names
    thread.setContextClassLoader(before)


@pytest.mark.timeout(100)
@pytest.mark.parametrize("defect", PLANTED)
def test_planted_defect_of_checks_is_caught(model_repository: Path, planted: dict[str, str], defect: str) -> None:
    planting = mutated(CheckedFunction, "_create_judf", "anabranch.CheckedFunction", f"anabranch.{planted[defect]}")
    with planting, pytest.raises(AssertionError):
        PLANTED[defect][2](model_repository)


@pytest.mark.timeout(100)
def test_function_without_the_class_takes_any_arguments(model_repository: Path) -> None:
    with patch.object(flink_compat, "JavaClass", type(None)):
        tables = StreamTableEnvironment.create(environment(Config()))
        register(tables, model_repository)
        assert [call for call in REFUSED if "PythonCalc" not in plan_of(tables, call)] == []
