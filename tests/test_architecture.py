"""Allowed imports, and imports without side effects.

anabranch -> flink_job -> operators -> schemas          operators.core: plain logic with data libraries only
                 \\-> partition -> schemas               tests, bench, examples: never imported
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: The first four are links below `anabranch`, and are imported by those names.
LINKED = ("schemas", "partition", "operators", "flink_job")
PACKAGES = (*LINKED, "anabranch")
#: The most special folder of a module decides. None: anything from outside.
RULES: dict[str, tuple[set[str], set[str] | None]] = {
    "schemas": ({"schemas"}, {"google", "msgspec", "numpy"}),
    "onnx_runtime": ({"schemas", "onnx_runtime"}, {"msgspec", "numpy", "onnxruntime"}),
    "ready_steps": (
        {"schemas", "ready_steps", "operators.backends.base"},
        {"PIL", "msgspec", "numpy", "tokenizers"},
    ),
    "partition": ({"schemas", "partition", "onnx_runtime"}, None),
    # Beam runs PyFlink's process mode, and py4j is its way to Java: parts of PyFlink.
    "operators": (
        {"schemas", "operators", "onnx_runtime", "ready_steps"},
        {"apache_beam", "msgspec", "numpy", "py4j", "pyflink"},
    ),
    "operators.backends": ({"schemas", "operators.backends", "onnx_runtime"}, {"numpy"}),
    "operators.core": (
        {"schemas", "operators.core", "operators.backends.base"},
        {"fastavro", "google", "msgspec", "numpy", "orjson"},
    ),
    "operators.registry": ({"schemas", "operators.core", "operators.registry"}, {"google", "grpc_tools", "msgspec"}),
    "flink_job": ({"schemas", "operators", "partition", "flink_job", "onnx_runtime", "ready_steps"}, None),
    "": ({""}, None),
}
#: They run what is in the data, or may not appear where data from outside is read.
UNSAFE = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
#: Flink's classes, clocks, threads and logs have no place in plain logic.
IMPURE = {"asyncio", "logging", "os", "random", "socket", "subprocess", "threading", "time", "warnings"}


def modules(*packages: str) -> list[str]:
    files = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return [name if name.startswith("anabranch") else f"anabranch.{name}" for name in names]


def tree_of(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text())


def imports(module: str) -> Iterator[str]:
    """Lists the imports of a module, at its top or in a function."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield node.module or ""


def is_within(module: str, packages: set[str]) -> bool:
    return any(not package or module == package or module.startswith(f"{package}.") for package in packages)


def violations(module: str, imported: str) -> Iterator[str]:
    rule = max((name for name in RULES if is_within(module.removeprefix("anabranch."), {name})), key=len)
    ours, foreign = RULES[rule]
    top = imported.partition(".")[0]
    if top in LINKED:
        yield f"{module} imports {imported}: a second copy of anabranch.{imported}"
    elif top in {"anabranch", "bench", "deploy", "examples", "tests"}:
        if top != "anabranch" or not is_within(imported.removeprefix("anabranch."), ours):
            yield f"{module} imports {imported}: the wrong direction"
    elif top not in sys.stdlib_module_names and foreign is not None and top not in foreign:
        yield f"{module} imports {imported}, which {rule} does without"
    if top in UNSAFE and rule.startswith(("schemas", "operators", "partition")):
        yield f"{module} imports {imported}: data from outside must never run"
    if top in IMPURE and rule in {"schemas", "operators.core"}:
        yield f"{module} imports {imported}: time, chance and the outside world are arguments here"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_of_a_package_point_one_way(package: str) -> None:
    found = [line for module in modules(package) for name in imports(module) for line in violations(module, name)]
    assert found == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("anabranch.schemas.wire.codec", "anabranch.operators.core"),
        ("anabranch.schemas.wire.codec", "pyflink.common"),
        ("anabranch.operators.core.merging.request_window", "operators.shard"),
        ("anabranch.operators.core.merging.request_window", "pyflink.common"),
        ("anabranch.operators.core.merging.request_window", "anabranch.operators.backends.onnx"),
        ("anabranch.operators.core.merging.request_window", "time"),
        ("anabranch.ready_steps.texts", "pyflink.common"),
        ("operators.shard", "anabranch.flink_job.config"),
        ("operators.shard", "pickle"),
        ("anabranch.flink_job.job", "anabranch.cli"),
        ("anabranch.cli", "tests.simulator"),
        ("partition.plan", "anabranch.operators.core"),
    ],
)
def test_imports_against_a_rule_are_found(module: str, imported: str) -> None:
    assert list(violations(module, imported))


def test_modules_of_wire_and_core_have_tests() -> None:
    for package, tests in (("schemas", "schemas"), ("operators/core", "core")):
        names = {path.stem for path in (ROOT / package).rglob("*.py")} - {"__init__"}
        untested = {name for name in names if not (ROOT / "tests" / tests / f"test_{name}.py").exists()}
        # `messages`, `requests` and `outputs` are plain fields; protoc's module is tested against protobuf.
        assert untested <= {"messages", "requests", "outputs", "open_inference_pb2"}


LOOK_AFTER_IMPORT = """
import importlib, json, os, sys, threading
before = set(os.listdir("/proc/self/fd"))
for name in sys.argv[1:]:
    importlib.import_module(name)
import psutil
targets = [os.readlink(f"/proc/self/fd/{fd}") for fd in set(os.listdir("/proc/self/fd")) - before
           if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}")]
from pyflink import java_gateway
print(json.dumps({
    "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
    "children": [child.name() for child in psutil.Process().children(recursive=True)],
    "sockets": [target for target in targets if target.startswith("socket:")],
    "gateway": java_gateway._gateway is not None,
    "runtimes": [name for name in ("onnxruntime", "pemja") if name in sys.modules],
}))
"""


def is_demo(module: str) -> bool:
    """Magika's own code, with which the demo compares, brings ONNX Runtime along."""
    return is_within(module, {"anabranch.demo"})


@pytest.mark.slow
@pytest.mark.parametrize("demo", [False, True], ids=["job and command line", "demo"])
def test_import_of_any_module_starts_nothing(demo: bool) -> None:
    names = [name for name in modules(*PACKAGES) if not name.endswith("__main__") and (demo or not is_demo(name))]
    command = [sys.executable, "-c", LOOK_AFTER_IMPORT, *names]
    looked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100)
    started = json.loads(looked.stdout)
    if demo:
        assert started.pop("runtimes") == ["onnxruntime"]
    assert started == {"threads": [], "children": [], "sockets": [], "gateway": False} | (
        {} if demo else {"runtimes": []}
    )
    assert len(names) > 40
