"""all-MiniLM-L6-v2 from public packages, imported and served: equal to tokenizers and ONNX Runtime used directly."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from anabranch.importing.hugging_face import add_export
from anabranch.importing.task import Task
from anabranch.schemas.tensors import Array
from deploy.environments import environment
from examples.embeddings.make_export import make_export
from tests.ready_steps.served import Served, outputs_of

HERE = Path(__file__).parent
TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "",
    "Zürich, naïve café, 東京 and 🚀",
    *(" ".join(["an anabranch leaves the stream and joins it again"] * count) for count in (1, 2, 3, 9, 40)),
    *("the quick brown fox jumps over the lazy dog"[: 4 * count] for count in range(1, 10)),
]
pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with its tokenizer, as sentence-transformers exports it."""
    [packages] = (environment("minilm", HERE / "minilm.lock").parents[1] / "lib").glob("python*/site-packages")
    return make_export(packages, tmp_path_factory.mktemp("minilm") / "export")


@pytest.fixture(scope="module")
def directly(export: Path) -> Array:
    """The vectors of each text alone."""
    tokenizer = Tokenizer.from_file(str(export / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(json.loads((export / "sentence_bert_config.json").read_text())["max_seq_length"])
    session = onnxruntime.InferenceSession(export / "model.onnx", providers=["CPUExecutionProvider"])
    vectors = []
    for text in TEXTS:
        encoded = tokenizer.encode(text)
        parts = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
        [tokens] = session.run(["last_hidden_state"], {name: np.array([part]) for name, part in parts.items()})
        mean = tokens[0].astype(np.float64).mean(0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.array(vectors)


def test_minilm_vectors_equal_those_of_the_libraries(export: Path, directly: Array, tmp_path: Path) -> None:
    model = add_export(export, Task.FEATURE_EXTRACTION, "", tmp_path / "minilm")
    assert model.batchable
    served = Served(tmp_path)
    [together] = outputs_of(served.ask("minilm", {"text": TEXTS}), "embedding")
    apart = outputs_of(served.ask("minilm", *({"text": [text]} for text in TEXTS)), "embedding")
    assert together.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(together, directly, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(apart), directly, atol=1e-5)
    # It is the real model: the first two mean nearly the same.
    assert together[0] @ together[1] > 0.7
    assert together[0] @ together[2] < 0.2


def test_minilm_is_tried_and_pads_as_its_trial_allows(export: Path, tmp_path: Path) -> None:
    model = add_export(export, Task.FEATURE_EXTRACTION, "", tmp_path / "minilm")
    [stage] = model.stages
    assert (stage.company == "alone") == ("rows run alone" in model.verdict.reason)
    assert (stage.padding is not None) == (stage.company == "similar")
