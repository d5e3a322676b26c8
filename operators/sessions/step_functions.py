"""Functions of chain steps; Python files are loaded once per process."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import sha256_of
from anabranch.operators.sessions.model_cache import local_path, naming_files
from anabranch.ready_steps.factory import make_step
from anabranch.schemas.model import FunctionSpec, StageSpec

#: One thread for all loads, so that each file runs once.
_loader = ThreadPoolExecutor(1, "load steps")


def load_function(function: FunctionSpec, stage: StageSpec | None = None) -> Callable[..., Any]:
    """Load a function.

    Args:
        stage: Step of a ready function.

    Raises:
        ModelLoadFailed: The file has changed, cannot run, or lacks the function.
    """
    path = local_path(function.path)
    function = replace(function, path=str(path))
    with naming_files(path):
        if function.ready is not None:
            assert stage is not None  # noqa: S101 - only chains have ready steps
            found: Any = _loader.submit(make_step, function.ready, path.parent, stage).result()
        else:
            module = _loader.submit(_load, function).result()
            found = getattr(module, function.name, None)
        if not callable(found):
            raise ModelLoadFailed(f"{function.path} has no function {function.name!r}: add it or correct `model.toml`")
    # Extension modules can deadlock in Flink's threads.
    executor = ThreadPoolExecutor(1, "steps")

    def run(*arguments: Any) -> Any:
        try:
            return executor.submit(found, *arguments).result()
        except SystemExit as error:
            raise RuntimeError(f"{function.name} called sys.exit({error.code!r})") from error

    return run


def _load(function: FunctionSpec) -> ModuleType:
    if sha256_of(Path(function.path)) != function.sha256:
        raise ModelLoadFailed(f"{function.path} is not the file that the job was started with: restart the job")
    # A module may read files beside its own.
    name = f"anabranch_steps_{function.sha256[:16]}_{abs(hash(function.path))}"
    module = sys.modules.get(name)
    if module is None:
        spec = spec_from_file_location(name, function.path)
        if spec is None or spec.loader is None:
            raise ModelLoadFailed(f"{function.path} is not a Python file: name a file that ends in .py")
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise ModelLoadFailed(f"cannot load {function.path}: {type(error).__name__}: {error}") from error
    return module
