"""Ends the transactions that a killed job left open, for which committed readers would wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anabranch.messaging.kafka_options import options_of
from anabranch.stack.kafka.topics import connected_admin, no_answer

_OPEN = "Ongoing"


def end_transactions(bootstrap_servers: str, prefix: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """Abort the open transactions whose ids begin with `prefix`, and return their ids.

    Call it only when no job uses these ids: its transactions would be aborted, too.

    Raises:
        StackError: The broker does not answer, or refuses.
    """
    from kafka import KafkaProducer  # noqa: PLC0415 - a third of a second, which only callers should pay
    from kafka.errors import KafkaError  # noqa: PLC0415

    try:
        with connected_admin(bootstrap_servers, options) as admin:
            listed = admin.list_transactions(state_filters=[_OPEN])
        ids = [each.transactional_id for found in listed.values() for each in found]
        left = sorted(name for name in ids if name.startswith(prefix))
        known = options_of(KafkaProducer.DEFAULT_CONFIG, options or {})
        for name in left:
            producer = KafkaProducer(bootstrap_servers=bootstrap_servers, **known | {"transactional_id": name})
            try:
                # Kafka aborts what the last producer of this id left open.
                producer.init_transactions()
            finally:
                producer.close()
    except KafkaError as error:
        raise no_answer(bootstrap_servers, error) from error
    return left
