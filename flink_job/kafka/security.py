"""Encryption and authentication of Kafka connections, in Java and in Python.

A secret is named, not written: `env:NAME` is a variable, `file:PATH` a file.
"""

import os
import re
import ssl
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from anabranch.flink_job.errors import ConfigError

SecretReference = Annotated[str, Meta(pattern="^$|^env:.+$|^file:.+$")]

#: Keys of `[kafka.properties]` that this table replaces.
OWN_PROPERTIES = re.compile(
    r"security\.protocol|sasl\.(mechanism|jaas\.config)|ssl\.(truststore|keystore|key\.password|endpoint)\b.*"
)
#: Package of login modules in Flink's connector.
SHADED_SECURITY = "org.apache.flink.kafka.shaded.org.apache.kafka.common.security"
_LOGIN_MODULES = {
    "PLAIN": f"{SHADED_SECURITY}.plain.PlainLoginModule",
    "SCRAM-SHA-256": f"{SHADED_SECURITY}.scram.ScramLoginModule",
    "SCRAM-SHA-512": f"{SHADED_SECURITY}.scram.ScramLoginModule",
}
_JAVA_KEY = re.compile(r"-----BEGIN (ENCRYPTED )?PRIVATE KEY-----")


class KafkaSecurity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encryption and authentication of Kafka connections.

    Attributes:
        protocol: `SSL` encrypts, `SASL_PLAINTEXT` authenticates.
        mechanism: SASL mechanism.
        username: SASL user.
        password: SASL password, as `env:NAME` or `file:PATH`.
        ca_file: PEM file of trusted certificates; empty for the system's.
        certificate_file: PEM file of the client's certificates.
        key_file: PEM file of its private key, in PKCS #8.
        key_password: Password of the key; empty for none.
        check_hostname: Compares the broker's name with its certificate.
    """

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str = ""
    password: SecretReference = ""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    key_password: SecretReference = ""
    check_hostname: bool = True

    @property
    def authenticates(self) -> bool:
        """True with SASL."""
        return self.protocol.startswith("SASL")

    @property
    def encrypts(self) -> bool:
        """True with TLS."""
        return self.protocol.endswith("SSL")


def check_security(security: KafkaSecurity, place: str) -> None:
    """Raise ConfigError if keys contradict each other."""
    stated = {name for name in security.__struct_fields__ if getattr(security, name) and name != "check_hostname"}
    if security.authenticates and not {"username", "password"} <= stated:
        raise ConfigError(
            f"{place}: kafka.security.protocol is {security.protocol!r} without username and password: state both, "
            'the password as "env:NAME" or "file:PATH"'
        )
    of_sasl, of_tls = {"username", "password"} & stated, {"ca_file", "certificate_file", "key_file"} & stated
    if (of_sasl and not security.authenticates) or (of_tls and not security.encrypts):
        needed = "SASL_SSL" if of_sasl and (of_tls or security.encrypts) else "SASL_PLAINTEXT" if of_sasl else "SSL"
        raise ConfigError(
            f"{place}: kafka.security.protocol {security.protocol!r} makes no use of "
            f"{', '.join(sorted(of_sasl | of_tls))}: set protocol to {needed!r}, or remove them"
        )
    if bool(security.certificate_file) != bool(security.key_file):
        raise ConfigError(
            f"{place}: kafka.security has one of certificate_file and key_file: mutual TLS needs both, TLS neither"
        )


def java_properties(security: KafkaSecurity) -> dict[str, str]:
    """Return the properties of Java's clients, with the content of files; raise ConfigError."""
    if security == KafkaSecurity():
        return {}
    properties: dict[str, str] = {"security.protocol": security.protocol}
    if security.authenticates:
        properties["sasl.mechanism"] = security.mechanism
        properties["sasl.jaas.config"] = (
            f"{_LOGIN_MODULES[security.mechanism]} required username={_quoted(security.username)} "
            f"password={_quoted(read_secret(security.password, 'password'))};"
        )
    if security.encrypts:
        if not security.check_hostname:
            properties["ssl.endpoint.identification.algorithm"] = ""
        if security.ca_file:
            properties["ssl.truststore.type"] = "PEM"
            properties["ssl.truststore.certificates"] = _read_file(security.ca_file, "ca_file")
        if security.key_file:
            properties |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.certificate.chain": _read_file(security.certificate_file, "certificate_file"),
                "ssl.keystore.key": _read_java_key(security.key_file),
            }
        if security.key_password:
            properties["ssl.key.password"] = read_secret(security.key_password, "key_password")
    return properties


def python_options(security: KafkaSecurity) -> dict[str, str | bool]:
    """Return the options of kafka-python's clients; raise ConfigError."""
    if security == KafkaSecurity():
        return {}
    options: dict[str, str | bool] = {"security_protocol": security.protocol}
    if security.authenticates:
        options["sasl_mechanism"] = security.mechanism
        options["sasl_plain_username"] = security.username
        options["sasl_plain_password"] = read_secret(security.password, "password")
    if security.encrypts:
        options["ssl_check_hostname"] = security.check_hostname
        files = {
            "ca_file": ("ssl_cafile", security.ca_file),
            "certificate_file": ("ssl_certfile", security.certificate_file),
            "key_file": ("ssl_keyfile", security.key_file),
        }
        for key, (option, path) in files.items():
            if path:
                _read_file(path, key)
                options[option] = path
        if security.key_password:
            options["ssl_password"] = read_secret(security.key_password, "key_password")
    return options


def tls_context(security: KafkaSecurity) -> ssl.SSLContext:
    """Return the TLS of other clients; raise ConfigError."""
    options = python_options(security)
    context = ssl.create_default_context(cafile=security.ca_file or None)
    context.check_hostname = security.check_hostname
    if security.certificate_file:
        try:
            context.load_cert_chain(security.certificate_file, security.key_file, str(options.get("ssl_password", "")))
        except ssl.SSLError as error:
            raise ConfigError(
                f"kafka.security.certificate_file {security.certificate_file!r} does not fit its key ({error}): "
                "check both files"
            ) from None
    return context


def read_secret(reference: str, key: str, table: str = "kafka.security") -> str:
    """Return a secret, or raise ConfigError."""
    source, _, name = reference.partition(":")
    if source == "file":
        return _read_file(name, key, table).rstrip("\r\n")
    if name not in os.environ:
        raise ConfigError(f"{table}.{key} is {reference!r}, but the variable {name} is not set: set it")
    return os.environ[name]


def _read_file(path: str, key: str, table: str = "kafka.security") -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"cannot read {path!r} of {table}.{key}: {reason}; check the path") from None


def _read_java_key(path: str) -> str:
    key = _read_file(path, "key_file")
    if not _JAVA_KEY.search(key):
        raise ConfigError(
            f"kafka.security.key_file {path!r} is not a private key in PKCS #8: "
            f"convert it with `openssl pkcs8 -topk8 -in {path} -out NEW.pem`"
        )
    return key


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
