import socket

import pytest

from anabranch.stack.errors import PortInUse
from anabranch.stack.ports import answers, claim, free_port, is_free


def test_claim_taken_port_names_the_option() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        assert answers(port)
        with pytest.raises(PortInUse, match=rf"port {port} is in use .* --kafka-port"):
            claim(port, "--kafka-port")


def test_claim_zero_returns_a_free_port() -> None:
    port = claim(0, "--kafka-port")
    assert is_free(port)
    assert not answers(port)


def test_free_port_is_below_outgoing_connections() -> None:
    assert all(20_000 <= free_port() < 32_000 for _ in range(20))
