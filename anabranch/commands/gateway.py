"""`gateway`: answers HTTP and gRPC requests with the job's answers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from anabranch.commands.infer import StackServers, TopicsConfig, client_config
from anabranch.commands.output import PLAIN, print_json
from anabranch.commands.stack import DataDir, GrpcPort, HttpPort
from anabranch.errors import UnusableArgument
from anabranch.flink_job.config import Config
from anabranch.stack import local_stack as stack
from anabranch.stack.gateways import GRPC_PORT, HTTP_PORT, GatewayPorts
from anabranch.stack.ports import prefer

_SWITCH_S = 0.000_5

if TYPE_CHECKING:
    from anabranch.gateway.server import Gateway, GatewayOptions
    from anabranch.gateway.tracing import Tracer


def gateway(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    http_port: HttpPort = None,
    grpc_port: GrpcPort = None,
    bootstrap_servers: StackServers = None,
    config_path: TopicsConfig = None,
    flink_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="REST address of Flink, for the page at /. Default: the local stack's."),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=0.001, help="Deadline of requests that state none.")
    ] = 30,
    max_in_flight: Annotated[
        int, typer.Option("--max-in-flight", min=1, help="Requests without answer; more get status 503.")
    ] = 1024,
    max_connections: Annotated[
        int, typer.Option("--max-connections", min=1, help="Open connections; more get status 503.")
    ] = 1024,
    api_keys: Annotated[
        Path | None,
        typer.Option("--api-keys", metavar="FILE", help="Keys that callers send as `Authorization: Bearer KEY`."),
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open-to-all", help="Listen on other addresses than this machine's without keys.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", metavar="FILE", help="PEM file; serves HTTPS.")
    ] = None,
    private_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="PEM file of its key.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option("--tls-client-ca", metavar="FILE", help="Only clients with a certificate of it may connect."),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            "--otlp-endpoint", metavar="URL", help="Collector of spans, by OTLP over HTTP: http://127.0.0.1:4318."
        ),
    ] = None,
    trace_share: Annotated[
        float,
        typer.Option("--trace-share", min=0, max=1, help="Share of requests to trace, of those without `traceparent`."),
    ] = 0,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it to the local stack, which `status` shows and `down` stops.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print urls and pid as JSON when it serves.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Serve the job's models over HTTP and gRPC: the Open Inference Protocol.

    `anabranch up` starts one. Run more beside it or on other machines: each reads
    only its own answers from Kafka. It runs until Ctrl-C, or with --detach until
    `anabranch down`.

      anabranch gateway --http-port 8090

      curl 127.0.0.1:8090/v2/models
    """
    from anabranch.gateway.access import Keys, is_loopback, read_keys  # noqa: PLC0415 - `--help` must be quick
    from anabranch.gateway.server import GatewayOptions  # noqa: PLC0415 - the same

    if not api_keys and not open_to_all and not is_loopback(host):
        raise UnusableArgument(
            f"{host} is reached from other machines, and the gateway has no keys: give --api-keys, or --open-to-all"
        )
    if bool(certificate) != bool(private_key) or (client_ca and not certificate):
        raise UnusableArgument("TLS needs --tls-certificate and --tls-key: give both")
    if trace_share and not otlp_endpoint:
        raise UnusableArgument("--trace-share needs a collector: give --otlp-endpoint")
    config = client_config(config_path, bootstrap_servers, data_dir)
    flink_url = flink_url or stack.addresses(stack.data_dir(data_dir)).get(config.kafka.bootstrap_servers, "")
    files = {
        "--config": config_path,
        "--api-keys": api_keys,
        "--tls-certificate": certificate,
        "--tls-key": private_key,
        "--tls-client-ca": client_ca,
    }
    keys = read_keys(api_keys) if api_keys else Keys()
    if detach:
        values: dict[str, object] = {
            "--host": host,
            "--bootstrap-servers": config.kafka.bootstrap_servers,
            **({"--flink-url": flink_url} if flink_url else {}),
            "--timeout-s": timeout_s,
            "--max-in-flight": max_in_flight,
            "--max-connections": max_connections,
            **({"--otlp-endpoint": otlp_endpoint, "--trace-share": trace_share} if otlp_endpoint else {}),
            **{option: path.resolve() for option, path in files.items() if path},
        }
        arguments = [str(word) for option in values.items() for word in option]
        ports = GatewayPorts(http=http_port, grpc=grpc_port)
        _detach(stack.data_dir(data_dir), ports, [*arguments, *(["--open-to-all"] if open_to_all else [])], as_json)
        return
    options = GatewayOptions(
        host=host,
        http_port=prefer(HTTP_PORT) if http_port is None else http_port,
        grpc_port=prefer(GRPC_PORT) if grpc_port is None else grpc_port,
        max_in_flight=max_in_flight,
        max_connections=max_connections,
        max_body_bytes=config.kafka.max_message_bytes,
        timeout_s=timeout_s,
        certificate=str(certificate) if certificate else None,
        private_key=str(private_key) if private_key else None,
        client_ca=str(client_ca) if client_ca else None,
        keys=keys,
        any_host=open_to_all,
    )
    tracer = None
    if otlp_endpoint:
        from anabranch.gateway.tracing import Tracer  # noqa: PLC0415 - needs the extra `tracing`

        tracer = Tracer(otlp_endpoint, trace_share)
    _serve(config, options, flink_url, tracer, as_json=as_json)


