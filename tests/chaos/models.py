"""Tiny models, and what ONNX Runtime alone answers with them.

small@1, small@2:    y = relu(x W) V: two layers         double@1, double@2:  y = 2x + 1, y = 2x + 2; split by 16 rows
steps:               y = 2x + table[i], in stages        halfway:             mean of double@1 and double@2
lookup:              y = table[i]; fails on a row with i >= 8

The second generation of the repository adds small@2 and cuts `steps` into three stages instead of two.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from onnx import numpy_helper

from tests.flink.models import write_cut_model

SMALL_INPUTS, SMALL_OUTPUTS = 8, 4
#: Version that answers requests without one, by generation of the repository.
NEWEST_SMALL = ("1", "2")

Arrays = Mapping[str, np.ndarray[Any, Any]]


def write_models(folder: Path, generation: int) -> None:
    """Writes one generation of the repository."""
    for version in range(1, generation + 2):
        _write(folder / "small" / str(version), *_small(version))
    for version in (1, 2):
        _write(folder / "double" / str(version), *_double(version))
    (folder / "double" / "model.toml").write_text("[batching]\nshard_rows = 16\nmax_rows = 64\n")
    table = numpy_helper.from_array(np.arange(8, dtype=np.float32) * 10, "table")
    _write(folder / "lookup" / "1", "(int64[n] i) => (float[n] y) { y = Gather(table, i) }", table)
    (folder / "halfway").mkdir()
    (folder / "halfway" / "model.toml").write_text('[ensemble]\nmembers = ["double@1", "double@2"]\n')
    replicas = ", ".join(["1"] * (2 + generation))
    toml = f"replicas = [{replicas}]\n[batching]\nshard_rows = 16\n"
    write_cut_model(folder, toml, stages=2 + generation)


class Reference:
    """Answers of plain ONNX Runtime, model by model, with whole models only."""

    def __init__(self, folder: Path) -> None:
        """Writes the models of both generations to a folder."""
        self._folder = folder
        write_models(folder, generation=1)

    def run(self, model: str, version: str, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the outputs by name."""
        if model == "halfway":
            parts = [self.run("double", member, inputs)["y"] for member in ("1", "2")]
            return {"y": np.mean(np.stack(parts), axis=0, dtype=np.float64).astype(np.float32)}
        session = self._session(model, version)
        return dict(zip((each.name for each in session.get_outputs()), session.run(None, dict(inputs)), strict=True))

    @functools.cache  # noqa: B019 - one object for each run
    def _session(self, model: str, version: str) -> Any:
        return ort.InferenceSession(str(self._folder / model / version / "model.onnx"))


def _small(version: int) -> tuple[str, *tuple[onnx.TensorProto, ...]]:
    random = np.random.default_rng(version)
    w = numpy_helper.from_array(random.standard_normal((SMALL_INPUTS, 16), dtype=np.float32), "w")
    v = numpy_helper.from_array(random.standard_normal((16, SMALL_OUTPUTS), dtype=np.float32), "v")
    types = f"(float[n,{SMALL_INPUTS}] x) => (float[n,{SMALL_OUTPUTS}] y)"
    return f"{types} {{ h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }}", w, v


def _double(version: int) -> tuple[str, *tuple[onnx.TensorProto, ...]]:
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    addend = numpy_helper.from_array(np.array(version, np.float32), "addend")
    return "(float[n,4] x) => (float[n,4] y) { t = Mul(x, two) y = Add(t, addend) }", two, addend


def _write(folder: Path, graph: str, *constants: onnx.TensorProto) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 15]> model {graph}')
    model.graph.initializer.extend(constants)
    folder.mkdir(parents=True)
    onnx.save(model, str(folder / "model.onnx"))
