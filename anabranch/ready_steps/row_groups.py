"""Divides the rows of a batch into runs of the model, and puts the outputs back in their order."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from anabranch.ready_steps.options import ROWS
from anabranch.schemas.errors import UnreadableInput
from anabranch.schemas.tensors import Array


def group_rows(keys: Sequence[Hashable], *, alone: bool) -> list[list[int]]:
    """Return the rows of each run: those of one key, or each alone; raise UnreadableInput without rows."""
    if not keys:
        raise UnreadableInput("the request has no rows: send one or more")
    if alone:
        return [[row] for row in range(len(keys))]
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def join_rows(
    runs: Sequence[Mapping[str, Array]], outputs_of: Callable[[Mapping[str, Array]], Mapping[str, Array]]
) -> dict[str, Array]:
    """Return the outputs of all runs, in the order of `ROWS`; runs without it are in order."""
    made = [outputs_of(run) for run in runs]
    if len(made) == 1:
        return dict(made[0])
    joined = {name: np.concatenate([each[name] for each in made]) for name in made[0]}
    if all(ROWS in run for run in runs):
        order = np.argsort(np.concatenate([run[ROWS] for run in runs]), kind="stable")
        joined = {name: array[order] for name, array in joined.items()}
    return joined
