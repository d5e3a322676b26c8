"""Fixtures that all test packages share, and the division into unit, slow and system tests.

A test is `system` if it uses one of `SYSTEM_FIXTURES`, is in `tests/flink`, or is marked so. Every other test without a
marker of `SELECTED_APART` is `unit`, or `slow` if marked so, and fails if it, or a command that it runs, starts a JVM.
"""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from anabranch.flink_job.installation import find_java
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker

HERE = Path(__file__).parent
#: A test with one of them is neither `unit` nor, by its fixtures, `system`.
SELECTED_APART = frozenset({"bench", "frameworks", "long", "packaging", "peers", "recovery", "stack", "zoo"})
#: A schema registry, a broker, a Flink cluster, and packages that are installed in an environment apart.
SYSTEM_FIXTURES = frozenset({"apicurio", "broker", "cluster", "interop_python", "schemathesis_python"})
#: Options of Java programs that end within a second: the look-up of the version and the compiler.
SHORT_JAVA = frozenset({"-version", "-proc:none"})
#: The Java home of unit tests and of the commands that they run: its `java` refuses all but `SHORT_JAVA`.
UNIT_JAVA = HERE / "unit_java"

_current_unit_test: str | None = None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test `unit`, `slow` or `system`, before `-m` selects; files with system tests come first.

    These wait often and take long: with two processes, the other tests fill the gaps and the end.
    """
    for item in items:
        markers = {mark.name for mark in item.iter_markers()}
        if markers & SELECTED_APART:
            continue
        fixtures: Sequence[str] = getattr(item, "fixturenames", ())
        is_system = "system" in markers or SYSTEM_FIXTURES & set(fixtures) or HERE / "flink" in item.path.parents
        if is_system:
            item.add_marker("system")
        elif "slow" not in markers:
            item.add_marker("unit")
    with_engine = {item.path for item in items if item.get_closest_marker("system")}
    items.sort(key=lambda item: item.path not in with_engine)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Lets neither a unit test nor its commands start a JVM."""
    global _current_unit_test  # noqa: PLW0603 - an audit hook cannot be given arguments, nor be removed
    if item.get_closest_marker("unit") is None and item.get_closest_marker("slow") is None:
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANABRANCH_TEST_JAVA", str(_java()))
        patch.setenv("JAVA_HOME", str(UNIT_JAVA))
        _current_unit_test = item.nodeid
        try:
            return (yield)
        finally:
            _current_unit_test = None


@functools.cache
def _java() -> Path:
    return find_java() / "bin" / "java"


def starts_engine(command: str | Sequence[Any]) -> bool:
    """Returns whether a command line starts a JVM that stays."""
    words = command.split() if isinstance(command, str) else [os.fsdecode(word) for word in command]
    return any(Path(word).name == "java" for word in words) and not SHORT_JAVA & set(words)


def _refuse_engine(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and _current_unit_test and starts_engine(arguments[1]):
        raise AssertionError(f"{_current_unit_test} is a unit test and starts a JVM: mark it `system`")


sys.addaudithook(_refuse_engine)


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives a cache of measurements that earlier runs did not fill, and JVMs that start quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # The second compiler costs short programs more than it saves.
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
        yield


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A running Kafka broker. Tests make topics of their own names with `broker.create_topics`."""
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A standalone Flink cluster of two TaskManagers. A test that kills one starts another."""
    # Users' paths contain spaces, too.
    with FlinkCluster(tmp_path_factory.mktemp("flink cluster")) as cluster:
        yield cluster
