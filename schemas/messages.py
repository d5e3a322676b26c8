"""Requests and responses, independent of their encoding."""

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeAlias

import msgspec

from anabranch.schemas.tensors import Tensor

Parameter: TypeAlias = bool | int | float | str


class Encoding(IntEnum):
    """Encoding of a request and its response."""

    PROTOBUF = 0
    JSON = 1


class InferRequest(msgspec.Struct, frozen=True):
    """A request.

    Attributes:
        model_name: Empty for the only served model.
        inputs: In any order.
        id: Echoed, also as the Kafka key.
        model_version: Empty for the newest.
        parameters: `priority` (int, 1 = highest, 0 = default), `timeout` (int, microseconds from the Kafka timestamp),
            `partial` (bool, answer without missing rows), `explain` (bool, add shards, tasks, latency breakdown).
        outputs: Names in order; empty for all.
        encoding: Also of the response.
    """

    model_name: str
    inputs: tuple[Tensor, ...]
    id: str = ""
    model_version: str = ""
    parameters: Mapping[str, Parameter] = {}
    outputs: tuple[str, ...] = ()
    encoding: Encoding = Encoding.PROTOBUF


class InferResponse(msgspec.Struct, frozen=True):
    """The response to a served request.

    A partial one has the parameters `missing_rows` (`"first-last,…"`, inclusive), `error_code` and `error_message`, or
    `missing_members`.
    """

    model_name: str
    model_version: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Parameter] = {}


class ErrorResponse(msgspec.Struct, frozen=True):
    """The response to a failed request; `code` is one of `anabranch.schemas.errors`."""

    id: str
    code: str
    message: str
    model_name: str = ""
    model_version: str = ""
