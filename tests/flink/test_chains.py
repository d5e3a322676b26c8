"""Chains in the job, in both execution modes: rapidocr's three models as one, and steps that fail."""

import re
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rapidocr import RapidOCR

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Array, Tensor
from anabranch.stack.kafka.broker import KafkaBroker
from examples.ocr.make_repository import make_repository
from examples.ocr.pictures import pictures
from tests.flink.conftest import MODES
from tests.flink.models import write_chain
from tests.flink.service import Topics

PICTURES = pictures()
#: Splits a text into words, doubles the length of each in its own run, and joins the results.
CHAIN = """
[chain]
steps = [{ model = "twice.onnx", before = "steps.py:words", after = "steps.py:lengths" }, { model = "twice.onnx" }]
inputs.text = { datatype = "BYTES", shape = [1] }
outputs.word = { datatype = "BYTES", shape = [-1] }
outputs.y = { datatype = "FP32", shape = [-1] }
"""
FUNCTIONS = """
import numpy as np

def words(tensors):
    text = tensors["text"][0].decode()
    return [{"x": np.full(1, len(word), np.float32), "word": np.array(word)} for word in text.split()]

def lengths(tensors, runs):
    lengths = np.array([run["y"][0] for run in runs], np.float32)
    if lengths.max() > 20:
        raise ValueError("too long a word")
    return {"x": lengths, "word": np.array([run["word"].item() for run in runs], dtype=object)}
"""

#: Doubles the length of each text; its functions take the rows of several requests.
TRUSTED = """
[chain]
steps = [{ model = "twice.onnx", before = "steps.py:sizes", after = "steps.py:totals" }]
inputs.text = { datatype = "BYTES", shape = [-1] }
outputs.y = { datatype = "FP32", shape = [-1] }
outputs.together = { datatype = "INT64", shape = [-1] }

[batching]
trust = true
max_rows = 16
"""
ROWS = """
import numpy as np

most = 0

def sizes(tensors):
    global most
    texts = tensors["text"]
    sizes = np.array([len(text) for text in texts], np.float32)
    if sizes.max() > 20:
        most = max(most, len(texts))
        raise ValueError(f"too long a text, among {most} at first")
    return [{"x": sizes, "together": np.full(len(texts), len(texts), np.int64)}]

def totals(tensors, runs):
    [run] = runs
    return {"y": run["y"], "together": run["together"]}
"""


@pytest.fixture(scope="module", params=MODES)
def service(
    request: pytest.FixtureRequest, broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Topics]:
    """A job that serves `ocr` and `words`, with an operator for each step."""
    repository = tmp_path_factory.mktemp("repository")
    make_repository(repository)
    write_chain(repository / "words", CHAIN, FUNCTIONS)
    write_chain(repository / "trusted", TRUSTED, ROWS)
    config = Config().replace(
        job={"execution_mode": request.param, "parallelism": 1, "checkpoint_interval_ms": 2000},
        models={"repository": str(repository)},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config)
    topics.ask(words("warm"), timeout_s=110)
    yield topics
    assert running.status() == "RUNNING"
    running.cancel()
    topics.close()


@pytest.fixture(scope="module")
def read_directly() -> dict[str, tuple[list[str], list[float]]]:
    """Text and scores that rapidocr itself reads in each picture."""
    ocr = RapidOCR(params={"Global.log_level": "critical"})
    found: dict[str, Any] = {name: ocr(picture) for name, picture in PICTURES.items()}
    return {name: (list(each.txts or ()), list(each.scores or ())) for name, each in found.items()}


def words(text: str, encoding: Encoding = Encoding.PROTOBUF) -> InferRequest:
    tensors = (Tensor.from_array("text", np.array([text], dtype=object)),)
    return InferRequest("words", tensors, uuid.uuid4().hex, encoding=encoding)


def ocr(picture: Array) -> InferRequest:
    return InferRequest("ocr", (Tensor.from_array("picture", picture),), uuid.uuid4().hex, parameters={"explain": True})


def test_ocr_chain_reads_the_same_text_as_rapidocr(
    service: Topics, read_directly: dict[str, tuple[list[str], list[float]]]
) -> None:
    answers = service.ask(*(ocr(picture) for picture in PICTURES.values()), timeout_s=110)
    for name, answer in zip(PICTURES, answers, strict=True):
        assert isinstance(answer, InferResponse), answer
        values = {tensor.name: tensor.to_array() for tensor in answer.outputs}
        text, scores = read_directly[name]
        assert [line.decode() for line in values["text"]] == text, name
        np.testing.assert_allclose(values["score"], scores, atol=1e-4, err_msg=name)
        assert values["box"].shape == (len(text), 4, 2)
        assert answer.parameters["shards"] == 1
    # Fails without the step that turns pictures.
    assert sorted(read_directly["upside down"][0]) == sorted(read_directly["invoice"][0])
    assert len(read_directly["invoice"][0]) == 4


@pytest.mark.parametrize("encoding", list(Encoding))
def test_step_function_sets_the_number_of_runs(service: Topics, encoding: Encoding) -> None:
    texts = ["an anabranch", "a", "leaves the stream and joins it again"] * 20
    for text, answer in zip(texts, service.ask(*(words(text, encoding) for text in texts)), strict=True):
        assert isinstance(answer, InferResponse), answer
        values = {tensor.name: tensor.to_array().tolist() for tensor in answer.outputs}
        assert values["y"] == [4 * len(word) for word in text.split()]
        assert values["word"] == [word.encode() for word in text.split()]


def test_function_that_raises_fails_its_request_alone(service: Topics) -> None:
    *answers, failed = service.ask(words("joins"), words("again"), words("incomprehensibilities"))
    assert all(isinstance(answer, InferResponse) for answer in answers)
    assert isinstance(failed, ErrorResponse)
    assert (failed.code, failed.model_name) == ("inference_failed", "words")
    assert failed.message == "step 1 (twice): after: ValueError: too long a word"


def test_trusted_functions_fail_a_bad_row_of_a_batch_alone(service: Topics) -> None:
    texts = [["joins"[: 1 + number % 5]] * (1 + number % 3) for number in range(300)]
    texts[150] = ["again", "incomprehensibilities", "it"]
    requests = [
        InferRequest("trusted", (Tensor.from_array("text", np.array(each, dtype=object)),), uuid.uuid4().hex)
        for each in texts
    ]
    answers = service.ask(*requests)
    failed = answers.pop(150)
    del texts[150]
    together = []
    for each, answer in zip(texts, answers, strict=True):
        assert isinstance(answer, InferResponse), answer
        values = {tensor.name: tensor.to_array().tolist() for tensor in answer.outputs}
        assert values["y"] == [2 * len(text) for text in each]
        together += values["together"]
    assert max(together) > 3, "no batch has rows of two requests"
    assert isinstance(failed, ErrorResponse)
    assert (failed.code, failed.model_name) == ("inference_failed", "trusted")
    found = re.fullmatch(
        r"row 1: step 1 \(twice\): before: ValueError: too long a text, among (\d+) at first", failed.message
    )
    assert found, failed.message
    assert int(found[1]) > 3, "the bad row ran in no batch"
