"""The proxy's weathers, on sockets."""

import socket
import threading
from collections.abc import Iterator

import pytest

from anabranch.stack.ports import free_port
from tests.chaos.proxy import SLOW_LATENCY_S, TcpProxy


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that returns what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1024):
                    connection.sendall(data)
            except ConnectionError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


@pytest.fixture
def proxy(echo_port: int) -> Iterator[TcpProxy]:
    with TcpProxy(free_port(), echo_port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        client.sendall(b"first")
        assert client.recv(1024) == b"first"
        yield client


def read_anew(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as another:
        return another.recv(1024)


def test_proxy_cut_connections_are_reset_and_refused(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.set("cut")
    with pytest.raises(ConnectionResetError):
        client.recv(1024)
    with pytest.raises(ConnectionResetError):
        read_anew(proxy.port)
    assert proxy.hit >= 2


@pytest.mark.slow
@pytest.mark.parametrize("weather", ["silent", "no-up", "no-down"])
def test_proxy_withheld_data_comes_when_weather_clears(proxy: TcpProxy, client: socket.socket, weather: str) -> None:
    proxy.set(weather)  # type: ignore[arg-type]
    client.sendall(b"second")
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(1024)
    assert proxy.hit == 1
    proxy.set("fair")
    client.settimeout(10)
    assert client.recv(1024) == b"second"


def test_proxy_slow_network_delays_each_direction(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.set("slow")
    client.sendall(b"second")
    client.settimeout(SLOW_LATENCY_S)
    with pytest.raises(TimeoutError):
        client.recv(1024)
    client.settimeout(10)
    assert client.recv(1024) == b"second"
    assert proxy.hit == 2


def test_proxy_end_of_client_reaches_the_server(client: socket.socket) -> None:
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1024) == b"last"
    assert client.recv(1024) == b""
