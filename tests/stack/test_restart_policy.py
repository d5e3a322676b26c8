import pytest

from anabranch.stack.restart_policy import RestartLimits, RestartPolicy

LIMITS = RestartLimits(max_restarts=4, window_s=60, first_pause_s=1, max_pause_s=3)


def test_restart_policy_pauses_double_up_to_the_maximum() -> None:
    policy = RestartPolicy(LIMITS)
    assert [policy.on_end(now) for now in (0, 10, 20, 30)] == [1, 12, 23, 33]


def test_restart_policy_limit_in_window_gives_up() -> None:
    policy = RestartPolicy(LIMITS)
    assert None not in [policy.on_end(now) for now in (0, 10, 20, 30)]
    assert policy.on_end(40) is None
    assert policy.on_end(60.5) is None, "the first restart was at 1"


def test_restart_policy_after_window_starts_anew() -> None:
    policy = RestartPolicy(LIMITS)
    assert None not in [policy.on_end(now) for now in (0, 10, 20, 30)]
    assert policy.on_end(61) == 64, "one restart has left the window"
    assert policy.on_end(1000) == 1001


@pytest.mark.parametrize("gap_s", [16, 100])
def test_restart_policy_rare_ends_never_give_up(gap_s: float) -> None:
    policy = RestartPolicy(LIMITS)
    assert all(policy.on_end(number * gap_s) is not None for number in range(50))


def test_restart_policy_zero_restarts_gives_up_at_once() -> None:
    assert RestartPolicy(RestartLimits(max_restarts=0)).on_end(0) is None
