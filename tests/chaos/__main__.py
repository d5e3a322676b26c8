"""The command of `make chaos`: runs slices, each of which leaves a result, and writes the report of all results."""

import argparse
import sys
from pathlib import Path
from typing import get_args

import msgspec

from tests.chaos.chaos_slice import HERE, SliceResult, read_suite, run_slice, summary_of
from tests.chaos.load import Plant

RESULTS = HERE / "results"


def main() -> int:
    """Runs the slices that are asked for."""
    suite = read_suite()
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Kill, stop and starve a real stack under load, and count lost, wrong, doubled and disordered "
        "answers. Each slice takes up to fifteen minutes and leaves a result, so that a run can go on later.",
    )
    parser.add_argument("--slice", action="append", choices=suite, metavar="NAME", help=f"one of {', '.join(suite)}")
    parser.add_argument("--again", action="store_true", help="also run slices that have a result")
    parser.add_argument("--seed", type=int, help="another seed than that of the suite")
    parser.add_argument("--limit-s", type=float, help="time for each slice, instead of its own")
    parser.add_argument("--plant", choices=get_args(Plant), default="none", help="a defect that must be found")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the stack's files, one folder for each slice")
    arguments = parser.parse_args()

    arguments.results.mkdir(parents=True, exist_ok=True)
    names = arguments.slice or [name for name in suite if not name.startswith("gate-")]
    bad = False
    for name in names:
        path = arguments.results / f"{name}.json"
        if path.exists() and not arguments.again and not arguments.slice:
            print(f"{name}: has a result of {_read(path).date}; --again runs it again")
            continue
        changes = {"seed": arguments.seed, "limit_s": arguments.limit_s}
        plan = msgspec.structs.replace(
            suite[name], **{key: value for key, value in changes.items() if value is not None}
        )
        result = run_slice(name, plan, arguments.keep and arguments.keep / name, arguments.plant, _tell)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
        _tell(summary_of(result))
        bad = bad or not result.is_clean
    return int(bad)


def _read(path: Path) -> SliceResult:
    return msgspec.json.decode(path.read_bytes(), type=SliceResult)


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
