"""From which state a job starts, and which of the older ones may go."""

import pytest

from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.state.saved_state import SavedState, check_state_is_kept, newest_first, surplus


def checkpoint(number: int, taken_at_ms: int = 0, *, job: str = "a", size_bytes: int = 1) -> SavedState:
    return SavedState(
        path=f"s/{job}/chk-{number}",
        kind="checkpoint",
        taken_at_ms=taken_at_ms or number * 1000,
        number=number,
        size_bytes=size_bytes,
    )


def savepoint(taken_at_ms: int, kind: str = "stopped", size_bytes: int = 1) -> SavedState:
    path = f"s/{kind}/savepoint-{taken_at_ms}"
    return SavedState(path=path, kind=kind, taken_at_ms=taken_at_ms, size_bytes=size_bytes)  # type: ignore[arg-type]


def test_newest_first_starts_with_the_last_checkpoint() -> None:
    states = [checkpoint(9), checkpoint(11), checkpoint(10)]
    assert [state.number for state in newest_first(states)] == [11, 10, 9]


def test_newest_first_half_written_checkpoint_is_passed_over() -> None:
    assert newest_first([checkpoint(1), checkpoint(2, size_bytes=0)]) == [checkpoint(1)]
    assert newest_first([savepoint(9000, size_bytes=0)]) == []


@pytest.mark.parametrize("kind", ["stopped", "savepoint"])
def test_newest_first_newer_savepoint_wins(kind: str) -> None:
    assert newest_first([checkpoint(1), savepoint(1001, kind)])[0].kind == kind
    assert newest_first([checkpoint(2), savepoint(1001, kind)])[0].kind == "checkpoint"


def test_newest_first_savepoint_wins_within_one_tick() -> None:
    assert newest_first([savepoint(1000), checkpoint(1)])[0].kind == "stopped"


def test_newest_first_later_job_wins_with_a_lower_number() -> None:
    assert newest_first([checkpoint(90, 1000), checkpoint(3, 2000, job="b")])[0].number == 3


def test_newest_first_within_one_tick_goes_by_number() -> None:
    assert newest_first([checkpoint(9, 1000), checkpoint(10, 1000)])[0].number == 10


def test_newest_first_states_before_fresh_start_are_left_out() -> None:
    assert newest_first([checkpoint(1), checkpoint(2)], fresh_since_ms=1500) == [checkpoint(2)]
    assert newest_first([checkpoint(1)], fresh_since_ms=1500) == []
    # S3 counts in seconds.
    assert newest_first([checkpoint(1)], fresh_since_ms=1000) == []


def test_claim_mode_leaves_only_the_users_savepoints_untouched() -> None:
    modes = [state.claim_mode for state in (checkpoint(1), savepoint(1), savepoint(1, "savepoint"))]
    assert modes == ["CLAIM", "CLAIM", "NO_CLAIM"]


def test_surplus_keeps_start_one_fallback_and_the_users() -> None:
    users = savepoint(10, "savepoint")
    half = checkpoint(0, taken_at_ms=1, size_bytes=0)
    old, fallback, start, later = (checkpoint(number) for number in (7, 8, 9, 10))
    assert surplus([later, start, fallback, old, half, users], start) == [old, half]


def test_surplus_removes_older_savepoints_of_stopped_jobs() -> None:
    assert surplus([savepoint(1), savepoint(2), checkpoint(3), checkpoint(4)], checkpoint(4)) == [
        savepoint(1),
        savepoint(2),
    ]


@pytest.mark.parametrize(
    ("delivery", "in_this_process", "directory", "refused"),
    [
        ("exactly-once", True, "", True),
        ("exactly-once", False, "", True),
        ("at-least-once", False, "", True),
        ("at-least-once", True, "", False),
        ("exactly-once", False, "file:///c", False),
    ],
)
def test_job_without_a_place_for_its_state_is_refused(
    delivery: str, in_this_process: bool, directory: str, refused: bool
) -> None:
    config = Config().replace(job={"delivery": delivery, "checkpoint_dir": directory})
    if not refused:
        check_state_is_kept(config, in_this_process=in_this_process)
        return
    with pytest.raises(ConfigError, match=r"job\.checkpoint_dir is missing") as caught:
        check_state_is_kept(config, in_this_process=in_this_process)
    assert "\n" not in str(caught.value)


def test_state_url_is_the_folder_of_the_jobs_name() -> None:
    assert Config().job.state_url == ""
    config = Config().replace(job={"checkpoint_dir": "s3://bucket/checkpoints/", "name": "fraud"})
    assert config.job.state_url == "s3://bucket/checkpoints/fraud"


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "-x", "a\nb"])
def test_job_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"job\.name is"):
        Config().replace(job={"name": name})


def test_checkpoint_dir_among_flinks_options_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"write job\.checkpoint_dir"):
        Config().replace(job={"flink": {"execution.checkpointing.dir": "file:///x"}})
