"""The compression codecs that are installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kafka
import kafka.codec
import kafka.errors
from kafka.admin import ConfigResource, ConfigResourceType

from anabranch.messaging.errors import CodecMissing
from anabranch.messaging.kafka_options import options_of

_PACKAGES = {"snappy": "python-snappy", "lz4": "lz4", "zstd": "zstandard"}
_IS_INSTALLED = {"snappy": kafka.codec.has_snappy, "lz4": kafka.codec.has_lz4, "zstd": kafka.codec.has_zstd}


def check_codecs(bootstrap_servers: str, topic: str, options: Mapping[str, Any]) -> None:
    """Raise CodecMissing if a topic is stored with a missing codec, and the broker tells."""
    if all(is_installed() for is_installed in _IS_INSTALLED.values()):
        return
    try:
        admin = kafka.KafkaAdminClient(**options_of(kafka.KafkaAdminClient.DEFAULT_CONFIG, options))
        try:
            codec = _codec_of(admin, topic)
        finally:
            admin.close()
    except kafka.errors.KafkaError:
        return
    if codec in _IS_INSTALLED and not _IS_INSTALLED[codec]():
        raise codec_missing(f"the topic {topic!r} on {bootstrap_servers} is compressed with {codec}")


def codec_missing(cause: str) -> CodecMissing:
    """Return the error that names the packages which are not installed."""
    missing = [_PACKAGES[codec] for codec, is_installed in _IS_INSTALLED.items() if not is_installed()]
    named = [package for codec, package in _PACKAGES.items() if f"with {codec}" in cause or f"for {codec} " in cause]
    return CodecMissing(
        f"{cause}, which cannot be read here: pip install {' '.join(named or missing)}, or anabranch[compression]"
    )


def _codec_of(admin: kafka.KafkaAdminClient, topic: str) -> str:
    described = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    (settings,) = (topics[topic] for topics in described.values())
    return str(settings.get("compression.type", {}).get("value", "producer"))
