"""`infer` in a PyFlink job: each element once, in both modes, keyed or not, and through a savepoint on a cluster."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyflink.common import Encoder, TypeInformation, Types, WatermarkStrategy
from pyflink.datastream.connectors.file_system import FileSink, OutputFileConfig, RollingPolicy
from pyflink.datastream.connectors.number_seq import NumberSequenceSource

from anabranch.flink import ScoredStream, environment, infer
from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.stream_keying import VALUE_TYPE
from anabranch.jobs.control import JobControl
from anabranch.schemas.model import Batching, SessionOptions
from anabranch.stack.flink.cluster import FlinkCluster
from tests.docs.pages import ROOT, lines_of_own_job
from tests.flink.conftest import FIRST_THREAD, MODES
from tests.flink.slow_backend import SlowBackend

ELEMENTS = 3000
#: Elements that a source gives at once to each task, and the time of a batch of four.
QUICK, SLOW_S = 1000, 0.4


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


def texts_of(scored: ScoredStream, kind: TypeInformation) -> list[tuple[str, str]]:
    """Returns each element of a job as a text, with "good" or the code of its error."""
    as_text = kind == Types.STRING()
    good = scored.map(lambda each: ("good", each if as_text else bytes(each).decode()))
    failed = scored.failures.map(
        lambda failure: (failure.code, failure.element if as_text else failure.element.decode())
    )
    return list(good.union(failed).execute_and_collect("texts"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("thread", Types.STRING()),
        ("process", VALUE_TYPE),
        pytest.param("thread", VALUE_TYPE, marks=pytest.mark.long),
        pytest.param("process", Types.STRING(), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_infer_of_texts_and_bytes_gives_each_once(model_repository: Path, mode: str, kind: TypeInformation) -> None:
    env = environment(config(mode))
    as_text = kind == Types.STRING()
    numbers = env.from_collection(list(range(ELEMENTS)), type_info=Types.LONG())
    scored = infer(
        numbers.map(lambda number: f"ä{number}" if as_text else f"ä{number}".encode(), output_type=kind),
        model="double",
        repository=model_repository,
        inputs=lambda each: to_x({"n": int((each if as_text else each.decode()).removeprefix("ä"))}),
        outputs=lambda each, outputs: each + (f" {outputs['y'][1]:.0f}" if as_text else b" %d" % outputs["y"][1]),
        output_type=kind,
        uid="double",
        parallelism=2,
    )
    found = texts_of(scored, kind)
    assert sorted(pair for pair in found if pair[0] != "good") == [
        ("mapping_failed", "ä13"),
        ("mapping_failed", "ä14"),
    ]
    expected = [("good", f"ä{number} {2 * number + 2}") for number in range(ELEMENTS) if number not in (13, 14)]
    assert sorted(pair for pair in found if pair[0] == "good") == sorted(expected)


def event_of(number: int) -> str:
    """Returns an event in JSON, the first two at fault."""
    if number == 0:
        return '{"n": 0, "at": {}}'
    return json.dumps({"n": number, "at": {"x": number, "name": "ä"}}, ensure_ascii=False) if number > 1 else '{"n"'


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mode", "kind", "keyed"),
    [
        ("thread", VALUE_TYPE, True),
        ("process", Types.STRING(), False),
        pytest.param("thread", Types.STRING(), False, marks=pytest.mark.long),
        pytest.param("process", VALUE_TYPE, True, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_infer_of_fields_scores_each_event_once(
    model_repository: Path, mode: str, kind: TypeInformation, keyed: bool
) -> None:
    env = environment(config(mode))
    as_text = kind == Types.STRING()
    numbers = env.from_collection(list(range(ELEMENTS)), type_info=Types.LONG())
    events = numbers.map(lambda number: event_of(number) if as_text else event_of(number).encode(), output_type=kind)
    scored = infer(
        events.key_by(len) if keyed else events,
        model="double",
        repository=model_repository,
        inputs={"x": ("n", "at.x", "n", "n")},
        outputs={"at.y": "y[1]"},
        uid="double",
        parallelism=2,
    )
    found = texts_of(scored, kind)
    assert sorted(each for each in found if each[0] != "good") == [
        ("missing_field", event_of(0)),
        ("unreadable", event_of(1)),
    ]
    good_ones = sorted((json.loads(event) for kind, event in found if kind == "good"), key=lambda event: event["n"])
    assert good_ones == [
        {"n": number, "at": {"x": number, "name": "ä", "y": 2 * number + 2}} for number in range(2, ELEMENTS)
    ]


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


def then_slowly(number: int, folder: Path) -> int:
    """Passes the first elements of each task on at once, and the others at a source's pace until there is a gate."""
    if number % QUICK == 0:
        (folder / f"passed-{number}").touch()
    elif number % (2 * QUICK) > QUICK and not (folder / "gate").exists():
        time.sleep(0.02)
    return number


