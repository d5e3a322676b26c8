"""`anabranch.schemas.limits` is the only place that defines a limit."""

import ast
from pathlib import Path

from anabranch.schemas import limits

ROOT = Path(__file__).parents[2]
NAMES = {name for name in vars(limits) if name.isupper()}


def defined_in(path: Path) -> set[str]:
    """Returns the constants that a module assigns, without a leading underscore."""
    targets = [
        target
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return {target.id.lstrip("_") for target in targets if isinstance(target, ast.Name)}


def test_limits_in_other_modules_are_absent() -> None:
    product = [
        path
        for folder in ("schemas", "operators", "flink_job", "anabranch")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "limits.py"
    ]
    assert len(product) > 50
    assert {path.name: defined_in(path) & NAMES for path in product if defined_in(path) & NAMES} == {}


def test_limits_message_holds_a_batch_and_framing() -> None:
    assert limits.MAX_BATCH_BYTES + limits.KAFKA_FRAMING_BYTES < limits.MAX_MESSAGE_BYTES < 2**31


def test_limits_deadline_is_exact_as_a_float() -> None:
    assert int(float(limits.MAX_DEADLINE_MS)) == limits.MAX_DEADLINE_MS
