"""`anabranch.schemas.limits` is the only place that defines a limit."""

import ast
import re
from pathlib import Path

from anabranch.schemas import limits

ROOT = Path(__file__).parents[2]
#: The command line and the planner also have limits of their own.
RUNTIME = ("schemas", "operators", "flink_job")
NAMES = {name for name in vars(limits) if name.isupper()}
LIMIT = re.compile(r"_*(?:(?:MAX|CACHED|REMEMBERED)_\w+|\w+_(?:BYTES|RECORDS))")
#: Sizes of layouts.
LAYOUT = {
    "_LARGEST_ITEM_BYTES": "schemas/tensors.py",
    "HEADER_BYTES": "operators/transport/frame_memory.py",
    "_SEGMENT_BYTES": "operators/transport/frame_memory.py",
    "_ALIGNMENT_BYTES": "operators/transport/memfd_arena.py",
    "_START_BYTES": "operators/core/crash_ledger.py",
    "_DIGEST_BYTES": "operators/core/crash_ledger.py",
    "_PAGE_BYTES": "operators/sessions/run_journal.py",
}


def defined_in(path: Path) -> set[str]:
    """Returns the constants that a module assigns, without a leading underscore."""
    targets = [
        target
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return {target.id.lstrip("_") for target in targets if isinstance(target, ast.Name)}


def modules(*folders: str) -> list[Path]:
    """Returns the modules in folders, except for `limits`."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.name != "limits.py"]
    return [path for path in paths if not any(parent.is_symlink() for parent in path.parents)]


def numbers_in(path: Path) -> set[str]:
    """Returns the constants of a module that are computed from numbers alone."""
    return {
        node.targets[0].id
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and all(isinstance(each, ast.Constant | ast.BinOp | ast.operator | ast.Load) for each in ast.walk(node.value))
        and not any(isinstance(each, ast.Constant) and not isinstance(each.value, int) for each in ast.walk(node.value))
    }


def test_limits_of_any_name_are_not_in_other_modules() -> None:
    found = {
        name: path.relative_to(ROOT).as_posix()
        for path in modules(*RUNTIME)
        for name in numbers_in(path)
        if LIMIT.fullmatch(name)
    }
    assert found == LAYOUT


def test_limits_in_other_modules_are_absent() -> None:
    product = modules(*RUNTIME, "anabranch")
    assert len(product) > 50
    assert {path.name: defined_in(path) & NAMES for path in product if defined_in(path) & NAMES} == {}


def test_limits_message_holds_a_batch_and_framing() -> None:
    assert limits.MAX_BATCH_BYTES + limits.KAFKA_FRAMING_BYTES < limits.MAX_MESSAGE_BYTES < 2**31


def test_limits_deadline_is_exact_as_a_float() -> None:
    assert int(float(limits.MAX_DEADLINE_MS)) == limits.MAX_DEADLINE_MS