@pytest.mark.recovery
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", FIRST_THREAD)
def test_infer_from_its_savepoint_gives_each_element_once(
    model_repository: Path, tmp_path: Path, mode: str, cluster: FlinkCluster
) -> None:
    out, gate = tmp_path / "out", tmp_path / "gate"

    def start(**flink: str) -> Any:
        # A barrier waits for the elements of a bundle, whose default size keeps it behind all elements of this source.
        flink = {"python.fn-execution.bundle.size": "50", **flink}
        job = {"delivery": "exactly-once", "checkpoint_dir": (tmp_path / "checkpoints").as_uri(), "flink": flink}
        # Measurements of other tests do not hold for slow sessions.
        defaults = {"batching": Batching(max_rows=4), "session": SessionOptions(warm_up_rows=2)}
        settings = config(mode, **job).replace(defaults=defaults)
        env = environment(settings, cluster.url)
        numbers = env.from_source(NumberSequenceSource(1, 4 * QUICK), WatermarkStrategy.no_watermarks(), "numbers")
        scored = infer(
            numbers.uid("numbers").map(lambda number: then_slowly(number, tmp_path), output_type=Types.LONG()),
            model="tens",
            repository=model_repository,
            inputs=lambda number: {"i": number},
            outputs=lambda number, outputs: f"{number} {outputs['y']:.0f}",
            output_type=Types.STRING(),
            uid="tens",
            parallelism=2,
            config=settings,
            backend=SlowBackend(batch_s=SLOW_S, until=str(gate)),
        )
        sink = FileSink.for_row_format(str(out), Encoder.simple_string_encoder())
        sink = sink.with_rolling_policy(RollingPolicy.on_checkpoint_rolling_policy())
        named = OutputFileConfig.builder().with_part_suffix(".txt").build()
        scored.sink_to(sink.with_output_file_config(named).build()).uid("files")
        return env.execute_async(f"tens-{mode}")

    def lines() -> list[str]:
        parts = [path for path in out.rglob("*.txt") if not path.name.startswith(".")]
        return [line for path in parts for line in path.read_text().splitlines()]

    start()
    end = time.monotonic() + 120
    while not lines() or not all((tmp_path / f"passed-{number}").exists() for number in (QUICK, 3 * QUICK)):
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.1)
    control = JobControl(cluster.rest)
    savepoint = control.stop(control.find(f"tens-{mode}"))
    answered = len(lines())
    assert 0 < answered < 2 * QUICK, "no element was waiting"
    gate.touch()
    start(**{"execution.state-recovery.path": savepoint}).get_job_execution_result().result()
    numbers = sorted(tuple(map(int, line.split())) for line in lines())
    assert numbers == [(number, 10 * number) for number in range(1, 4 * QUICK + 1)]


@pytest.mark.long
@pytest.mark.timeout(200)
def test_page_of_an_own_job_names_colours() -> None:
    named = dict(eval(line.partition("> ")[2] or line) for line in lines_of_own_job(0) if line.endswith(")"))
    assert sorted(named) == list(range(1000))
    assert named[0] == "blue"


@pytest.mark.timeout(200)
def test_example_of_an_own_job_runs_on_a_cluster(cluster: FlinkCluster) -> None:
    command = [sys.executable, "-m", "examples.own_job.score", cluster.url]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=True)
    states = {job["name"]: job["state"] for job in cluster.rest.get("/jobs/overview")["jobs"]}
    assert states["own job"] == "FINISHED"


@pytest.mark.parametrize("above", ["java", "python"])
def test_infer_shares_a_task_with_java_but_not_python(model_repository: Path, above: str) -> None:
    """In thread mode, two Python operators in one thread wait for each other's interpreter lock for ever."""
    env = environment(Config(), "http://host.invalid:8081")
    texts = env.from_collection(["{}"], type_info=Types.STRING())
    stream = texts if above == "java" else texts.map(str.strip, output_type=Types.STRING())
    infer(stream, model="double", repository=model_repository, inputs={"x": "x"}, outputs={"y": "y"}, uid="double")
    graph: Any = env._generate_stream_graph(clear_transformations=True)
    tasks = [str(each.getName()) for each in graph.getJobGraph().getVerticesAsArray()]
    [serving] = [each for each in tasks if "double/serve" in each]
    assert ("double/frame" in serving) == (above == "java")


def test_infer_of_an_unknown_model_is_refused(model_repository: Path) -> None:
    with pytest.raises(ConfigError, match="unknown model 'fraud'; available: careful"):
        infer(None, model="fraud", repository=model_repository, inputs=to_x, outputs=with_y, uid="x")


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (Types.STRING(), {"outputs": with_y}, "inputs names fields, but outputs is a function"),
        (Types.STRING(), {"inputs": to_x}, "outputs names fields, but inputs is a function"),
        (Types.LONG(), {}, "which elements of Python do not have: give the stream events in JSON"),
        (Types.STRING(), {"output_type": VALUE_TYPE}, "leave output_type out"),
        (Types.STRING(), {"inputs": {"x": ["a", "b"]}}, "infer 'double'.inputs.x has 2 fields"),
        (Types.STRING(), {"outputs": {"score": "z"}}, "infer 'double'.outputs.score: unknown output 'z'"),
    ],
)
def test_infer_of_fields_names_what_does_not_fit(
    model_repository: Path, kind: TypeInformation, changed: dict[str, Any], message: str
) -> None:
    stream = environment(config("thread")).from_collection(["1"] if kind == Types.STRING() else [1], type_info=kind)
    fields: dict[str, Any] = {"inputs": {"x": ["a", "b", "c", "d"]}, "outputs": {"score": "y[1]"}}
    with pytest.raises(ConfigError) as refused:
        infer(stream, model="double", repository=model_repository, uid="double", **{**fields, **changed})
    assert message in str(refused.value)
