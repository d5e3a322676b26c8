"""Options of kafka-python in librdkafka's names."""

from typing import Any

import pytest

from anabranch.messaging.rdkafka_connection import Turns, rdkafka_options


@pytest.mark.parametrize(
    ("options", "translated"),
    [
        ({}, {}),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "PLAIN",
                "sasl_plain_username": "u",
                "sasl_plain_password": "p",
                "ssl_cafile": "ca.pem",
                "ssl_check_hostname": False,
            },
            {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "PLAIN",
                "sasl.username": "u",
                "sasl.password": "p",
                "ssl.ca.location": "ca.pem",
                "ssl.endpoint.identification.algorithm": "none",
            },
        ),
        (
            {"ssl_certfile": "c.pem", "ssl_keyfile": "k.pem", "ssl_password": "p", "ssl_check_hostname": True},
            {
                "ssl.certificate.location": "c.pem",
                "ssl.key.location": "k.pem",
                "ssl.key.password": "p",
                "ssl.endpoint.identification.algorithm": "https",
            },
        ),
        ({"client_id": "a", "retry_backoff_ms": 3}, None),
    ],
)
def test_rdkafka_options_are_translated_or_not_at_all(
    options: dict[str, Any], translated: dict[str, Any] | None
) -> None:
    assert rdkafka_options(options) == translated


def test_requests_of_two_ms_go_to_one_partition() -> None:
    turns = Turns(3)
    assert [turns.next(1 + each / 1000) for each in (0, 1, 1.9, 2.1, 4.2, 4.3, 9)] == [1, 1, 1, 2, 0, 0, 1]
    turns.count = 5
    assert {turns.next(2 + each / 100) for each in range(5)} == set(range(5))
