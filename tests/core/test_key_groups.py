"""Keys of tasks are in their own key groups, by Flink's documented arithmetic."""

import pytest

from anabranch.operators.core.scheduling.key_groups import first_key_group, task_key


def flink_range(task: int, parallelism: int, max_parallelism: int) -> range:
    """`KeyGroupRangeAssignment.computeKeyGroupRangeForOperatorIndex`."""
    start = (task * max_parallelism + parallelism - 1) // parallelism
    end = ((task + 1) * max_parallelism - 1) // parallelism
    return range(start, end + 1)


def flink_task(key_group: int, parallelism: int, max_parallelism: int) -> int:
    """`KeyGroupRangeAssignment.computeOperatorIndexForKeyGroup`."""
    return key_group * parallelism // max_parallelism


@pytest.mark.parametrize("max_parallelism", [128, 129, 256, 1000, 32_768])
def test_task_key_is_in_the_range_of_its_task(max_parallelism: int) -> None:
    keys_by_group = [group * 7 + 3 for group in range(max_parallelism)]  # any keys, one for each group
    for parallelism in range(1, 129):
        keys = set()
        for task in range(parallelism):
            group = first_key_group(task, parallelism, max_parallelism)
            assert group in flink_range(task, parallelism, max_parallelism)
            assert flink_task(group, parallelism, max_parallelism) == task
            assert task_key(task, parallelism, keys_by_group) == keys_by_group[group]
            keys.add(keys_by_group[group])
        assert len(keys) == parallelism


def test_task_key_after_a_rescale_belongs_to_one_task() -> None:
    for before in (1, 2, 3, 8):
        for after in (1, 2, 5, 128):
            for task in range(before):
                group = first_key_group(task, before, 128)
                owners = [t for t in range(after) if group in flink_range(t, after, 128)]
                assert owners == [flink_task(group, after, 128)]
