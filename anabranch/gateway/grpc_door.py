"""gRPC door: the Open Inference Protocol as `inference.GRPCInferenceService`, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from anabranch import __version__
from anabranch.gateway import inference_service_pb2 as pb2
from anabranch.gateway.access import Keys
from anabranch.gateway.model_service import EXTENSIONS, NAME, ModelService
from anabranch.gateway.streams import in_order
from anabranch.messaging.errors import TransportError
from anabranch.schemas import open_inference_pb2
from anabranch.schemas.errors import (
    AnabranchError,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    RequestError,
    ServingError,
    UnknownModel,
    UnknownVersion,
    UnreadableRequest,
)
from anabranch.schemas.open_inference_pb2 import ModelInferResponse
from anabranch.schemas.wire import protobuf_wire

SERVICE = "inference.GRPCInferenceService"
#: Trailing metadata with the stable code of an error.
CODE_KEY = "anabranch-code"
#: The first class that an error has decides.
_STATUSES: tuple[tuple[type[AnabranchError], grpc.StatusCode], ...] = (
    (UnknownModel, grpc.StatusCode.NOT_FOUND),
    (UnknownVersion, grpc.StatusCode.NOT_FOUND),
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (InternalError, grpc.StatusCode.INTERNAL),
    (TransportError, grpc.StatusCode.UNAVAILABLE),
    (ServingError, grpc.StatusCode.FAILED_PRECONDITION),
)
_INFER_RESPONSE = pb2.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER
_HEALTH_S = 1.0

Context: TypeAlias = grpc.aio.ServicerContext


def status_of(error: AnabranchError) -> grpc.StatusCode:
    """Return the status of an error."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class GrpcDoor:
    """The service of a gateway; `max_body_bytes` bounds a message."""

    def __init__(self, service: ModelService, keys: Keys, *, max_body_bytes: int, max_calls: int) -> None:
        self._service = service
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._max_calls = max_calls

    async def start(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Open the door, and return its port; raise OSError if that is taken."""
        self._server = server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=self._max_calls,
        )
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, self._handlers())])
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, _public_descriptors())
        try:
            port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await server.start()
        self._health_task = asyncio.ensure_future(self._tell_health())
        return int(port)

    async def close(self, grace_s: float) -> None:
        """Close the door."""
        self._health_task.cancel()
        await self._server.stop(grace_s)

    async def _tell_health(self) -> None:
        statuses = health_pb2.HealthCheckResponse
        while True:
            status = statuses.SERVING if self._service.is_ready else statuses.NOT_SERVING
            for name in ("", SERVICE):
                await self._health.set(name, status)
            await asyncio.sleep(_HEALTH_S)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        described: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "ServerLive": (pb2.ServerLiveRequest, lambda _: pb2.ServerLiveResponse(live=True)),
            "ServerReady": (pb2.ServerReadyRequest, lambda _: pb2.ServerReadyResponse(ready=self._service.is_ready)),
            "ServerMetadata": (pb2.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (pb2.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb2.ModelMetadataRequest, self._metadata),
            "ModelConfig": (pb2.ModelConfigRequest, self._config),
            "ModelStatistics": (pb2.ModelStatisticsRequest, self._statistics),
            "RepositoryIndex": (pb2.RepositoryIndexRequest, self._index),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(self._answering(describe)), request.FromString, _to_bytes
            )
            for name, (request, describe) in described.items()
        }
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._guarded(self._infer))
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return handlers

    def _guarded(self, handler: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
        async def guarded(request: Any, context: Context) -> Any:
            await self._admit(context)
            try:
                return await handler(request, context)
            except AnabranchError as error:
                await _abort(context, error)

        return guarded

    async def _admit(self, context: Context) -> None:
        metadata = {str(name): str(value) for name, value in context.invocation_metadata() or ()}
        if not self._keys.admit(metadata.get("authorization"), metadata.get("x-api-key")):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no valid key: send `authorization: Bearer KEY`")

    # ---- descriptions

    def _answering(self, describe: Callable[[Any], Message]) -> Callable[[Any, Context], Awaitable[Message]]:
        async def answering(request: Any, _: Context) -> Message:
            return describe(request)

        return answering

    def _server_metadata(self, _: Any) -> Message:
        return pb2.ServerMetadataResponse(name=NAME, version=__version__, extensions=EXTENSIONS)

    def _model_ready(self, request: Any) -> Message:
        try:
            self._service.served.find(request.name, request.version)
        except (UnknownModel, UnknownVersion):
            return pb2.ModelReadyResponse(ready=False)
        return pb2.ModelReadyResponse(ready=self._service.bridge.is_alive)

    def _metadata(self, request: Any) -> Message:
        return pb2.ModelMetadataResponse(**self._service.metadata(request.name, request.version))

    def _config(self, request: Any) -> Message:
        return pb2.ModelConfigResponse(config=pb2.ModelConfig(**self._service.config(request.name, request.version)))

    def _statistics(self, request: Any) -> Message:
        return pb2.ModelStatisticsResponse(**self._service.statistics(request.name, request.version))

    def _index(self, _: Any) -> Message:
        return pb2.RepositoryIndexResponse(models=self._service.index())

    # ---- inference

    async def _infer(self, message: bytes, context: Context) -> bytes:
        return await self._service.ask_encoded(message, context.time_remaining(), "grpc", _traceparent(context))

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        await self._admit(context)
        async for answer in in_order(requests, lambda message: self._wrapped(message, context)):
            yield answer

    async def _wrapped(self, message: bytes, context: Context) -> bytes:
        try:
            left_s = context.time_remaining()
            answer = await self._service.ask_encoded(message, left_s, "grpc", _traceparent(context))
        except AnabranchError as error:
            request_id = ""
            with suppress(UnreadableRequest):
                request_id = protobuf_wire.find_id(message)
            failed = ModelInferResponse(id=request_id)
            wrapped = pb2.ModelStreamInferResponse(error_message=f"{error.code}: {error}", infer_response=failed)
            return _to_bytes(wrapped)
        return protobuf_wire.write_field(_INFER_RESPONSE, answer)


def _traceparent(context: Context) -> str | None:
    values = [value for name, value in context.invocation_metadata() or () if name == "traceparent"]
    return str(values[0]) if values else None


def _to_bytes(message: Message) -> bytes:
    return message.SerializeToString()


async def _abort(context: Context, error: AnabranchError) -> NoReturn:
    await context.abort(status_of(error), error.message, ((CODE_KEY, error.code),))
    raise AssertionError("abort raises")


def _public_descriptors() -> DescriptorPool:
    """Return the descriptors under the protocol's package name, for reflection."""
    pool, own = DescriptorPool(), f".{pb2.DESCRIPTOR.package}."
    for module in (open_inference_pb2, pb2, health_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        if f".{file.package}." == own:
            file.package = SERVICE.partition(".")[0]
            for message in file.message_type:
                _rename(message, own)
            for method in (method for service in file.service for method in service.method):
                method.input_type = method.input_type.replace(own, f".{file.package}.")
                method.output_type = method.output_type.replace(own, f".{file.package}.")
        pool.Add(file)
    return pool


def _rename(message: DescriptorProto, own: str) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = field.type_name.replace(own, ".inference.")
    for nested in message.nested_type:
        _rename(nested, own)
