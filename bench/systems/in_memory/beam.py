"""A peer: Apache Beam's RunInference with its ONNX handler, in memory.

Settings: PyFlink's own Beam; direct runner in one process; batches of 64 rows; one thread in the session; rows made
inside the pipeline.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

_TIMEOUT_S = 300.0


class BeamFailed(Exception):
    """The pipeline did not run."""


def rows_per_s(model: Path, rows: int) -> float:
    """Rows a second of a pipeline, less the time that one with a single batch takes.

    Raises:
        BeamFailed: It did not run.
    """
    return _run("beam_pipeline", model, rows)


def texts_per_s(model: Path, workload: Path, count: int) -> float:
    """Texts a second of a pipeline, less the time that one with a single text takes.

    Args:
        workload: File of requests with a text each.

    Raises:
        BeamFailed: It did not run.
    """
    return _run("beam_texts", model, workload, count)


def _run(program: str, *arguments: object) -> float:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"bench.systems.in_memory.{program}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise BeamFailed(f"Beam's pipeline ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return float(done.stdout.split()[-1])
