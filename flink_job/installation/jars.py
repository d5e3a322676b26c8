"""The jars that `make setup` fetched."""

import os
import sys
from pathlib import Path

from anabranch.flink_job.errors import JarsMissing

CONNECTOR_JAR_GLOB = "flink-sql-connector-kafka-*.jar"


def share_dir() -> Path:
    """Return this environment's folder for jars."""
    return Path(sys.prefix) / "share" / "anabranch"


def jars_dir() -> Path:
    """Return the folder of fetched jars: `ANABRANCH_JARS`, or the default."""
    chosen = os.environ.get("ANABRANCH_JARS")
    return Path(chosen) if chosen else share_dir() / "jars"


def find_jars(folder: str, pattern: str) -> list[Path]:
    """Return jars of a subfolder, or raise JarsMissing."""
    jars = sorted((jars_dir() / folder).glob(pattern))
    if not jars:
        raise JarsMissing(f"{jars_dir() / folder} has no {pattern}: run `make setup`")
    return jars


def connector_jar() -> Path:
    """Return the jar of Flink's Kafka connector."""
    return find_jars("connector", CONNECTOR_JAR_GLOB)[-1]


def codec_jars() -> list[Path]:
    """Return the codecs that the Kafka connector lacks."""
    return find_jars("connector", "zstd-jni-*.jar")


def kafka_class_path() -> str:
    """Return the class path of the Kafka broker."""
    find_jars("kafka", "kafka_2.13-*.jar")
    return os.pathsep.join(str(jar) for jar in find_jars("kafka", "*.jar"))
