"""A back-end whose sessions end their process, as native code may; TaskManagers import this module."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anabranch.operators.backends.base import Session
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Array

POISON = 13_000_000.0


@dataclass(frozen=True)
class KillingBackend:
    """ONNX models; a row that starts with `POISON` ends the process."""

    def load(self, model: ModelSpec) -> Session:
        return KillingSession(OnnxBackend().load(model))


class KillingSession:
    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        x = inputs.get("x")
        if x is not None and x.size and (x.reshape(len(x), -1)[:, 0] == POISON).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return self._session.run(outputs, inputs)
