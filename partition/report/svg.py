"""Draws a plan as SVG: stages with their nodes and costs, and the tensors of each cut; light or dark as the system."""

from collections.abc import Iterator, Sequence
from html import escape

from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.planning.placement import Placement, PlannedStage
from anabranch.partition.profiling.costs import CostGraph
from anabranch.partition.report.layout import Box, condense, edges

_WIDTH, _MARGIN = 1080, 20
_COLUMNS, _ROWS = 8, 4
_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y = 82, 44, 12, 8
_NAME_WIDTH = 124
_GRAPH_LEFT = _MARGIN + _NAME_WIDTH
_BARS_LEFT = _GRAPH_LEFT + _COLUMNS * (_BOX_WIDTH + _GAP_X) + 14
_BARS_WIDTH = _WIDTH - _MARGIN - _BARS_LEFT - 62
_HEAD, _CUT, _PADDING = 74, 34, 14
_HUES = ("#0b6e99", "#c2571a", "#3f7d4a", "#8a4fa3", "#a3812a", "#b03a5b")

_STYLE = """
text { font: 12px system-ui, 'DejaVu Sans', sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .strong { font-weight: 600 } .small { font-size: 10px }
.faint { fill: #59636e } .page { fill: #ffffff } .box { fill: #ffffff } .track { fill: #59636e; fill-opacity: .16 }
.line { stroke: #59636e; fill: none } .head { fill: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .faint { fill: #9da7b1 } .page { fill: #0d1117 } .box { fill: #161b22 }
  .track { fill: #9da7b1; fill-opacity: .2 } .line { stroke: #9da7b1 } .head { fill: #9da7b1 }
}
"""


def draw(graph: Graph, costs: CostGraph, placement: Placement, *, title: str) -> str:
    """Return the picture as SVG text.

    Args:
        graph: The model.
        costs: Costs of the graph.
        placement: The plan for these costs.
        title: Title of the picture.
    """
    parts: list[str] = []
    top = _HEAD
    for number, stage in enumerate(placement.stages):
        boxes = _boxes(costs, stage)
        height = (max(box.row for box in boxes) + 1) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _PADDING
        height = max(height, 92)
        parts += _band(number, stage, top, height)
        parts += _graph(graph, costs, boxes, top, height, _HUES[number % len(_HUES)])
        parts += _bars(stage, placement, top, height, _HUES[number % len(_HUES)])
        top += height
        if number < len(placement.stages) - 1:
            parts += _cut(costs, placement, number, top)
            top += _CUT
    bottom = top + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom}" '
            f'width="{_WIDTH}" height="{bottom}">',
            f"<title>{escape(title)}: how it is cut</title>",
            f"<style>{_STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
            '<path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
            f'<rect class="page" width="{_WIDTH}" height="{bottom}"/>',
            *_heading(placement, title),
            *parts,
            "</svg>",
            "",
        ]
    )


def size_of(size_bytes: float) -> str:
    """Format a size."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes:.0f} B"


def crew_of(stage: PlannedStage) -> str:
    """Count a stage's machines by kind."""
    names = [machine.name for machine in stage.replicas]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _heading(placement: Placement, title: str) -> Iterator[str]:
    yield _text(_MARGIN, 32, title, "title")
    told = f"a batch every {placement.bottleneck_ms:.2f} ms, each after {placement.latency_ms:.2f} ms"
    stages = "1 stage" if len(placement.stages) == 1 else f"{len(placement.stages)} stages"
    machines = "1 machine" if placement.machine_count == 1 else f"{placement.machine_count} machines"
    yield _text(_MARGIN, 54, f"{stages} on {machines}: {told}", "faint")
    yield _text(_BARS_LEFT, 54, "ms for each batch", "faint")


def _boxes(costs: CostGraph, stage: PlannedStage) -> list[Box]:
    there = set(stage.nodes)
    _, after = costs.edges
    return condense(stage.nodes, {node: there.intersection(after[node]) for node in stage.nodes}, _COLUMNS, _ROWS)


