"""Options of kafka-python in librdkafka's names."""

from typing import Any

import pytest

from anabranch.messaging.rdkafka_connection import rdkafka_options


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
