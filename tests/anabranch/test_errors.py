"""The tree of errors is public: classes, parents and codes."""

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytest

import anabranch
from anabranch import errors
from anabranch.errors import AnabranchError

#: Codes that users rely on. Add to this list; never take from it.
CODES = {
    *("error", "request_error", "unreadable", "malformed_request", "request_too_large"),
    *("unknown_model", "unknown_version", "unknown_input", "missing_input", "unknown_output"),
    *("wrong_datatype", "wrong_shape", "wrong_size", "empty_batch", "non_finite_input"),
    *("invalid_parameter", "serving_error", "inference_failed", "deadline_exceeded", "overloaded"),
    *("incomplete_answer", "response_too_large", "exchange_failed", "internal_error", "transport_error"),
    *("broker_unreachable", "topic_missing", "not_sent", "no_answer", "client_closed"),
    *("config_error", "model_load_failed", "partition_error", "model_error", "unreadable_model"),
    *("invalid_model", "unsafe_model", "cut_error", "no_such_cut", "uncarried_tensor"),
    *("planning_error", "no_plan", "unusable_machines", "proof_error", "unusable_inputs"),
    *("whole_model_failed", "stage_failed", "unequal_output", "plan_not_written", "import_failed"),
    *("unknown_source", "framework_missing", "not_converted", "not_equal", "version_there"),
    *("stack_error", "port_in_use", "not_enough_memory", "not_running", "topic_not_made"),
    *("start_failed", "installation_error", "java_not_found", "flink_not_found", "jars_missing"),
    *("compilation_failed", "libpython_not_found", "unusable_argument", "stages_not_prepared"),
    "unknown_property",
}


ROOT = Path(__file__).parents[2]
#: Exceptions between two modules; the caller turns each into an error of the tree or a restart.
INTERNAL = {"NoTrial", "SegmentGone", "SessionError", "SuspectInBatch"}


def tree(root: type[AnabranchError]) -> list[type[AnabranchError]]:
    return [root, *(cls for child in root.__subclasses__() for cls in tree(child))]


def product_errors() -> list[type[AnabranchError]]:
    getattr(errors, "ModelLoadFailed")  # noqa: B009 - loaded on first use
    return [cls for cls in tree(AnabranchError) if cls.__module__.startswith("anabranch.")]


def exception_classes() -> dict[str, str]:
    """Returns the module of each exception class of the product."""
    bases: dict[str, tuple[str, list[str]]] = {}
    for package in ("schemas", "operators", "partition", "flink_job", "anabranch"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    names = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
                    bases[node.name] = (str(path.relative_to(ROOT)), names)
    found = {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)}
    while grown := {name for name, (_, names) in bases.items() if found.intersection(names)} - found:
        found |= grown
    return {name: bases[name][0] for name in found & bases.keys()}


def drawn() -> dict[str, tuple[str, str]]:
    """Returns code and parent of each class in the drawing."""
    found: dict[str, tuple[str, str]] = {}
    path = ["object"]
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    for line in page.split("```")[1].splitlines():
        match = re.match(r"((?:    )*)(\w+)  +([a-z_]+)  ", line)
        if match:
            depth = 1 + len(match[1]) // 4
            del path[depth:]
            found[match[2]] = (match[3], path[-1])
            path.append(match[2])
    return found


def test_tree_drawing_equals_the_classes() -> None:
    classes = {cls.__name__: (cls.code, cls.__mro__[1].__name__) for cls in product_errors()}
    classes["AnabranchError"] = (AnabranchError.code, "object")
    assert drawn() == classes


def test_codes_are_unique_and_stable() -> None:
    codes = [cls.code for cls in product_errors()]
    assert len(codes) == len(set(codes))
    assert set(codes) >= CODES
    assert all("code" in vars(cls) and re.fullmatch(r"[a-z_]+", cls.code) for cls in product_errors())


def test_product_public_exceptions_are_in_the_tree() -> None:
    found = {name: module for name, module in exception_classes().items() if not name.startswith("_")}
    assert {name: module for name, module in found.items() if name not in errors.__all__}.keys() == INTERNAL
    assert set(errors.__all__) == found.keys() - INTERNAL


def test_reference_page_has_every_code_and_docstring() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    for cls in product_errors():
        assert re.search(rf"\b{cls.__name__} +{cls.code}\b", page), cls
        assert re.fullmatch(r"[A-Z].{5,120}\.", (cls.__doc__ or "").splitlines()[0]), cls


def test_package_exports_every_error() -> None:
    names = {cls.__name__ for cls in product_errors()}
    assert set(errors.__all__) == names
    assert set(anabranch.__all__) == names | {"AsyncClient", "Client", "KafkaSecurity", "Result", "__version__"}
    assert all(getattr(anabranch, name) is getattr(errors, name) for name in names)
    assert set(dir(anabranch)) >= set(anabranch.__all__)


@pytest.mark.parametrize("module", [anabranch, errors])
def test_unknown_name_is_an_attribute_error(module: object) -> None:
    with pytest.raises(AttributeError, match="'NoSuchThing'"):
        getattr(module, "NoSuchThing")  # noqa: B009 - mypy knows that it is not there


def test_errors_import_loads_neither_kafka_nor_numpy() -> None:
    script = "import sys, threading, anabranch.errors; print(threading.active_count(), *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert loaded[0] == "1"
    assert not {"kafka", "numpy", "msgspec", "google.protobuf", "pyflink", "typer"} & set(loaded)
