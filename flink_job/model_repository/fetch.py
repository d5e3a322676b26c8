"""Copies files of a model store through Flink's file systems: `python -m ... URL PATH URL PATH`."""

import sys

from anabranch.flink_job.model_repository.flink_files import FlinkFiles


def main(arguments: list[str]) -> int:
    """Copy pairs of a URL and a path."""
    files = FlinkFiles({})
    for url, target in zip(arguments[::2], arguments[1::2], strict=True):
        files.copy(url, f"file://{target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
