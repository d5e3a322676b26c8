"""ONNX Runtime sessions; only this module opens them."""

import re
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from anabranch.schemas.model import SessionOptions

_OPTIMIZATION_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_DEFAULT_OPTIONS = SessionOptions()
#: Hides errors that are raised, too.
_FATAL = 4


_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class SessionError(Exception):
    """A model does not load."""


def open_session(
    source: Path | bytes,
    options: SessionOptions = _DEFAULT_OPTIONS,
    *,
    external_data_dir: Path | None = None,
    profile_prefix: Path | None = None,
    optimized_path: Path | None = None,
    shares_arena: bool = False,
) -> Any:
    """Load a model.

    Args:
        source: ONNX file, or its bytes.
        options: Session options.
        external_data_dir: External data of bytes.
        profile_prefix: Start of the profile's path; None without profiler.
        optimized_path: Target of the optimized model and `NAME.data`.
        shares_arena: True to use the arena of `run_memory`.

    Returns:
        `onnxruntime.InferenceSession`.

    Raises:
        SessionError: The model does not load.
    """
    runtime = load_runtime()
    available = runtime.get_available_providers()
    missing = [name for name in options.providers if name not in available]
    if missing:
        raise SessionError(f"unknown execution provider {', '.join(missing)}; available: {', '.join(available)}")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.intra_op_threads
    settings.inter_op_num_threads = options.inter_op_threads
    settings.graph_optimization_level = getattr(
        runtime.GraphOptimizationLevel, _OPTIMIZATION_LEVELS[options.optimization]
    )
    settings.log_severity_level = _FATAL
    # Spinning threads take cores from other tasks.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if shares_arena:
        settings.add_session_config_entry("session.use_env_allocators", "1")
    if external_data_dir is not None:
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(external_data_dir)
        )
    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile_prefix)
    if optimized_path is not None:
        settings.optimized_model_filepath = str(optimized_path)
        name = "session.optimized_model_external_initializers_"
        settings.add_session_config_entry(f"{name}file_name", f"{optimized_path.name}.data")
        settings.add_session_config_entry(f"{name}min_size_in_bytes", "1024")
    for library in options.custom_ops:
        _register(settings, library)
    try:
        return runtime.InferenceSession(
            source if isinstance(source, bytes) else str(source), settings, providers=list(options.providers)
        )
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common base class
        raise SessionError(first_line(error)) from None


@cache
def load_runtime() -> Any:
    """Import `onnxruntime` in a thread of its own.

    In PyFlink's threads, pybind11 takes a wrong thread state and deadlocks.
    """
    _import_apart("onnxruntime")
    import onnxruntime  # noqa: PLC0415

    onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime


def _import_apart(name: str) -> Any:
    importer = Thread(target=_try_import, args=(name,), name=f"import {name}")
    importer.start()
    importer.join()
    return import_module(name)


def _try_import(name: str) -> None:
    with suppress(Exception):  # Raised again by the caller.
        import_module(name)


def _register(settings: Any, library: str) -> None:
    path = library
    try:
        if _FUNCTION.fullmatch(library):
            package, function = library.split(":")
            path = str(getattr(_import_apart(package), function)())
        settings.register_custom_ops_library(path)
    except Exception as error:  # noqa: BLE001 - a package or library may raise anything
        raise SessionError(
            f"cannot load the custom operators {library!r}: {first_line(error)}; correct custom_ops under [session], "
            "or install the package on every machine"
        ) from None


def first_line(error: Exception) -> str:
    """Return an error's first line or class."""
    return next(iter(str(error).splitlines()), type(error).__name__)
