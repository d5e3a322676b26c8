"""Anabranch for those who use it: `Client` asks a running job for answers, numpy in and numpy out.

    with anabranch.Client("127.0.0.1:9092") as client:
        result = client.infer("digits", {"x": images})
        result["logits"]

The names are loaded when they are first used, so that importing a module of this package brings no Kafka client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anabranch.client import Client
    from anabranch.client_errors import BrokerUnreachable, ClientClosed, ClientError, NoAnswer, NotSent, TopicMissing
    from anabranch.result import Result

__all__ = [
    "BrokerUnreachable",
    "Client",
    "ClientClosed",
    "ClientError",
    "NoAnswer",
    "NotSent",
    "Result",
    "TopicMissing",
]
_HOMES = {"Client": "anabranch.client", "Result": "anabranch.result"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "anabranch.client_errors")), name)
