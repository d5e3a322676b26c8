"""Settings of Kafka's clients from the `[kafka]` table."""

import re
from pathlib import Path
from typing import Any

from anabranch.flink_job.config import KafkaConfig
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.kafka.security import SHADED_SECURITY, java_properties, python_options

_UNSHADED = re.compile(r"(?<![\w.])org\.apache\.kafka\.common\.security(?=\.)")
_JAAS_LOGIN = re.compile(
    r"(?:[\w.]+\.)?(?:Plain|Scram)LoginModule\s+required\b(?=.*\busername=\"(?P<user>(?:\\.|[^\"\\])*)\")"
    r"(?=.*\bpassword=\"(?P<password>(?:\\.|[^\"\\])*)\")",
    re.DOTALL,
)


def java_client_properties(kafka: KafkaConfig) -> dict[str, str]:
    """Return the properties of the job's clients; raise ConfigError.

    Flink's connector renames the login modules.
    """
    properties = {name: _java_text(value) for name, value in kafka.properties.items()}
    if "sasl.jaas.config" in properties:
        properties["sasl.jaas.config"] = _UNSHADED.sub(SHADED_SECURITY, properties["sasl.jaas.config"])
    return properties | java_properties(kafka.security)


def python_client_options(kafka: KafkaConfig) -> dict[str, Any]:
    """Return the same settings in kafka-python's names; raise ConfigError."""
    written: dict[str, Any] = dict(kafka.properties)
    options: dict[str, Any] = {}
    if login := written.pop("sasl.jaas.config", None):
        match = _JAAS_LOGIN.match(str(login).strip())
        if not match:
            raise ConfigError(
                "kafka.properties has a sasl.jaas.config that only Java reads, expected PlainLoginModule or "
                "ScramLoginModule with username and password: state them in [kafka.security]"
            )
        options["sasl_plain_username"] = _unquoted(match["user"])
        options["sasl_plain_password"] = _unquoted(match["password"])
    options |= _tls_options(written)
    return {name.replace(".", "_"): value for name, value in written.items()} | options | python_options(kafka.security)


def _tls_options(written: dict[str, Any]) -> dict[str, Any]:
    """Take Java's TLS properties out of `written`, and return kafka-python's."""
    options: dict[str, Any] = {}
    for store, option in (("truststore", "ssl_cafile"), ("keystore", "ssl_certfile")):
        path, kind = written.pop(f"ssl.{store}.location", None), written.pop(f"ssl.{store}.type", "JKS")
        if path is not None and kind != "PEM":
            raise ConfigError(
                f"kafka.properties has ssl.{store}.location {path!r} of type {kind}, which Python's clients do not "
                "read: state the PEM files in [kafka.security]"
            )
        if path is not None:
            options[option] = str(Path(path))
    if "ssl_certfile" in options:
        options["ssl_keyfile"] = options["ssl_certfile"]
    if (password := written.pop("ssl.key.password", None)) is not None:
        options["ssl_password"] = password
    if (algorithm := written.pop("ssl.endpoint.identification.algorithm", None)) is not None:
        options["ssl_check_hostname"] = algorithm != ""
    return options


def _java_text(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
