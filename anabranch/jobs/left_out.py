"""Models that a job does not serve, and the reasons: from its submission, and from its tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec

from anabranch.flink_job.model_summary import LEFT_OUT_PARAMETER, decode_left_out
from anabranch.operators.core.metrics import read_left_out
from anabranch.schemas.model import LeftOut
from anabranch.stack.flink.rest import FlinkRest

_REASON = ".anabranch.left_out."
_OPENED = ".anabranch.models.opened"
#: Operators that load models, in the name of an operator chain.
_LOADERS = ("serve", "infer", " stage ")
#: Pauses between two looks at the metrics, which cost a new job's JVM much.
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.5, 4.0


def left_out_line(model: LeftOut) -> str:
    """Return a line for people."""
    return f"Left out: {model.message}. Its requests get model_unavailable."


def left_out_models(rest: FlinkRest, job_id: str) -> list[LeftOut]:
    """Return the models that a job does not serve, each once.

    Raises:
        StackError: The cluster does not answer.
    """
    text = rest.job_parameters(job_id).get(LEFT_OUT_PARAMETER)
    found = decode_left_out(text) if text else []
    return [*dict.fromkeys([*found, *reported(name for names in _metrics(rest, job_id) for name in names)])]


def reported(metrics: Iterable[str]) -> list[LeftOut]:
    """Return the models that tasks could not load."""
    found = []
    for name in metrics:
        _, has_token, token = name.partition(_REASON)
        if has_token:
            try:
                found.append(read_left_out(token))
            except (ValueError, msgspec.MsgspecError):  # of another version
                continue
    return [*dict.fromkeys(found)]


def await_reports(rest: FlinkRest, job_id: str, timeout_s: float, sleep: Callable[[float], None]) -> None:
    """Wait until Flink shows that all operators have loaded, at most for a time."""
    give_up_at, pause_s = time.monotonic() + timeout_s, _LEAST_PAUSE_S
    while time.monotonic() < give_up_at:
        if all(any(name.endswith(_OPENED) for name in names) for names in _metrics(rest, job_id)):
            return
        sleep(pause_s)
        pause_s = min(2 * pause_s, _MOST_PAUSE_S)


def _metrics(rest: FlinkRest, job_id: str) -> list[list[str]]:
    """Return the metrics of each vertex with models."""
    vertices = rest.get(f"/jobs/{job_id}")["vertices"]
    loaders = [vertex["id"] for vertex in vertices if any(word in vertex["name"] for word in _LOADERS)]
    paths = [f"/jobs/{job_id}/vertices/{vertex}/subtasks/metrics" for vertex in loaders]
    return [[metric["id"] for metric in rest.get(path)] for path in paths]
