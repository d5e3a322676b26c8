"""Finds Java, Flink, jars and libpython; standard library only, for `make setup`."""

from anabranch.flink_job.installation.environment import (
    activate,
    libpython_dir,
    process_environment,
    python_path,
    python_settings,
)
from anabranch.flink_job.installation.flink_class_path import flink_lib_dir
from anabranch.flink_job.installation.flink_distribution import flink_home
from anabranch.flink_job.installation.jars import connector_jar, jars_dir, kafka_class_path
from anabranch.flink_job.installation.java_compiler import compile_java, java_jar
from anabranch.flink_job.installation.java_runtime import find_java

__all__ = [
    "activate",
    "compile_java",
    "connector_jar",
    "find_java",
    "flink_home",
    "flink_lib_dir",
    "jars_dir",
    "java_jar",
    "kafka_class_path",
    "libpython_dir",
    "process_environment",
    "python_path",
    "python_settings",
]
