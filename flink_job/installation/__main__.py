"""Prints the installed parts; with `--java`, Java only."""

import os
import sys

from anabranch.flink_job.errors import InstallationError, LibpythonNotFound
from anabranch.flink_job.installation.environment import libpython_dir
from anabranch.flink_job.installation.flink_class_path import flink_lib_dir
from anabranch.flink_job.installation.jars import kafka_class_path
from anabranch.flink_job.installation.java_runtime import find_java


def main(arguments: list[str]) -> None:
    """Print the parts, or exit with an error."""
    try:
        print(f"setup: Java   {find_java()}")
        if "--java" not in arguments:
            print(f"setup: Flink  {flink_lib_dir()}")
            print(f"setup: Kafka  {len(kafka_class_path().split(os.pathsep))} jars")
            libpython_dir()
    except LibpythonNotFound as error:
        print(f"setup: note: {error}")
    except InstallationError as error:
        sys.exit(f"setup: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
