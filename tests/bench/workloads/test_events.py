"""Payments of one size, and scored ones that are compared whole."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.harness.messages import ServeCommand
from bench.systems.anabranch_job import config_of
from bench.workloads.events import FRAUD, SCORE, EventCodec, EventFormat, ScoredEvents, add_fraud, features_of, payments
from bench.workloads.workload import Workload


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_fraud(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("form", ["json", "avro"])
@pytest.mark.parametrize("size_bytes", [200, 1000, 10_000])
def test_payments_have_one_size_and_different_scores(repository: Path, form: EventFormat, size_bytes: int) -> None:
    workload = payments(repository, form, size_bytes)
    assert workload.message_bytes == size_bytes
    event = EventCodec(form).read(workload.message(77))
    assert (event["id"], len(features_of(event))) == ("000000000077", 3)
    assert np.ptp(workload.answers) > 0.01


@pytest.mark.parametrize("form", ["json", "avro"])
def test_scored_event_is_read_and_compared_whole(repository: Path, tmp_path: Path, form: EventFormat) -> None:
    payments(repository, form, 1000).save(tmp_path / "workload.npz")
    workload = Workload.load(tmp_path / "workload.npz")
    codec, scored = EventCodec(form), ScoredEvents(workload)
    event = codec.read(workload.message(70))
    number, score = scored.read(codec.write({**event, SCORE: 0.25}))
    assert (number, score.tolist()) == (70, [0.25])
    for fault in ({"currency": "USD"}, {"id": "000000000071"}):
        with pytest.raises(ValueError, match="has changed"):
            scored.read(codec.write({**event, SCORE: 0.25, **fault}))
    with pytest.raises(ValueError, match="not a scored event"):
        scored.read(workload.message(70))


def test_answer_of_a_row_has_number_and_score_alone(repository: Path) -> None:
    rows = ScoredEvents(replace(payments(repository, "json", 200), wire="rows"))
    assert rows.read(b'{"id":"000000000003","score":0.5}')[0] == 3


@pytest.mark.parametrize("form", ["", "json", "avro"])
def test_job_scores_events_by_a_flow(repository: Path, form: EventFormat) -> None:
    command = ServeCommand(
        kind="anabranch",
        bootstrap_servers="127.0.0.1:1",
        requests_topic="a",
        responses_topic="b",
        errors_topic="c",
        group_id="d",
        repository=str(repository),
        events=form,
    )
    config = config_of(command)
    assert [(flow.source, flow.to, flow.model) for flow in config.flow] == [("a", "b", FRAUD)] * bool(form)
    assert (config.kafka.requests_topic == "a") == (not form)
