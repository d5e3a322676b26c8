"""Loads the Python functions of a chain's steps: once for each file and process."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import sha256_of
from anabranch.schemas.model import FunctionSpec

#: One for all, so that a file is run once.
_worker = ThreadPoolExecutor(1, "load steps")


def load_function(function: FunctionSpec) -> Callable[..., Any]:
    """The function itself; its file runs as a module of its own.

    Raises:
        ModelLoadFailed: The file is not the one that the job was started with, cannot be run, or has no such function.
    """
    module = _worker.submit(_load, function).result()
    found = getattr(module, function.name, None)
    if not callable(found):
        raise ModelLoadFailed(f"{function.path} has no function {function.name!r}")
    # What extensions ask of the interpreter's lock is not safe in the threads that Flink lends us (see
    # `anabranch.operators.backends.onnx`): functions run in a Python thread.
    worker = ThreadPoolExecutor(1, "steps")

    def run(*arguments: Any) -> Any:
        try:
            return worker.submit(found, *arguments).result()
        except SystemExit as error:
            # It would end the TaskManager, and not the request.
            raise RuntimeError(f"{function.name} called sys.exit({error.code!r})") from error

    return run


def _load(function: FunctionSpec) -> ModuleType:
    if sha256_of(Path(function.path)) != function.sha256:
        raise ModelLoadFailed(f"{function.path} is not the file that the job was started with: restart the job")
    # The path too: a module finds what lies beside it by its own.
    name = f"anabranch_steps_{function.sha256[:16]}_{abs(hash(function.path))}"
    module = sys.modules.get(name)
    if module is None:
        spec = spec_from_file_location(name, function.path)
        if spec is None or spec.loader is None:
            raise ModelLoadFailed(f"{function.path} is no Python file")
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ModelLoadFailed(f"cannot load {function.path}: {type(error).__name__}: {error}") from error
    return module
