"""Process mode: an operator and its worker work at the same time on a bundle. (Thread mode has no bundles.)"""

import time
from pathlib import Path

import pytest
from pyflink.common import Types
from pyflink.datastream import MapFunction, RuntimeContext

from anabranch.flink import environment
from anabranch.flink_job.config import Config
from anabranch.operators.runtime.flink_compat import overlap_bundles

#: Ends a bundle only with the input.
LONG_BUNDLES = {"python.fn-execution.bundle.time": "60000"}
FIRST, SECOND = "1" * 100_000, "2" * 100_000


class _Second(MapFunction):  # type: ignore[misc]
    """Answers the second element after its file exists, or 30 s."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def open(self, runtime_context: RuntimeContext) -> None:
        overlap_bundles()

    def map(self, value: str) -> str:
        end = time.monotonic() + 30
        while value == SECOND and not self._file.exists():
            if time.monotonic() > end:
                return "too late"
            time.sleep(0.01)
        return value


@pytest.mark.timeout(180)
def test_answer_leaves_before_its_bundle_ends(tmp_path: Path) -> None:
    env = environment(Config().replace(job={"execution_mode": "process", "parallelism": 1, "flink": LONG_BUNDLES}))
    elements = env.from_collection([FIRST, SECOND], type_info=Types.STRING())
    seen = tmp_path / "seen"
    with elements.map(_Second(seen), output_type=Types.STRING()).execute_and_collect("bundles") as answers:
        assert next(answers) == FIRST
        seen.touch()
        assert next(answers) == SECOND
