"""Loads the Python functions of a chain's steps: once for each file and process."""

import sys
import threading
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from operators.backends.base import ModelLoadFailed
from operators.backends.onnx import sha256_of
from schemas.model import FunctionSpec

_lock = threading.Lock()


def load_function(function: FunctionSpec) -> Callable[..., Any]:
    """The function itself; its file runs as a module of its own.

    Raises:
        ModelLoadFailed: The file is not the one that the job was started with, cannot be run, or has no such function.
    """
    with _lock:
        module = _load(function)
    found = getattr(module, function.name, None)
    if not callable(found):
        raise ModelLoadFailed(f"{function.path} has no function {function.name!r}")
    loaded: Callable[..., Any] = found
    return loaded


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
