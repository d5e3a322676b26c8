"""The division into unit and system tests: a unit test that starts a JVM fails."""

import re
import subprocess
from pathlib import Path

import pytest

from anabranch.flink_job.installation import find_java
from anabranch.stack.kafka.broker import KafkaBroker
from tests.conftest import SELECTED_APART, UNIT_JAVA, starts_engine


def test_unit_test_that_starts_a_broker_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is a unit test and starts a JVM"):
        KafkaBroker(tmp_path).start()


def test_unit_test_command_starts_no_jvm() -> None:
    # Through a shell, the audit hook of this process does not see it.
    command = ["sh", "-c", '"$JAVA_HOME/bin/java" kafka.Kafka server.properties']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (97, "a unit test starts a JVM: mark it `system`\n")


def test_unit_test_may_look_for_java() -> None:
    assert find_java() == UNIT_JAVA


@pytest.mark.parametrize(
    ("command", "is_engine"),
    [
        (["/opt/java/bin/java", "-Xmx1g", "kafka.Kafka"], True),
        ([b"java", b"kafka.Kafka"], True),
        (["env", "A=b", Path("/opt/java/bin/java"), "kafka.Kafka"], True),
        ("java kafka.Kafka", True),
        (["/opt/java/bin/java", "-version"], False),
        (["javac"], False),
        (["ls", "/opt/java/bin/javadoc"], False),
    ],
)
def test_starts_engine_reads_commands(command: list[str], *, is_engine: bool) -> None:
    assert starts_engine(command) is is_engine


def test_every_test_has_one_division(request: pytest.FixtureRequest) -> None:
    divisions = {"unit", "slow", "system"} | SELECTED_APART
    declared = {re.split(r"[:(]", line)[0] for line in request.config.getini("markers")}
    assert divisions <= declared
    for item in request.session.items:
        assert sum(item.get_closest_marker(name) is not None for name in divisions) == 1, item.nodeid
