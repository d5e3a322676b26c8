"""TLS and mutual TLS at both doors, by files of real certificates."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from anabranch import Client, GatewayUnreachable
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.kafka.security import KafkaSecurity
from anabranch.gateway import inference_service_pb2 as pb2
from anabranch.gateway.grpc_door import SERVICE
from tests.certificates import Certificates
from tests.gateway.conftest import Served, gateways, ones

Start = Callable[..., Served]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def doors(certificates: Certificates) -> Iterator[dict[bool, Served]]:
    """A gateway with TLS, and one that wants a certificate of its clients, too."""
    files = {"certificate": str(certificates.server_file), "private_key": str(certificates.server_key_file)}
    with gateways() as start:
        yield {False: start(**files), True: start(**files, client_ca=str(certificates.ca_file))}


def security(certificates: Certificates, *, shows: bool, trusts: bool = True) -> KafkaSecurity:
    return KafkaSecurity(
        protocol="SSL",
        ca_file=str(certificates.ca_file) if trusts else "",
        certificate_file=str(certificates.certificate_file) if shows else "",
        key_file=str(certificates.key_file) if shows else "",
    )


@pytest.mark.parametrize("wants", [False, True])
def test_http_door_answers_clients_with_the_right_certificates(
    doors: dict[bool, Served], certificates: Certificates, wants: bool
) -> None:
    url = doors[wants].url
    assert url.startswith("https://127.0.0.1:")
    with Client(url, security=security(certificates, shows=wants)) as client:
        np.testing.assert_array_equal(client.infer("same", ones(3))["y"], ones(3))


@pytest.mark.parametrize(("wants", "shows", "trusts"), [(False, False, False), (True, False, True)])
def test_http_door_answers_no_client_without_them(
    doors: dict[bool, Served], certificates: Certificates, wants: bool, shows: bool, trusts: bool
) -> None:
    with pytest.raises(GatewayUnreachable, match="no gateway answers at https"):
        Client(doors[wants].url, security=security(certificates, shows=shows, trusts=trusts))


def test_http_door_with_tls_answers_nothing_in_clear(doors: dict[bool, Served]) -> None:
    with pytest.raises(GatewayUnreachable):
        Client(doors[False].url.replace("https", "http"))


@pytest.mark.parametrize(("wants", "shows"), [(False, False), (True, True), (True, False)])
def test_grpc_door_wants_the_same_certificates(
    doors: dict[bool, Served], certificates: Certificates, wants: bool, shows: bool
) -> None:
    pair = [path.read_bytes() if shows else None for path in (certificates.key_file, certificates.certificate_file)]
    credentials = grpc.ssl_channel_credentials(certificates.ca_file.read_bytes(), *pair)
    with grpc.secure_channel(doors[wants].gateway.grpc_url, credentials) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ServerReady", pb2.ServerReadyRequest.SerializeToString, pb2.ServerReadyResponse.FromString
        )
        if wants and not shows:
            with pytest.raises(grpc.RpcError) as caught:
                ask(pb2.ServerReadyRequest(), timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        else:
            assert ask(pb2.ServerReadyRequest(), timeout=10).ready


def test_certificate_of_another_key_is_refused(certificates: Certificates, tmp_path: Path) -> None:
    other = KafkaSecurity(
        protocol="SSL",
        certificate_file=str(certificates.certificate_file),
        key_file=str(certificates.server_key_file),
    )
    with pytest.raises(ConfigError, match="does not fit its key"):
        Client("https://127.0.0.1:1", security=other)
