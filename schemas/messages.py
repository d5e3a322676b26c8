"""What a person sends and gets: the protocol's request and answer, free of their form on the wire."""

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeAlias

import msgspec

from anabranch.schemas.tensors import Tensor

Parameter: TypeAlias = bool | int | float | str


class Encoding(IntEnum):
    """How a message was written; the answer is written alike."""

    PROTOBUF = 0
    JSON = 1


class InferRequest(msgspec.Struct, frozen=True):
    """One request of the Open Inference Protocol.

    Attributes:
        model_name: The model to run; empty means "the only one that is served".
        inputs: One tensor for each input of the model, in any order.
        id: Echoed in the answer, and the key of the answer's record.
        model_version: Empty means the newest.
        parameters: `priority` (int, 0 = default, 1 = highest), `timeout` (int, microseconds from the record's
            timestamp), `partial` (bool: at the deadline, or where rows fail, answer with the rows that are there),
            `explain` (bool: the answer says in `shards` and `tasks` how it was spread); others are ignored.
        outputs: The outputs to answer with, in this order; empty means all.
        form: How it is written on the wire.
    """

    model_name: str
    inputs: tuple[Tensor, ...]
    id: str = ""
    model_version: str = ""
    parameters: Mapping[str, Parameter] = {}
    outputs: tuple[str, ...] = ()
    encoding: Encoding = Encoding.PROTOBUF


class InferResponse(msgspec.Struct, frozen=True):
    """The answer to a request that was served.

    A partial answer (see `InferRequest.parameters`) has the parameter `missing_rows`, the row ranges that are not in
    its outputs, as `"first-last,…"` with both ends included, and `error_code` and `error_message`, which say why. An
    ensemble's answer that is made without some of its members names them in `missing_members`: `"name,…"`.
    """

    model_name: str
    model_version: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Parameter] = {}


class ErrorResponse(msgspec.Struct, frozen=True):
    """The answer to a request that failed; `code` is one of `anabranch.schemas.errors`."""

    id: str
    code: str
    message: str
    model_name: str = ""
    model_version: str = ""
