"""A back-end whose sessions sleep, for tests; TaskManagers import this module, so it imports little."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anabranch.operators.backends.base import Session
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Array

BATCH_S = 0.02


@dataclass(frozen=True)
class SlowBackend:
    """ONNX models that sleep before each batch, so that all tasks are equally fast on any machine."""

    def load(self, model: ModelSpec) -> Session:
        return SlowSession(OnnxBackend().load(model))


class SlowSession:
    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        time.sleep(BATCH_S)
        return self._session.run(outputs, inputs)