def _detach(folder: Path, ports: GatewayPorts, arguments: list[str], as_json: bool) -> None:
    with Console(stderr=True).status("Starting the gateway"):
        address = stack.add_gateway(folder, ports, arguments)
    if as_json:
        print_json(address)
    else:
        Console().print(f"{_served_at(address.http_url, address.grpc_url)}; `anabranch down` stops it.", **PLAIN)


def _serve(config: Config, options: GatewayOptions, flink_url: str, tracer: Tracer | None, *, as_json: bool) -> None:
    import uvloop  # noqa: PLC0415 - the same

    from anabranch.flink_job.kafka.properties import python_client_options  # noqa: PLC0415 - the same
    from anabranch.gateway.job_connection import connection_for_job  # noqa: PLC0415 - imports Kafka
    from anabranch.gateway.job_view import PageData  # noqa: PLC0415 - the same
    from anabranch.gateway.server import Gateway, serve  # noqa: PLC0415 - the same
    from anabranch.messaging.awaited_connection import AwaitedConnection  # noqa: PLC0415 - the same
    from anabranch.served_models import ServedModels, ServedModelsReader  # noqa: PLC0415 - the same

    console, kafka, served = Console(stderr=True), config.kafka, ServedModels()
    with console.status("Connecting to Kafka"):
        options_of_kafka = python_client_options(kafka)
        reader = ServedModelsReader(kafka.bootstrap_servers, kafka.models_topic, options_of_kafka, served)
        reader.start()
        connection = AwaitedConnection(lambda: connection_for_job(config, timeout_s=options.timeout_s), served)
    door = Gateway(options, connection, served, PageData(config, flink_url), tracer)

    async def run() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await serve(door, lambda: _print(door, console, as_json=as_json), stopped.wait)

    try:
        # The threads of Kafka wait that long for the loop's.
        sys.setswitchinterval(_SWITCH_S)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    finally:
        reader.close()


def _print(door: Gateway, console: Console, *, as_json: bool) -> None:
    if as_json:
        print_json({"http_url": door.http_url, "grpc_url": door.grpc_url, "pid": os.getpid()})
        return
    names = ", ".join(door.service.served.models) or "no model yet"
    console.print(f"{_served_at(door.http_url, door.grpc_url)}: {names}; Ctrl-C stops it.", **PLAIN)


def _served_at(http_url: str, grpc_url: str) -> str:
    return f"Serves HTTP at {http_url}/v2 and gRPC at {grpc_url}"
