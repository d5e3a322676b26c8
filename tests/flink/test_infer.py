"""`infer` in a PyFlink job: each element once, in both modes, keyed or not, and on a cluster."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.flink import environment, infer
from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ConfigError
from anabranch.stack.flink.cluster import FlinkCluster
from tests.docs.pages import ROOT, blocks
from tests.flink.conftest import MODES

ELEMENTS = 3000


def config(mode: str, **job: Any) -> Config:
    return Config().replace(job={"execution_mode": mode, "parallelism": 2, "checkpoint_interval_ms": 500, **job})


def to_x(element: dict[str, Any]) -> dict[str, Any]:
    number = element["n"]
    # To warn, numpy takes the interpreter's lock by itself.
    np.log(np.zeros(1))
    if number == 13:
        raise ValueError("thirteen")
    return {"x": [number] * (3 if number == 14 else 4)}


def with_y(element: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    return {**element, "y": float(outputs["y"][1])}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mode", "keyed"),
    [
        ("thread", True),
        ("process", False),
        pytest.param("thread", False, marks=pytest.mark.long),
        pytest.param("process", True, marks=pytest.mark.long),
    ],
)
def test_infer_of_a_stream_gives_each_element_once(model_repository: Path, mode: str, keyed: bool) -> None:
    env = environment(config(mode))
    elements = env.from_collection([{"n": number} for number in range(ELEMENTS)])
    stream = elements.key_by(lambda element: element["n"] % 7) if keyed else elements
    scored = infer(
        stream,
        model="double",
        repository=model_repository,
        inputs=to_x,
        outputs=with_y,
        uid="double",
        parallelism=2,
    )
    good = scored.map(lambda element: ("good", element))
    failed = scored.failures.map(lambda failure: ("failed", tuple(failure)))
    found = list(good.union(failed).execute_and_collect("infer"))
    good_ones = sorted((element["n"], element["y"]) for kind, element in found if kind == "good")
    assert good_ones == [(number, 2.0 * number + 2) for number in range(ELEMENTS) if number not in (13, 14)]
    failures = sorted((failure for kind, failure in found if kind == "failed"), key=lambda each: each[0]["n"])
    assert [(element["n"], code) for element, code, _ in failures] == [(13, "mapping_failed"), (14, "mapping_failed")]
    assert failures[0][2] == "inputs raised ValueError: thirteen"
    assert "shape [3], expected [4]" in failures[1][2]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_infer_with_an_ensemble_merges_its_members(model_repository: Path, mode: str) -> None:
    env = environment(config(mode))
    rated = infer(
        env.from_collection(list(range(200))),
        model="strict",
        repository=model_repository,
        inputs=lambda number: {"i": number % 10},
        outputs=lambda number, outputs: (number, float(outputs["y"])),
        uid="rate",
        parallelism=2,
    )
    both = rated.map(lambda pair: ("good", pair)).union(rated.failures.map(lambda each: ("failed", each.element)))
    found = list(both.execute_and_collect("ensemble"))
    good = sorted(element for kind, element in found if kind == "good")
    assert good == [(number, 10.0 * (number % 10)) for number in range(200) if number % 10 < 8]
    assert sorted(element for kind, element in found if kind == "failed") == [n for n in range(200) if n % 10 >= 8]


@pytest.mark.long
@pytest.mark.timeout(200)
def test_page_of_an_own_job_names_colours() -> None:
    [block] = [block for block in blocks(ROOT / "docs/how-to/own-job.md") if block.language == "python"]
    command = [sys.executable, "-c", block.text]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=True)
    named = dict(eval(line.partition("> ")[2] or line) for line in ran.stdout.splitlines() if line.endswith(")"))
    assert sorted(named) == list(range(1000))
    assert named[0] == "blue"


@pytest.mark.timeout(200)
def test_example_of_an_own_job_runs_on_a_cluster(cluster: FlinkCluster) -> None:
    command = [sys.executable, "-m", "examples.own_job.score", cluster.url]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=True)
    states = {job["name"]: job["state"] for job in cluster.rest.get("/jobs/overview")["jobs"]}
    assert states["own job"] == "FINISHED"


def test_infer_of_an_unknown_model_is_refused(model_repository: Path) -> None:
    with pytest.raises(ConfigError, match="unknown model 'fraud'; available: careful"):
        infer(None, model="fraud", repository=model_repository, inputs=to_x, outputs=with_y, uid="x")
