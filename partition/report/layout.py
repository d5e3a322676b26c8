r"""A stage's nodes as few boxes: what runs in a row is one; where that is too many, what lies between narrow places is.

conv -> relu -> conv -> add -> relu         [conv relu conv] -> [add relu]         [conv relu conv add relu]
  \----------------------^                          \---------------^
nodes                                       runs                                   a block
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Box:
    """Some nodes.

    Attributes:
        nodes: Their numbers.
        after: Places of the boxes that come next.
        column, row: Its place: every box that it needs is in an earlier column.
    """

    nodes: list[int]
    after: set[int] = field(default_factory=set)
    column: int = 0
    row: int = 0

    def label(self, op_types: Sequence[str], most: int = 2) -> list[str]:
        """Its operators, the most frequent first, a line each."""
        counted = Counter(op_types[node] for node in self.nodes).most_common()
        shown = [f"{count} {name}" if count > 1 else name for name, count in counted[:most]]
        rest = sum(count for _, count in counted[most:])
        return [*shown[:-1], f"{shown[-1]} +{rest}"] if rest else shown


def condense(nodes: Sequence[int], after: Mapping[int, set[int]], columns: int, rows: int) -> list[Box]:
    """Boxes in so many columns and rows at most, in an order in which they can run.

    Args:
        nodes: Of one stage, in an order in which they can run.
        after: For each, the nodes of the stage that need it.
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
    """A box for each group of parts."""
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
    """For each node, which run it is in."""
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
    """For each box, its block: a box that all others come before or after is one, and so is all between two of them."""
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
    """The boxes, each in the column after those that it needs, and under those that are there."""
    for box in boxes:
        for user in box.after:
            boxes[user].column = max(boxes[user].column, box.column + 1)
    free_row: Counter[int] = Counter()
    for box in boxes:
        box.row = free_row[box.column]
        free_row[box.column] += 1
    return boxes


def edges(boxes: Sequence[Box]) -> list[tuple[Box, Box]]:
    """Which box leads to which."""
    return [(box, boxes[user]) for box in boxes for user in sorted(box.after)]
