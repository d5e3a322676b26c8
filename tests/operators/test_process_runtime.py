"""ProcessRuntime: operators of a process share objects until the last of them is closed."""

import random
import threading
import weakref

import pytest

from anabranch.operators.runtime.process_runtime import Hold, ProcessRuntime


class Shared:
    """An object with destructor."""


class Resource:
    """Counts calls of `let_go`."""

    def __init__(self) -> None:
        self.ends = 0

    def let_go(self) -> None:
        self.ends += 1


def test_share_gives_holders_of_a_key_one_object() -> None:
    process = ProcessRuntime()
    first, second = process.acquire("job", 0), process.acquire("job", 0)
    shared = first.share("key", Shared)
    assert second.share("key", Shared) is shared
    assert second.share("other", Shared) is not shared
    third = process.acquire("other job", 0)
    assert third.share("key", Shared) is shared
    for hold in (first, second, third):
        hold.release()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_release_in_any_order_drops_the_object_last(order: tuple[int, int]) -> None:
    process = ProcessRuntime()
    holds = process.acquire("job", 0), process.acquire("job", 0)
    shared = weakref.ref(holds[0].share("key", Shared))
    holds[1].share("key", Shared)
    holds[order[0]].release()
    assert shared() is not None
    assert (process.holders("job"), process.is_shared("key")) == (1, True)
    holds[order[1]].release()
    assert shared() is None
    assert (process.holders("job"), process.is_shared("key")) == (0, False)


def test_release_twice_counts_once() -> None:
    process = ProcessRuntime()
    first, second = process.acquire("job", 0), process.acquire("job", 0)
    for hold in (first, second):
        hold.share("key", Shared)
    first.release()
    first.release()
    assert (process.holders("job"), process.is_shared("key")) == (1, True)
    second.release()
    assert not process.is_shared("key")


def test_share_twice_counts_once() -> None:
    process = ProcessRuntime()
    hold = process.acquire("job", 0)
    assert hold.share("key", Shared) is hold.share("key", Shared)
    hold.release()
    assert not process.is_shared("key")


def test_leaked_hold_warns_and_is_released() -> None:
    process = ProcessRuntime()
    holds = [process.acquire("job", 0)]
    holds[0].share("key", Shared)
    with pytest.warns(ResourceWarning, match="an operator of job 'job' was not closed"):
        holds.clear()
    assert (process.holders("job"), process.is_shared("key")) == (0, False)


def test_leaked_hold_in_a_locked_section_waits_for_it() -> None:
    process = ProcessRuntime()
    holds: list[Hold] = [process.acquire("job", 0)]
    holds[0].share("key", Shared)

    def lose_it_while_locked() -> None:
        with process._locked():
            holds.clear()
            assert process.is_shared("key")

    with pytest.warns(ResourceWarning):
        lose_it_while_locked()
    assert not process.is_shared("key")


def test_next_attempt_ends_the_holds_of_earlier_ones() -> None:
    process = ProcessRuntime()
    failed, other = process.acquire("job", 0), process.acquire("other", 0)
    mine, others = Resource(), Resource()
    failed.own(mine)
    other.own(others)
    shared = weakref.ref(failed.share("key", Shared))
    restarted = process.acquire("job", 1)
    assert (mine.ends, others.ends) == (1, 0)
    assert shared() is None
    assert (process.holders("job"), process.holders("other")) == (1, 1)
    again = restarted.share("key", Shared)
    failed.release()
    assert process.is_shared("key"), "a late close of a failed attempt changes nothing"
    assert restarted.share("key", Shared) is again
    assert mine.ends == 1
    restarted.release()
    other.release()


def test_next_execution_ends_the_holds_of_earlier_ones() -> None:
    process = ProcessRuntime()
    failed = [process.acquire("job", 2, "first") for _ in range(2)]
    other = process.acquire("other", 0, "first")
    resources = [Resource() for _ in range(3)]
    for hold, resource in zip([*failed, other], resources, strict=True):
        hold.own(resource)
    taken_over = [process.acquire("job", 0, "second") for _ in range(2)]
    assert [each.ends for each in resources] == [1, 1, 0]
    assert process.holders("job") == 2, "tasks of one execution keep each other's"
    following = Resource()
    taken_over[0].own(following)
    late = process.acquire("job", 5, "first")
    assert following.ends == 0, "a task of an ended execution opened late"
    process.acquire("job", 0, "third").release()
    assert following.ends == 1
    for hold in (*taken_over, late, other):
        hold.release()


def test_earlier_attempt_that_opens_late_ends_nothing() -> None:
    process = ProcessRuntime()
    restarted = process.acquire("job", 1)
    resource = Resource()
    restarted.own(resource)
    late = process.acquire("job", 0)
    assert resource.ends == 0
    assert late.share("key", Shared) is restarted.share("key", Shared)
    late.release()
    assert process.is_shared("key")
    restarted.release()


def test_share_after_the_attempt_ended_counts_no_holder() -> None:
    process = ProcessRuntime()
    failed = process.acquire("job", 0)
    restarted = process.acquire("job", 1)
    failed.share("key", Shared)
    assert not process.is_shared("key")
    restarted.release()


def test_share_failed_make_is_tried_again() -> None:
    process = ProcessRuntime()
    hold = process.acquire("job", 0)

    def fail() -> Shared:
        raise ValueError("not yet")

    with pytest.raises(ValueError, match="not yet"):
        hold.share("key", fail)
    assert not process.is_shared("key")
    assert isinstance(hold.share("key", Shared), Shared)
    hold.release()


def test_release_lets_destructors_use_the_registry() -> None:
    process = ProcessRuntime()
    hold = process.acquire("job", 0)
    weakref.finalize(hold.share("key", Shared), lambda: process.acquire("other", 0).release())
    hold.release()
    assert (process.holders("job"), process.holders("other")) == (0, 0)


def test_threads_that_open_and_close_leave_nothing() -> None:
    process = ProcessRuntime()
    errors: list[BaseException] = []

    def task(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(200):
                hold = process.acquire("job", 0)
                key = chance.randrange(3)
                assert hold.share(key, lambda key=key: [key]) == [key]  # type: ignore[misc]
                for _ in range(chance.randrange(1, 3)):
                    hold.release()
        except BaseException as error:  # noqa: BLE001 - the test raises it
            errors.append(error)

    threads = [threading.Thread(target=task, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert process.holders("job") == 0
    assert not any(map(process.is_shared, range(3)))
