"""Nodes as boxes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.partition.report.layout import condense


@st.composite
def graphs(draw: st.DrawFn) -> dict[int, set[int]]:
    size = draw(st.integers(1, 30))
    return {node: draw(st.sets(st.integers(node + 1, size), max_size=3)) - {size} for node in range(size)}


@pytest.mark.slow
@settings(deadline=None)
@given(graphs(), st.integers(1, 6), st.integers(1, 4))
def test_condense_each_node_is_in_one_box_before_its_users(after: dict[int, set[int]], columns: int, rows: int) -> None:
    boxes = condense(list(after), after, columns, rows)
    assert sorted(node for box in boxes for node in box.nodes) == list(after)
    where = {node: place for place, box in enumerate(boxes) for node in box.nodes}
    for node, users in after.items():
        for user in users:
            assert where[node] == where[user] or where[user] in boxes[where[node]].after
    for box in boxes:
        assert all(boxes[user].column > box.column for user in box.after)
    assert len({(box.column, box.row) for box in boxes}) == len(boxes)
    assert max(box.column for box in boxes) < columns


def test_condense_run_of_nodes_is_one_box() -> None:
    # 0 -> 1 -> 2 -> 4 -> 5, and 0 -> 3 -> 4
    after = {0: {1, 3}, 1: {2}, 2: {4}, 3: {4}, 4: {5}, 5: set()}
    boxes = condense(list(after), after, columns=8, rows=4)
    assert [(box.nodes, box.column, box.row) for box in boxes] == [
        ([0], 0, 0),
        ([1, 2], 1, 0),
        ([3], 1, 1),
        ([4, 5], 2, 0),
    ]
    narrow = condense(list(after), after, columns=8, rows=1)
    assert [box.nodes for box in narrow] == [[0], [1, 2, 3], [4, 5]]
    assert [box.nodes for box in condense(list(after), after, columns=2, rows=1)] == [[0, 1, 2, 3], [4, 5]]


def test_box_label_has_most_frequent_operators() -> None:
    (box,) = condense([0, 1, 2, 3], {0: {1}, 1: {2}, 2: {3}, 3: set()}, columns=1, rows=1)
    assert box.label(["Conv", "Relu", "Conv", "Add"]) == ["2 Conv", "Relu +1"]
    assert box.label(["Conv"] * 4) == ["4 Conv"]
