"""One `[kafka.security]` table serves job, client and topic creation, on a broker with TLS and SASL."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

from anabranch import Client, TransportError
from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.flink_job.kafka.properties import python_client_options
from anabranch.flink_job.kafka.security import KafkaSecurity
from anabranch.stack.errors import StackError
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.topics import idle_task_count, make_topics
from tests.certificates import Certificates
from tests.flink.conftest import MODES

PLAIN_LOGIN = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    'username="admin" password="admin-secret" user_admin="admin-secret";'
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure_broker(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[KafkaBroker]:
    """A broker that wants a certificate of its clients, and a password beside."""
    settings = {
        "listener.security.protocol.map": "PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512,SCRAM-SHA-256",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.plaintext.plain.sasl.jaas.config": PLAIN_LOGIN,
        "listener.name.plaintext.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.plaintext.scram-sha-256.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.server_file),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca_file),
        "listener.name.plaintext.ssl.client.auth": "required",
    }
    with KafkaBroker(tmp_path_factory.mktemp("secure kafka"), settings=settings) as broker:
        admin = KafkaAdminClient(
            bootstrap_servers=broker.bootstrap_servers,
            **python_client_options(config_of(broker, certificates, "PLAIN", "admin", "ADMIN").kafka),
        )
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            added = UserScramCredentialUpsertion("alice", mechanism, "alice-secret", iterations=4096)
            assert admin.alter_user_scram_credentials([added]) == {"alice": None}
        admin.close()
        yield broker


@pytest.fixture(scope="module", autouse=True)
def _passwords() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for user in ("admin", "alice"):
            patch.setenv(user.upper(), f"{user}-secret")
        patch.setenv("WRONG", "wrong")
        yield


def config_of(
    broker: KafkaBroker, certificates: Certificates, mechanism: str, user: str, variable: str, run: str = ""
) -> Config:
    return Config().replace(
        kafka={
            "bootstrap_servers": broker.bootstrap_servers,
            "requests_topic": f"secure-requests-{run}",
            "responses_topic": f"secure-responses-{run}",
            "errors_topic": f"secure-errors-{run}",
            "models_topic": f"secure-models-{run}",
            "group_id": f"secure-{run}",
            "security": KafkaSecurity(
                protocol="SASL_SSL",
                mechanism=mechanism,  # type: ignore[arg-type]
                username=user,
                password=f"env:{variable}",
                ca_file=str(certificates.ca_file),
                certificate_file=str(certificates.certificate_file),
                key_file=str(certificates.key_file),
            ),
        }
    )


@pytest.mark.stack
@pytest.mark.parametrize(("mode", "mechanism"), [(MODES[0], "SCRAM-SHA-512"), (MODES[1], "PLAIN")])
def test_secure_broker_serves_job_client_and_topics(
    secure_broker: KafkaBroker,
    certificates: Certificates,
    model_repository: Path,
    tmp_path: Path,
    mode: str,
    mechanism: str,
) -> None:
    shutil.copytree(model_repository / "double", tmp_path / "double")
    user = "alice" if mechanism.startswith("SCRAM") else "admin"
    config = config_of(secure_broker, certificates, mechanism, user, user.upper(), mode).replace(
        job={"execution_mode": mode, "delivery": "exactly-once", "checkpoint_interval_ms": 500},
        models={"repository": str(tmp_path)},
    )
    assert len(make_topics(config)) == 4
    assert make_topics(config) == []
    assert idle_task_count(config) == 0
    running = job.start(config)
    try:
        with Client.for_job(config, timeout_s=90) as client:
            assert client.infer("double", {"x": np.ones((2, 4), np.float32)})["y"].tolist() == [[4.0] * 4] * 2
    finally:
        running.cancel()


@pytest.mark.stack
def test_secure_broker_wrong_password_is_a_typed_error(secure_broker: KafkaBroker, certificates: Certificates) -> None:
    config = config_of(secure_broker, certificates, "SCRAM-SHA-256", "alice", "WRONG")
    # The broker sends the reason and closes at once; a client that reads late may see the end alone.
    reasons = "invalid credentials with SASL mechanism SCRAM-SHA-256|Unable to bootstrap"
    with pytest.raises(StackError, match=f"({reasons}).*check names, broker and kafka.security"):
        make_topics(config)
    # A busy broker may not have answered within the client's 5 s.
    with pytest.raises(TransportError, match="no Kafka broker"):
        Client.for_job(config)
