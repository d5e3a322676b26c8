"""Triton's own client talks to a gateway, unmodified."""

from collections.abc import Callable

from tests.gateway.conftest import Served, start

__all__ = ["start"]


def test_gateway_triton_client_reads_right_answers(
    start: Callable[..., Served],
    run_there: Callable[..., None],
) -> None:
    served = start(timeout_s=20.0)
    run_there("triton_at_gateway.py", served.address, served.gateway.grpc_url)
