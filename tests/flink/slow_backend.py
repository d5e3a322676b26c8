"""A back-end whose sessions sleep, for tests; TaskManagers import this module, so it imports little."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.operators.backends.base import Session
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Array

BATCH_S = 0.02


@dataclass(frozen=True)
class SlowBackend:
    """ONNX models that sleep before each batch, so that all tasks are equally fast on any machine.

    Attributes:
        only: The one slow model, or all.
        until: A file whose existence ends the sleep.
    """

    only: str = ""
    batch_s: float = BATCH_S
    until: str = "/nowhere"

    def load(self, model: ModelSpec) -> Session:
        session = OnnxBackend().load(model)
        return SlowSession(session, self.batch_s, self.until) if self.only in ("", model.name) else session


class SlowSession:
    def __init__(self, session: Session, batch_s: float, until: str) -> None:
        self._session = session
        self._batch_s = batch_s
        self._until = Path(until)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        if not self._until.exists():
            time.sleep(self._batch_s)
        return self._session.run(outputs, inputs)
