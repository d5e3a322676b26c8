"""Schemathesis makes up requests from the gateway's own OpenAPI file: each answer is as that file says."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gateway.conftest import Served, start

__all__ = ["start"]

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
EXAMPLES = 6


@pytest.mark.timeout(300)
def test_answers_to_generated_requests_are_as_described(
    start: Callable[..., Served], schemathesis_python: Path, tmp_path: Path
) -> None:
    served = start(timeout_s=20.0)
    # The fake job answers one request after the other.
    served.release.set()
    description = f"{served.url}/v2/docs/dataplane.json"
    tool = schemathesis_python.with_name("st")
    options = ["--checks", CHECKS, "--max-examples", str(EXAMPLES), "--seed", "1", "--request-timeout", "30"]
    ran = subprocess.run(
        [str(tool), "run", description, *options, "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-10_000:]
    assert len(served.job.requests) > EXAMPLES
