"""The Flink distribution inside the `pyflink` package."""

import importlib.util
import sys
from pathlib import Path

from anabranch.flink_job.errors import FlinkNotFound


def flink_home() -> Path:
    """Return the folder of Flink's `bin`, `lib` and `opt`, or raise FlinkNotFound."""
    specification = importlib.util.find_spec("pyflink")
    for folder in (specification.submodule_search_locations if specification else None) or ():
        if (Path(folder) / "bin" / "flink").is_file():
            return Path(folder)
    raise FlinkNotFound(f"{sys.executable} has no apache-flink package: run `make setup`, and use .venv/bin/anabranch")
