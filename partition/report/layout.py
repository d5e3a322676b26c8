r"""Layout of a stage's nodes in few boxes: runs, or blocks between narrow places.

conv -> relu -> conv -> add -> relu         [conv relu conv] -> [add relu]         [conv relu conv add relu]
  \----------------------^                          \---------------^
nodes                                       runs                                   a block
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Box:
    """Box of some nodes.

    Attributes:
        after: Indices of the next boxes.
        column, row: Position, after the boxes that it needs.
    """

    nodes: list[int]
    after: set[int] = field(default_factory=set)
    column: int = 0
    row: int = 0

    def label(self, op_types: Sequence[str], most: int = 2) -> list[str]:
        """List its most frequent operators."""
        counted = Counter(op_types[node] for node in self.nodes).most_common()
        shown = [f"{count} {name}" if count > 1 else name for name, count in counted[:most]]
        rest = sum(count for _, count in counted[most:])
        return [*shown[:-1], f"{shown[-1]} +{rest}"] if rest else shown


def condense(nodes: Sequence[int], after: Mapping[int, set[int]], columns: int, rows: int) -> list[Box]:
    """Make boxes in topological order, for a grid.

    Args:
        nodes: In topological order.
        after: Successors of each node.
    """
    boxes = _placed(_joined([[node] for node in nodes], after, _runs(nodes, after)))
    if _fits(boxes, columns, rows):
        return boxes
    boxes = _placed(_joined([box.nodes for box in boxes], after, _blocks(boxes)))
    if not _fits(boxes, columns, rows):  # a line by now
        size = -(-len(boxes) // columns)
        boxes = _placed(_joined([box.nodes for box in boxes], after, [place // size for place in range(len(boxes))]))
    return boxes


def _fits(boxes: Sequence[Box], columns: int, rows: int) -> bool:
    return max(box.column for box in boxes) < columns and max(box.row for box in boxes) < rows


def _joined(parts: Sequence[Sequence[int]], after: Mapping[int, set[int]], group_of: Sequence[int]) -> list[Box]:
    boxes = {group: Box([]) for group in dict.fromkeys(group_of)}
    places = {group: place for place, group in enumerate(boxes)}
    where: dict[int, int] = {}
    for part, group in zip(parts, group_of, strict=True):
        boxes[group].nodes += part
        where |= dict.fromkeys(part, places[group])
    found = list(boxes.values())
    for place, box in enumerate(found):
        box.after = {where[user] for node in box.nodes for user in after[node]} - {place}
    return found


def _runs(nodes: Sequence[int], after: Mapping[int, set[int]]) -> list[int]:
    before: dict[int, set[int]] = {node: set() for node in nodes}
    for node in nodes:
        for user in after[node]:
            before[user].add(node)
    group: dict[int, int] = {}
    for node in nodes:
        [*needs] = before[node]
        goes_on = len(needs) == 1 and len(after[needs[0]]) == 1
        group[node] = group[needs[0]] if goes_on else node
    return [group[node] for node in nodes]


def _blocks(boxes: Sequence[Box]) -> list[int]:
    """Give each box the number of its block; boxes ordered with all others separate blocks."""
    reach = [0] * len(boxes)
    for place in reversed(range(len(boxes))):
        reach[place] = 1 << place
        for user in boxes[place].after:
            reach[place] |= reach[user]
    reached = [sum(reach[other] >> place & 1 for other in range(len(boxes))) for place in range(len(boxes))]
    groups, group = [], 0
    narrow = [reach[place].bit_count() + reached[place] == len(boxes) + 1 for place in range(len(boxes))]
    for place, alone in enumerate(narrow):
        if alone or (place and narrow[place - 1]):
            group += 1
        groups.append(group)
    return groups


def _placed(boxes: list[Box]) -> list[Box]:
    """Put boxes after those that they need."""
    for box in boxes:
        for user in box.after:
            boxes[user].column = max(boxes[user].column, box.column + 1)
    free_row: Counter[int] = Counter()
    for box in boxes:
        box.row = free_row[box.column]
        free_row[box.column] += 1
    return boxes


def edges(boxes: Sequence[Box]) -> list[tuple[Box, Box]]:
    """List the edges between boxes."""
    return [(box, boxes[user]) for box in boxes for user in sorted(box.after)]
