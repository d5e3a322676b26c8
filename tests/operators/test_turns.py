"""Whose turn it is: the requests of others wait for the task's own, but not for ever."""

from threading import Thread

from operators.turns import turn_of


def test_the_operators_of_a_task_share_its_turn_and_others_have_theirs() -> None:
    turn = turn_of("job", 0)
    assert turn_of("job", 0) is turn
    assert turn_of("job", 1) is not turn
    assert turn_of("other", 0) is not turn


def test_others_wait_until_the_lane_is_empty() -> None:
    turn = turn_of("job", 0)
    seen: list[bool] = []

    def wait() -> None:
        turn.wait()
        seen.append(turn.lane_is_busy)

    turn.lane_is_busy = True
    waiting = Thread(target=wait)
    waiting.start()
    turn.lane_is_busy = False
    waiting.join()
    assert seen == [False]


def test_others_have_waited_enough_at_some_time() -> None:
    turn = turn_of("job", 0)
    turn.lane_is_busy = True
    turn.wait()
    assert turn.lane_is_busy
