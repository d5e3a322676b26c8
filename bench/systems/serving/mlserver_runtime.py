"""An ONNX runtime for MLServer, imported by the server."""

from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri

from bench.systems.onnx_session import open_session


class OnnxModel(MLModel):
    """A model of one output; MLServer forms the batches."""

    async def load(self) -> bool:
        """Load it."""
        self._session = open_session(Path(await get_model_uri(self._settings)))
        self._output = self._session.get_outputs()[0].name
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one batch."""
        inputs = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        (scores,) = self._session.run([self._output], inputs)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(self._output, scores)])
