"""`[kafka.security]` for Java's clients and for kafka-python; bad combinations are refused."""

from pathlib import Path

import pytest

from anabranch.flink_job.config import Config, KafkaConfig, load
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.kafka.properties import java_client_properties, python_client_options
from anabranch.flink_job.kafka.security import KafkaSecurity, java_properties, python_options

KEY = "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"
JAAS = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    r'username="alice" password="a \"quoted\" word";'
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in {"ca.pem": "CA", "own.pem": "CHAIN", "key.pem": KEY, "password": "from file\n"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def sasl(**changes: object) -> KafkaSecurity:
    return KafkaSecurity(
        **{"protocol": "SASL_PLAINTEXT", "username": "alice", "password": "env:KAFKA_PASSWORD"} | changes  # type: ignore[arg-type]
    )


def test_security_default_adds_no_property() -> None:
    assert java_properties(KafkaSecurity()) == {}
    assert python_options(KafkaSecurity()) == {}


def test_security_password_in_environment_reaches_both_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", 'a "quoted" \\ word')
    assert java_properties(sasl()) == {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.jaas.config": "org.apache.flink.kafka.shaded.org.apache.kafka.common.security.scram.ScramLoginModule "
        r'required username="alice" password="a \"quoted\" \\ word";',
    }
    assert python_options(sasl(mechanism="PLAIN")) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "alice",
        "sasl_plain_password": 'a "quoted" \\ word',
    }


def test_security_password_in_file_loses_its_line_end(files: Path) -> None:
    security = sasl(password=f"file:{files / 'password'}")
    assert python_options(security)["sasl_plain_password"] == "from file"


def test_security_certificates_travel_with_the_job(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_PASSWORD", "secret")
    security = KafkaSecurity(
        protocol="SSL",
        ca_file=str(files / "ca.pem"),
        certificate_file=str(files / "own.pem"),
        key_file=str(files / "key.pem"),
        key_password="env:KEY_PASSWORD",
        check_hostname=False,
    )
    assert java_properties(security) == {
        "security.protocol": "SSL",
        "ssl.endpoint.identification.algorithm": "",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": "CA",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": "CHAIN",
        "ssl.keystore.key": KEY,
        "ssl.key.password": "secret",
    }
    assert python_options(security) == {
        "security_protocol": "SSL",
        "ssl_check_hostname": False,
        "ssl_cafile": str(files / "ca.pem"),
        "ssl_certfile": str(files / "own.pem"),
        "ssl_keyfile": str(files / "key.pem"),
        "ssl_password": "secret",
    }


def test_security_missing_secret_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KAFKA_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match=r"password is 'env:KAFKA_PASSWORD'.*variable KAFKA_PASSWORD is not set"):
        java_properties(sasl())
    with pytest.raises(ConfigError, match=r"cannot read '.*absent' of kafka.security.password: No such file"):
        python_options(sasl(password=f"file:{tmp_path / 'absent'}"))


def test_security_key_of_openssl_is_refused_with_the_command(files: Path) -> None:
    (files / "key.pem").write_text("-----BEGIN RSA PRIVATE KEY-----\n")
    security = KafkaSecurity(protocol="SSL", certificate_file=str(files / "own.pem"), key_file=str(files / "key.pem"))
    with pytest.raises(ConfigError, match=r"not a private key in PKCS #8: convert it with `openssl pkcs8 -topk8"):
        java_properties(security)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('protocol = "SASL_SSL"', "without username and password: state both"),
        (
            'username = "a"\npassword = "env:P"',
            "no use of password, username: set .* 'SASL_PLAINTEXT'",
        ),
        ('protocol = "SSL"\nusername = "a"\npassword = "env:P"', "set protocol to 'SASL_SSL'"),
        ('ca_file = "ca.pem"', "makes no use of ca_file: set protocol to 'SSL'"),
        ('protocol = "SSL"\nkey_file = "key.pem"', "one of certificate_file and key_file"),
        ('protocol = "SASL_SSL"\nusername = "a"\npassword = "hunter2"', "kafka.security.password"),
        ('protocol = "TLS"', "unknown kafka.security.protocol 'TLS'; available: PLAINTEXT"),
        ('user = "a"', r"unknown key 'user' in \[kafka.security\]"),
        (
            'protocol = "SSL"\n[kafka.properties]\n"security.protocol" = "SSL"',
            r"has security.protocol beside \[kafka.security\]: state it in one",
        ),
    ],
)
def test_security_contradictions_are_refused(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "anabranch.toml"
    path.write_text(f"[kafka.security]\n{table}\n")
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_security_secret_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    assert "hunter2" not in repr(Config().replace(kafka={"security": sasl()}))


def test_properties_in_java_form_serve_both_clients() -> None:
    kafka = KafkaConfig(
        properties={"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.jaas.config": JAAS}
    )
    assert java_client_properties(kafka)["sasl.jaas.config"].startswith(
        "org.apache.flink.kafka.shaded.org.apache.kafka.common.security.plain.PlainLoginModule required"
    )
    assert python_client_options(kafka) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "alice",
        "sasl_plain_password": 'a "quoted" word',
    }


def test_properties_with_pem_stores_become_files() -> None:
    kafka = KafkaConfig(
        properties={
            "security.protocol": "SSL",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": "ca.pem",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": "own.pem",
            "ssl.key.password": "p",
            "ssl.endpoint.identification.algorithm": "",
        }
    )
    assert python_client_options(kafka) == {
        "security_protocol": "SSL",
        "ssl_cafile": "ca.pem",
        "ssl_certfile": "own.pem",
        "ssl_keyfile": "own.pem",
        "ssl_password": "p",
        "ssl_check_hostname": False,
    }


def test_properties_that_only_java_reads_are_refused_for_python() -> None:
    jks = KafkaConfig(properties={"ssl.truststore.location": "trust.jks"})
    kerberos = KafkaConfig(properties={"sasl.jaas.config": "com.sun.security.auth.module.Krb5LoginModule required;"})
    for kafka in (jks, kerberos):
        with pytest.raises(ConfigError, match=r"state .* in \[kafka.security\]"):
            python_client_options(kafka)


def test_properties_numbers_become_text_for_java(tmp_path: Path) -> None:
    path = tmp_path / "anabranch.toml"
    path.write_text('[kafka.properties]\n"request.timeout.ms" = 60000\n"enable.idempotence" = true\n')
    assert java_client_properties(load(path).kafka) == {"request.timeout.ms": "60000", "enable.idempotence": "true"}
