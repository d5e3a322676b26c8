"""Chains with ready steps, served in this process: beside functions, one behind another, and of frames."""

import base64
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from anabranch.importing.hugging_face import add_export
from anabranch.importing.task import Task
from anabranch.schemas.messages import ErrorResponse
from anabranch.trial.flow_trial import FlowTrial
from tests.ready_steps.exports import (
    LABELS,
    SIZE,
    WORDS,
    png,
    write_model,
    write_picture_export,
    write_text_export,
    write_text_model,
    write_tokenizer,
)
from tests.ready_steps.served import Served, outputs_of

TEXTS = ["good film", "bad", "the river runs and joins again", "bad", "so so long"]
TEXT = 'inputs.text = { datatype = "BYTES", shape = [-1] }'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text_model(tmp_path / "chain" / "model.onnx")
    write_tokenizer(tmp_path / "chain" / "tokenizer.json")
    return tmp_path / "chain"


def serve(folder: Path, toml: str) -> Served:
    (folder / "model.toml").write_text(toml)
    return Served(folder.parent)


def test_step_tokens_reach_a_function_behind_the_model(folder: Path) -> None:
    (folder / "steps.py").write_text(
        "import numpy as np\n"
        "def count(tensors, runs):\n"
        "    counts = np.zeros(len(tensors['text']), np.int64)\n"
        "    for run in runs:\n"
        "        counts[run['rows']] = run['attention_mask'].sum(1)\n"
        "    return {'tokens': counts}\n"
    )
    served = serve(
        folder,
        f'[chain]\n{TEXT}\noutputs.tokens = {{ datatype = "INT64", shape = [-1] }}\n'
        '[[chain.steps]]\nmodel = "model.onnx"\nbefore = { step = "tokenize" }\nafter = "steps.py:count"\n',
    )
    [answer] = served.ask("chain", {"text": TEXTS})
    assert isinstance(answer, dict)
    assert answer["tokens"].tolist() == [len(text.split()) + 2 for text in TEXTS]


def test_step_labels_follow_a_function_before_the_model(folder: Path) -> None:
    write_text_model(folder / "model.onnx", labels=2)
    (folder / "steps.py").write_text(
        "import numpy as np\n"
        "def first_word(tensors):\n"
        f"    words = {WORDS!r}\n"
        "    ids = [[words.index(text.decode().split()[0])] for text in tensors['text']]\n"
        "    return {'input_ids': np.array(ids), 'attention_mask': np.ones((len(ids), 1), np.int64)}\n"
    )
    served = serve(
        folder,
        f'[chain]\n{TEXT}\noutputs.label = {{ datatype = "BYTES", shape = [-1] }}\n'
        '[[chain.steps]]\nmodel = "model.onnx"\nbefore = "steps.py:first_word"\n'
        'after = { step = "labels", labels = ["a", "b"] }\n',
    )
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    ids = np.array([[WORDS.index(text.split()[0])] for text in TEXTS])
    [logits] = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    [answer] = served.ask("chain", {"text": TEXTS})
    assert isinstance(answer, dict)
    assert answer["label"].tolist() == [(b"a", b"b")[best] for best in logits.argmax(1)]


def test_steps_one_behind_another_share_batches(folder: Path) -> None:
    weights = np.random.default_rng(7).standard_normal((SIZE, 3)).astype(np.float32)
    write_model(
        folder / "head.onnx",
        f"g (float[n,{SIZE}] embedding) => (float[n,3] logits) {{ logits = MatMul(embedding, weights) }}",
        weights=weights,
    )
    served = serve(
        folder,
        f'[chain]\n{TEXT}\noutputs.scores = {{ datatype = "FP32", shape = [-1, 3] }}\n'
        '[[chain.steps]]\nmodel = "model.onnx"\nbefore = { step = "tokenize" }\nafter = { step = "pool" }\n'
        '[[chain.steps]]\nmodel = "head.onnx"\nafter = { step = "labels", labels = ["a", "b", "c"] }\n',
    )
    assert served.catalog.find("chain", "").batchable
    [together] = outputs_of(served.ask("chain", {"text": TEXTS}), "scores")
    *apart, bad = served.ask("chain", *({"text": [text]} for text in TEXTS), {"text": [b"\xff"]})
    assert isinstance(bad, ErrorResponse)
    assert bad.message.startswith("row 0: step 1 (model): 'text' is not UTF-8")
    np.testing.assert_allclose(np.concatenate(outputs_of(apart, "scores")), together, atol=1e-6)
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-6)
    assert len({row.argmax() for row in together}) > 1


def test_steps_of_frames_give_an_output_for_each(folder: Path) -> None:
    write_model(
        folder / "model.onnx",
        "g (float[n,4] frames) => (float[n] loudness) { s = Mul(frames, frames) loudness = "
        "ReduceMean<axes = [1], keepdims = 0>(s) }",
    )
    served = serve(
        folder,
        '[chain]\ninputs.audio = { datatype = "INT16", shape = [-1] }\n'
        'outputs.loudness = { datatype = "FP32", shape = [-1] }\n'
        '[[chain.steps]]\nmodel = "model.onnx"\nbefore = { step = "frames", size = 4, hop = 2 }\n',
    )
    samples = np.arange(-9000, 9000, 1800, dtype=np.int16)
    found, short = served.ask("chain", {"audio": samples}, {"audio": samples[:0]})
    assert isinstance(found, dict)
    frames = [samples[at : at + 4].astype(np.float64) / 32768 for at in (0, 2, 4, 6)]
    np.testing.assert_allclose(found["loudness"], [(frame**2).mean() for frame in frames], atol=1e-7)
    assert isinstance(short, ErrorResponse)
    assert (short.code, short.message) == (
        "unreadable_input",
        "step 1 (model): 'audio' has 0 samples, expected 4 or more: send more",
    )


def test_steps_behind_a_flow_take_texts_and_pictures_of_events(tmp_path: Path) -> None:
    add_export(write_picture_export(tmp_path / "pictures"), Task.IMAGE_CLASSIFICATION, "", tmp_path / "models" / "p")
    add_export(write_text_export(tmp_path / "texts"), Task.FEATURE_EXTRACTION, "", tmp_path / "models" / "t")
    file = tmp_path / "anabranch.toml"
    file.write_text(
        '[[flow]]\nfrom = "a"\nto = "b"\nmodel = "p"\ninputs.picture = "image.data"\noutputs."image.label" = "label"\n'
        '[[flow]]\nfrom = "c"\nto = "d"\nmodel = "t"\ninputs.text = "body"\noutputs.embedding = "embedding"\n'
    )
    data = base64.b64encode(png(7, 5)).decode()
    pictures = FlowTrial(file, "a", tmp_path / "models")
    good, bad = pictures.run([json.dumps({"image": {"data": each}}).encode() for each in (data, "no picture")])
    assert json.loads(good.value)["image"]["label"] in LABELS.values()
    assert "unreadable_input" in bad.failure
    [embedded] = FlowTrial(file, "c", tmp_path / "models").run([b'{"body": "good film"}'])
    assert np.linalg.norm(json.loads(embedded.value)["embedding"]) == pytest.approx(1, abs=1e-6)
    assert len(json.loads(embedded.value)["embedding"]) == SIZE
