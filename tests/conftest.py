"""What test packages share: one broker and one Flink cluster for the whole run, started when first asked for."""

from collections.abc import Iterator

import pytest

from anabranch.stack.flink_cluster import FlinkCluster
from anabranch.stack.kafka_broker import KafkaBroker


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What models cost is measured for this run, not taken from an earlier one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A Kafka broker that serves. Tests make topics of their own names with `broker.create_topics`."""
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A standalone Flink cluster of two TaskManagers. A test that kills one puts one back."""
    # A space in the path, for users have them too.
    with FlinkCluster(tmp_path_factory.mktemp("flink cluster")) as cluster:
        yield cluster
