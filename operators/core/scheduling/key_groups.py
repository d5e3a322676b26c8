"""Which key belongs to which task, so that a stream can be keyed without leaving its task.

Flink gives a key to the task whose range of key groups holds the key's group. A lane is a key chosen the other way
round: by the task. `keys_by_group` names one key for every key group; a task takes the first of its own range, also
right after the job was rescaled. Arithmetic as in Flink's `KeyGroupRangeAssignment`.
"""

from collections.abc import Sequence


def first_key_group(task: int, parallelism: int, max_parallelism: int) -> int:
    """The first key group that belongs to a task."""
    return (task * max_parallelism + parallelism - 1) // parallelism


def lane_of(task: int, parallelism: int, keys_by_group: Sequence[int]) -> int:
    """The key with which a task keeps what it keeps."""
    return keys_by_group[first_key_group(task, parallelism, len(keys_by_group))]
