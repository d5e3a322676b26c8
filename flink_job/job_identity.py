"""Identity of a job towards others: its name, and its place in Kafka."""

from __future__ import annotations

import msgspec

from anabranch.flink_job.config import Config

#: Job parameter that holds the identity.
IDENTITY_PARAMETER = "anabranch.identity"


class JobIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A job's name, brokers, topics and consumer group."""

    name: str
    brokers: str = ""
    requests_topic: str = ""
    responses_topic: str = ""
    group_id: str = ""

    def conflict_with(self, other: JobIdentity) -> str:
        """Return the reason for which two jobs cannot run together, or an empty string."""
        if self.name == other.name:
            return f"its name is {self.name!r}, too, so both would use one state and one set of transactions"
        if not self._brokers & other._brokers or self.requests_topic != other.requests_topic:
            return ""
        if self.group_id == other.group_id:
            return f"it reads {self.requests_topic!r} as group {self.group_id!r}, too, so offsets would mix"
        if self.responses_topic == other.responses_topic:
            return f"it answers {self.requests_topic!r} on {self.responses_topic!r}, too, so answers would double"
        return ""

    @property
    def _brokers(self) -> set[str]:
        return {each.strip() for each in self.brokers.split(",")}


def identity_of(config: Config) -> JobIdentity:
    """Return the identity of a configured job."""
    kafka = config.kafka
    return JobIdentity(
        name=config.job.name,
        brokers=kafka.bootstrap_servers,
        requests_topic=kafka.requests_topic,
        responses_topic=kafka.responses_topic,
        group_id=kafka.group_id,
    )


def encode_identity(identity: JobIdentity) -> str:
    """Return an identity as JSON."""
    return msgspec.json.encode(identity).decode()


def decode_identity(text: str | None, name: str) -> JobIdentity:
    """Return the identity of its JSON; that of a job of another version has a name only."""
    try:
        return msgspec.json.decode(text or "", type=JobIdentity)
    except msgspec.MsgspecError:
        return JobIdentity(name=name)
