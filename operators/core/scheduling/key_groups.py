"""Chooses a key for each task, so that a keyed stream stays in its task.

`keys_by_group` has one key per key group. The arithmetic is Flink's `KeyGroupRangeAssignment`.
"""

from collections.abc import Sequence


def first_key_group(task: int, parallelism: int, max_parallelism: int) -> int:
    """Compute the first key group of a task."""
    return (task * max_parallelism + parallelism - 1) // parallelism


def task_key(task: int, parallelism: int, keys_by_group: Sequence[int]) -> int:
    """Look up the key of a task."""
    return keys_by_group[first_key_group(task, parallelism, len(keys_by_group))]
