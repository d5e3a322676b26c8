"""The models that jobs serve, in a compacted topic: written where a job is submitted, read by gateways.

Key: name of the job. Value: JSON of its `ModelSummary` list; null after the job is forgotten.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from anabranch.flink_job.model_summary import ModelSummary, decode_summaries, encode_summaries, summarize
from anabranch.messaging.kafka_options import options_of
from anabranch.schemas.errors import UnknownModel, UnknownVersion
from anabranch.schemas.model import Catalog

if TYPE_CHECKING:
    from kafka import TopicPartition

    from anabranch.flink_job.config import Config

_POLL_MS = 500
_SEND_MS = 10_000
_LOOK_UP_S = 1.0
_log = logging.getLogger(__name__)


def publish(config: Config, catalog: Catalog) -> None:
    """Write the models of a job for gateways, if the topic exists and may be written to."""
    from kafka import KafkaProducer  # noqa: PLC0415 - a third of a second
    from kafka.errors import KafkaError  # noqa: PLC0415 - the same

    from anabranch.flink_job.kafka.properties import python_client_options  # noqa: PLC0415 - needs msgspec's TOML

    kafka = config.kafka
    options = options_of(KafkaProducer.DEFAULT_CONFIG, python_client_options(kafka))
    settings = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "metrics_enabled": False,
        "max_block_ms": _SEND_MS,
        "bootstrap_timeout_ms": _SEND_MS,
    }
    value = encode_summaries(summarize(catalog)).encode()
    try:
        producer = KafkaProducer(**{**settings, "allow_auto_create_topics": False} | options)
        try:
            if producer.partitions_for(kafka.models_topic):
                producer.send(kafka.models_topic, value, key=config.job.name.encode()).get(timeout=_SEND_MS / 1000)
        finally:
            producer.close(timeout=1)
    except KafkaError as error:
        _log.warning("gateways do not learn the models of job %s: %s", config.job.name, error)


class ServedModels:
    """The models of all jobs, as they were last published."""

    def __init__(self) -> None:
        self._by_job: dict[str, list[ModelSummary]] = {}
        self._models: dict[str, dict[str, ModelSummary]] = {}

    @property
    def models(self) -> Mapping[str, Mapping[str, ModelSummary]]:
        """Versions by name, the newest last."""
        return self._models

    def all(self) -> list[ModelSummary]:
        """List all versions of all models."""
        return [each for versions in self._models.values() for each in versions.values()]

    def encode(self) -> bytes:
        """Encode all models as a record of the topic."""
        return encode_summaries(self.all()).encode()

    def update(self, job: str, value: bytes | None) -> None:
        """Take a record of the topic; an unreadable one of another release is skipped."""
        try:
            self._by_job[job] = decode_summaries(value.decode()) if value else []
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        models: dict[str, dict[str, ModelSummary]] = {}
        for summaries in self._by_job.values():
            for each in summaries:
                models.setdefault(each.name, {})[each.version] = each
        self._models = models

    def find(self, name: str, version: str = "") -> ModelSummary:
        """Find a model; an empty name means the only one, and an empty version or `latest` the newest.

        Raises:
            UnknownModel, UnknownVersion: No job serves it.
        """
        if not name and len(self._models) == 1:
            [name] = self._models
        versions = self._models.get(name)
        if not versions:
            available = ", ".join(sorted(self._models)) or "none"
            raise UnknownModel(f"unknown model {name!r}; available: {available}")
        if version in ("", "latest"):
            return list(versions.values())[-1]
        if version not in versions:
            raise UnknownVersion(f"unknown version {version!r} of model {name!r}; available: {', '.join(versions)}")
        return versions[version]


class ServedModelsReader:
    """Reads the topic, then follows it in a thread after `start`.

    Args:
        options: Of kafka-python, as for any client of the broker.
    """

    def __init__(self, bootstrap_servers: str, topic: str, options: Mapping[str, Any], models: ServedModels) -> None:
        from kafka import KafkaConsumer  # noqa: PLC0415 - a third of a second

        self._topic = topic
        self._models = models
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._consumer = KafkaConsumer(
            **{
                "bootstrap_servers": bootstrap_servers,
                "group_id": None,
                "enable_auto_commit": False,
                "auto_offset_reset": "earliest",
                "metrics_enabled": False,
                "allow_auto_create_topics": False,
            }
            | options_of(KafkaConsumer.DEFAULT_CONFIG, options)
        )
        partitions = self._partitions()
        self._consumer.assign(partitions)
        if partitions:
            ends = self._consumer.end_offsets(partitions)
            while any(self._consumer.position(each) < end for each, end in ends.items()):
                self._poll()

    def start(self) -> None:
        """Follow the topic."""
        self._thread = threading.Thread(target=self._follow, name="anabranch-served-models", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self._consumer.close()

    def _partitions(self) -> list[TopicPartition]:
        from kafka import TopicPartition  # noqa: PLC0415 - as above

        return [TopicPartition(self._topic, each) for each in self._consumer.partitions_for_topic(self._topic) or ()]

    def _poll(self) -> None:
        for records in self._consumer.poll(timeout_ms=_POLL_MS).values():
            for record in records:
                self._models.update((record.key or b"").decode("utf-8", "replace"), record.value)

    def _follow(self) -> None:
        while not self._stopped.is_set():
            if self._consumer.assignment():
                self._poll()
            else:
                self._stopped.wait(_LOOK_UP_S)
                # The first job makes the topic.
                self._consumer.assign(self._partitions())


def read_served_models(bootstrap_servers: str, topic: str, options: Mapping[str, Any]) -> ServedModels:
    """Read the topic once."""
    models = ServedModels()
    ServedModelsReader(bootstrap_servers, topic, options, models).close()
    return models
