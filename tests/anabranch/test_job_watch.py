"""The watch of a job's counters, over a Flink that shows them late, as the real one does."""

from typing import Any, cast

import pytest

from anabranch.commands.stack import shown_jobs
from anabranch.jobs.activity import ActivityWindow
from anabranch.jobs.watch import JobWatch
from anabranch.stack.errors import NotRunning
from anabranch.stack.flink.rest import FlinkJob, FlinkRest
from tests.anabranch.test_job_activity import counters

ONE_BATCH = counters(1)


class LateFlink:
    """A job that answers `per_s` batches of two requests each second, and a Flink that repeats counters."""

    url = "http://flink"

    def __init__(self, per_s: float, refresh_s: float, begun_s: float = 1000.0) -> None:
        self.now_s = begun_s
        self.per_s = per_s
        self.jobs_shown = [FlinkJob("1", "job", "RUNNING", 0)]
        self._refresh_s = refresh_s
        self._fetched_s = 0.0
        self._shown: dict[str, float] = {}

    def jobs(self) -> list[FlinkJob]:
        return self.jobs_shown

    def get(self, path: str) -> Any:
        assert path == "/jobmanager/config"
        return [{"key": "metrics.fetcher.update-interval", "value": f"{self._refresh_s * 1000:.0f}"}]

    def sums(self, job_id: str, choose: Any) -> dict[str, float]:
        assert job_id == self.jobs_shown[0].job_id
        shown = self._shown
        if self.now_s - self._fetched_s > self._refresh_s:
            self._fetched_s = self.now_s
            batches = int(self.now_s * self.per_s)
            self._shown = {name: ONE_BATCH[name] * batches for name in choose(ONE_BATCH)}
        return shown

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


def watch(flink: LateFlink) -> JobWatch:
    return JobWatch(cast("FlinkRest", flink), lambda: flink.now_s, flink.wait)


@pytest.mark.parametrize("refresh_s", [1.0, 10.0])
@pytest.mark.parametrize("per_s", [33.0, 1.0])
def test_watch_steady_rate_is_told_at_every_look(per_s: float, refresh_s: float) -> None:
    flink = LateFlink(per_s, refresh_s)
    looker = watch(flink)
    assert looker.look() is None
    looks = []
    for _ in range(40):
        flink.wait(2.0)
        if (seen := looker.look()) is not None:
            [model] = seen.models
            looks.append((model.requests_per_s, seen.seconds))
    # The first window of a slow Flink may hold what it had not shown before.
    assert len(looks) >= 30
    for rate, seconds in looks[10:]:
        # One batch may be on either side.
        assert abs(rate - 2 * per_s) * seconds <= 2 + 0.25 * 2 * per_s * seconds, looks


def test_watch_first_interval_has_none_of_the_past() -> None:
    flink = LateFlink(1.0, 1.0)
    looker = watch(flink)
    looker.look()
    flink.wait(2.0)
    seen = looker.look()
    assert seen is not None
    assert sum(model.requests_per_s for model in seen.models) * seen.seconds < 10, "2,000 were answered before"


def test_watch_other_job_begins_anew() -> None:
    flink = LateFlink(1.0, 1.0)
    looker = watch(flink)
    looker.look()
    flink.jobs_shown = [FlinkJob("2", "job", "RUNNING", 1), *flink.jobs_shown]
    assert looker.look() is None
    flink.jobs_shown = [FlinkJob("2", "job", "FAILED", 1)]
    with pytest.raises(NotRunning):
        looker.look()


def test_window_idle_job_is_told_after_the_refresh() -> None:
    window = ActivityWindow(10.0)
    assert window.add(0.0, counters(5)) is None
    first = window.add(4.0, counters(9))
    assert first is not None
    assert window.add(8.0, counters(9)) is first, "Flink may repeat what it fetched at 4 s"
    idle = window.add(15.0, counters(9))
    assert idle is not None
    assert (idle.models, idle.seconds) == ([], 11.0)


def test_status_ended_jobs_are_shown_only_without_others() -> None:
    ended, older, running = (
        FlinkJob("1", "a", "FAILED", 3),
        FlinkJob("2", "a", "CANCELED", 2),
        FlinkJob("3", "b", "RUNNING", 1),
    )
    assert shown_jobs([ended, older, running]) == [running]
    assert shown_jobs([ended, older]) == [ended]
    assert shown_jobs([]) == []