def _band(number: int, stage: PlannedStage, top: float, height: float) -> Iterator[str]:
    hue = _HUES[number % len(_HUES)]
    yield (
        f'<rect x="{_MARGIN}" y="{top}" width="{_WIDTH - 2 * _MARGIN}" height="{height}" rx="6" fill="{hue}" '
        'fill-opacity=".13"/>'
    )
    yield f'<rect x="{_MARGIN}" y="{top}" width="5" height="{height}" rx="2" fill="{hue}"/>'
    middle = top + height / 2
    crew = crew_of(stage)
    nodes = "1 node" if len(stage.nodes) == 1 else f"{len(stage.nodes)} nodes"
    yield _text(_MARGIN + 14, middle - 25, f"stage {number}", "strong")
    yield _text(_MARGIN + 14, middle - 8, nodes, "small")
    yield _text(_MARGIN + 14, middle + 6, f"{stage.ms:.2f} ms at speed 1", "small")
    yield _text(_MARGIN + 14, middle + 20, f"{size_of(stage.parameter_bytes)} of weights", "small")
    yield _text(_MARGIN + 14, middle + 34, crew if len(crew) < 20 else f"{crew[:18]}…", "small")


def _graph(graph: Graph, costs: CostGraph, boxes: Sequence[Box], top: float, height: float, hue: str) -> Iterator[str]:
    op_types = [node.op_type for node in graph.nodes]
    rows = {column: sum(box.column == column for box in boxes) for column in {box.column for box in boxes}}

    def place(box: Box) -> tuple[float, float]:
        used = rows[box.column] * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y
        return (
            _GRAPH_LEFT + box.column * (_BOX_WIDTH + _GAP_X),
            top + (height - used) / 2 + box.row * (_BOX_HEIGHT + _GAP_Y),
        )

    for start, end in edges(boxes):
        (x, y), (to_x, to_y) = place(start), place(end)
        x, y, to_y = x + _BOX_WIDTH, y + _BOX_HEIGHT / 2, to_y + _BOX_HEIGHT / 2
        if end.column - start.column > 1:  # around the boxes between
            y, to_y = y + _BOX_HEIGHT / 4, to_y + _BOX_HEIGHT / 4
            below = top + height - 5
            path = f"M{x} {y}C{x + 16} {below} {x + 16} {below} {x + 40} {below}H{to_x - 40}C{to_x - 16} {below} "
            path += f"{to_x - 16} {to_y} {to_x - 1} {to_y}"
        else:
            bend = (to_x - x) / 2
            path = f"M{x} {y}C{x + bend} {y} {to_x - bend} {to_y} {to_x - 1} {to_y}"
        yield f'<path class="line" d="{path}" marker-end="url(#tip)"/>'
    for box in boxes:
        x, y = place(box)
        yield (f'<rect class="box" x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="4" stroke="{hue}"/>')
        for line, text in enumerate(box.label(op_types)):
            shown = text if len(text) <= 12 else f"{text[:11]}…"
            yield _text(x + 5, y + 13 + 12 * line, shown, "small")
        yield _text(x + 5, y + 38, f"{sum(costs.ms[node] for node in box.nodes):.2f} ms", "small faint")


def _bars(stage: PlannedStage, placement: Placement, top: float, height: float, hue: str) -> Iterator[str]:
    bars = [("computes", stage.compute_ms), ("receives", stage.receive_ms), ("sends", stage.send_ms)]
    longest = placement.bottleneck_ms or 1.0
    y = top + height / 2 - 36
    for name, ms in bars:
        yield _text(_BARS_LEFT, y + 8, name, "small faint")
        yield f'<rect class="track" x="{_BARS_LEFT}" y="{y + 11}" width="{_BARS_WIDTH}" height="8" rx="2"/>'
        width = f"{_BARS_WIDTH * ms / longest:.1f}"
        yield f'<rect x="{_BARS_LEFT}" y="{y + 11}" width="{width}" height="8" rx="2" fill="{hue}"/>'
        slowest = ms >= placement.bottleneck_ms * (1 - 1e-9)
        yield _text(_BARS_LEFT + _BARS_WIDTH + 6, y + 19, f"{ms:.2f}", "strong" if slowest else "")
        y += 25


def _cut(costs: CostGraph, placement: Placement, number: int, top: float) -> Iterator[str]:
    done = {node for stage in placement.stages[: number + 1] for node in stage.nodes}
    crossing = [
        tensor
        for tensor in costs.placed.tensors
        if (tensor.producer is None or tensor.producer in done)
        and (tensor.is_output or not done.issuperset(tensor.users))
    ]
    x = _GRAPH_LEFT + _COLUMNS * (_BOX_WIDTH + _GAP_X) / 2
    yield f'<path class="line" stroke-width="2" d="M{x} {top + 3}V{top + _CUT - 4}" marker-end="url(#tip)"/>'
    tensors = f"{len(crossing)} tensors" if len(crossing) != 1 else "1 tensor"
    yield _text(x + 12, top + _CUT / 2 + 4, f"{size_of(placement.stages[number].output_bytes)} in {tensors}", "strong")


def _text(x: float, y: float, text: str, classes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(text)}</text>'
