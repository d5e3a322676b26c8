"""Ready steps in a job: texts, pictures and sounds in, vectors and labels out, in both execution modes.

One job serves four chains of ready steps, and flows, some with steps of their own. Kafka JSON, HTTP, `infer()` and
events ask the same.
"""

import base64
import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime
import pytest
import rapidocr
from kafka import KafkaConsumer, KafkaProducer
from PIL import Image
from tokenizers import Tokenizer

from anabranch import Client
from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.flink_job.flows.flow_tables import FlowTable
from anabranch.importing.hugging_face import add_export
from anabranch.importing.task import Task
from anabranch.schemas.errors import UnreadableInput
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Array, Tensor
from anabranch.served_models import publish
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from examples.embeddings.vector_store import VectorStore
from tests.flink.conftest import MODES
from tests.flink.service import Topics, write_kafka_table
from tests.ready_steps.exports import LABELS, SIZE, write_json, write_model, write_text_export

TEXTS = ["a good film", "so bad", "the river runs and joins again and again", "not", "a very very long film"]
REVIEWS = [f"{'very ' * (number % 7)}{('good', 'bad', 'long')[number % 3]} film" for number in range(200)]

#: Samples of a frame, and from a frame to the next.
FRAME, HOP = 64, 24
#: Takes 16-bit samples, as microphones give them.
PCM = f"""
[chain]
inputs.audio = {{ datatype = "INT16", shape = [-1] }}
outputs.bands = {{ datatype = "FP32", shape = [-1, 3] }}

[[chain.steps]]
model = "bands"
before = {{ step = "frames", size = {FRAME}, hop = {HOP}, pad = false, window = "hann" }}
"""


def write_turned_export(folder: Path) -> Path:
    """Writes rapidocr's model that finds upside-down lines of text, as an export."""
    folder.mkdir()
    model = Path(rapidocr.__file__).parent / "models" / "ch_ppocr_mobile_v2.0_cls_mobile.onnx"
    (folder / "model.onnx").write_bytes(model.read_bytes())
    write_json(folder / "config.json", {"id2label": {"0": "upright", "1": "turned"}, "problem_type": "regression"})
    size = {"height": 48, "width": 192}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "resample": 2}
    processor |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    write_json(folder / "preprocessor_config.json", processor)
    return folder


def png(number: int) -> bytes:
    buffer = BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 150, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sound(number: int, samples: int) -> Array:
    """Makes the 16-bit samples of a sound."""
    return np.random.default_rng(number).integers(-32768, 32768, samples).astype(np.int16)


class Direct:
    """The models of the exports, used with tokenizers, Pillow and ONNX Runtime alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = Tokenizer.from_file(str(folder / "labels" / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._sessions = {
            name: onnxruntime.InferenceSession(folder / name / "model.onnx", providers=["CPUExecutionProvider"])
            for name in ("labels", "vectors", "turned", "bands")
        }

    def _run(self, name: str, text: str) -> Array:
        encoded = self._tokenizer.encode(text)
        feed = {"input_ids": np.array([encoded.ids]), "attention_mask": np.array([encoded.attention_mask])}
        found: Array = self._sessions[name].run(None, feed)[0][0]
        return found

    def vector(self, text: str) -> Array:
        mean = self._run("vectors", text).mean(0)
        return np.asarray(mean / np.linalg.norm(mean))

    def scores(self, text: str) -> Array:
        powers = np.exp(self._run("labels", text).astype(np.float64))
        return np.asarray(powers / powers.sum())

    def label(self, text: str) -> str:
        return LABELS[str(self.scores(text).argmax())]

    def turned(self, picture: bytes) -> Array:
        resized = Image.open(BytesIO(picture)).resize((192, 48), Image.Resampling.BILINEAR)
        pixels = ((np.asarray(resized) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None].astype(np.float32)
        session = self._sessions["turned"]
        found: Array = session.run(None, {session.get_inputs()[0].name: pixels})[0][0]
        return found

    def bands(self, samples: Array, starts: range) -> Array:
        """Runs the frames from some starts one by one; the last is filled up with 0."""
        window = np.sin(np.pi * np.arange(FRAME) / FRAME) ** 2
        found = []
        for start in starts:
            frame = samples[start : start + FRAME].astype(np.float64)
            weighted = np.concatenate([frame, np.zeros(FRAME - len(frame))]) * window
            found.append(self._sessions["bands"].run(None, {"frames": weighted[None].astype(np.float32)})[0][0])
        return np.array(found)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Direct]:
    """A repository of imported chains, and their models used directly."""
    folder = tmp_path_factory.mktemp("exports")
    write_text_export(folder / "vectors")
    write_text_export(folder / "labels", labels=True)
    write_turned_export(folder / "turned")
    (folder / "bands").mkdir()
    write_model(
        folder / "bands" / "model.onnx",
        f"g (float[n,{FRAME}] frames) => (float[n,3] bands) {{ m = MatMul(frames, table) bands = Abs(m) }}",
        table=np.random.default_rng(5).standard_normal((FRAME, 3)).astype(np.float32),
    )
    repository = folder / "models"
    add_export(folder / "vectors", Task.FEATURE_EXTRACTION, "", repository / "vectors")
    add_export(folder / "labels", Task.TEXT_CLASSIFICATION, "", repository / "labels")
    add_export(folder / "turned", Task.IMAGE_CLASSIFICATION, "", repository / "turned")
    for name, served in (("labels", "plain-labels"), ("turned", "plain-turned"), ("bands", "bands")):
        plain = repository / served / "1"
        plain.mkdir(parents=True)
        shutil.copy(folder / name / "model.onnx", plain)
    (repository / "pcm").mkdir()
    (repository / "pcm" / "model.toml").write_text(PCM)
    return repository, Direct(folder)


@pytest.fixture(scope="module", params=MODES)
def service(request: pytest.FixtureRequest, broker: KafkaBroker, exports: tuple[Path, Direct]) -> Iterator[Topics]:
    """A job that serves the chains, and scores reviews and sounds."""
    run = uuid.uuid4().hex[:8]
    reviews = FlowTable(
        source=f"reviews-{run}",
        to=f"scored-{run}",
        model="labels",
        inputs={"text": "review"},
        outputs={"rating.label": "label", "rating.score": "score", "rating.all": "scores"},
    )
    notes = FlowTable(
        source=f"notes-{run}",
        to=f"notes-embedded-{run}",
        model="vectors",
        inputs={"text": "text"},
        outputs={"embedding": "embedding"},
    )
    files = exports[0].parent
    words = FlowTable(
        source=f"words-{run}",
        to=f"words-rated-{run}",
        model="plain-labels",
        before={"step": "tokenize", "file": str(files / "labels" / "tokenizer.json")},
        after={"step": "labels", "labels": str(files / "labels" / "config.json")},
        inputs={"text": "review"},
        outputs={"rating.label": "label", "rating.score": "score", "rating.all": "scores"},
    )
    lines = FlowTable(
        source=f"lines-{run}",
        to=f"lines-turned-{run}",
        model="plain-turned",
        before={"step": "picture", "resize": [48, 192], "mean": [0.5] * 3, "std": [0.5] * 3},
        after={"step": "labels", "labels": ["upright", "turned"], "function": "none"},
        inputs={"picture": "png"},
        outputs={"turned": "scores"},
        on_error="pass",
    )
    sounds = FlowTable(
        source=f"sounds-{run}",
        to=f"sounds-heard-{run}",
        model="bands",
        before={"step": "frames", "size": FRAME, "hop": HOP, "window": "hann"},
        inputs={"audio": "sound.samples"},
        outputs={"sound.bands": "bands"},
        on_error="pass",
    )
    calls = FlowTable(
        source=f"calls-{run}",
        to=f"calls-heard-{run}",
        model="pcm",
        inputs={"audio": {"path": "pcm", "type": "base64"}},
        outputs={"bands": "bands"},
        on_error="pass",
    )
    config = Config(flow=(reviews, notes, words, lines, sounds, calls)).replace(
        job={"execution_mode": request.param, "parallelism": 1, "checkpoint_interval_ms": 2000},
        models={"repository": str(exports[0])},
        kafka={"models_topic": f"models-{run}"},
    )
    broker.create_topics(Topic(f"models-{run}", 1, {"cleanup.policy": "compact"}))
    broker.create_topics(*(Topic(name, 1) for flow in config.flow for name in (flow.source, flow.to)))
    topics = Topics(broker, config, run)
    running = job.start(topics.config)
    publish(topics.config, job.read_models(topics.config))
    yield topics
    assert running.status() == "RUNNING"
    running.cancel()
    topics.close()


@contextmanager
def gateway(config: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "anabranch", "gateway", "--config", str(config), "--json"]
    process = subprocess.Popen([*command, "--http-port", "0", "--grpc-port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["http_url"]
    process.terminate()
    assert process.wait(30) == 0


def post(url: str, model: str, name: str, data: list[str]) -> tuple[int, Any]:
    tensor = {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    try:
        with urlopen(Request(f"{url}/v2/models/{model}/infer", body), timeout=60) as response:
            answer = json.loads(response.read())
            outputs = {each["name"]: (each["data"], each["shape"]) for each in answer["outputs"]}
            return response.status, {key: np.array(data).reshape(shape) for key, (data, shape) in outputs.items()}
    except HTTPError as error:
        return error.code, json.loads(error.read())


def asked(model: str, name: str, items: list[Any], encoding: Encoding = Encoding.JSON) -> InferRequest:
    tensor = Tensor.from_array(name, np.array(items, dtype=object))
    return InferRequest(model, (tensor,), uuid.uuid4().hex, encoding=encoding)


def arrays(answer: InferResponse | ErrorResponse) -> dict[str, Array]:
    assert isinstance(answer, InferResponse), answer
    return {tensor.name: tensor.to_array() for tensor in answer.outputs}


def through(topics: Topics, flow: FlowTable, events: list[dict[str, Any]]) -> list[bytes]:
    """Sends events to a flow, and returns the outgoing ones by number."""
    producer = KafkaProducer(bootstrap_servers=topics.config.kafka.bootstrap_servers)
    for event in events:
        producer.send(flow.source, json.dumps(event).encode())
    producer.flush()
    consumer = KafkaConsumer(
        flow.to, bootstrap_servers=topics.config.kafka.bootstrap_servers, auto_offset_reset="earliest"
    )
    found: list[bytes] = []
    end = time.monotonic() + 60
    while len(found) < len(events):
        assert time.monotonic() < end, f"{len(found)} of {len(events)} events"
        found += [each.value for some in consumer.poll(500).values() for each in some]
    producer.close()
    consumer.close()
    return sorted(found, key=lambda event: int(json.loads(event)["id"]))


@pytest.mark.timeout(240)
def test_exported_models_answer_kafka_http_infer_and_events(
    service: Topics, exports: tuple[Path, Direct], tmp_path: Path
) -> None:
    direct = exports[1]
    pictures = [png(number) for number in range(3)]
    vectors = [direct.vector(text) for text in TEXTS]
    scores = [direct.scores(text) for text in TEXTS]
    turned = [direct.turned(picture) for picture in pictures]

    # Kafka, in JSON and in protobuf; a bad picture and a bad text fail alone.
    encoded = [base64.b64encode(picture).decode() for picture in pictures]
    answers = service.ask(
        asked("vectors", "text", TEXTS),
        asked("labels", "text", TEXTS),
        asked("turned", "picture", encoded),
        asked("turned", "picture", pictures, Encoding.PROTOBUF),
        asked("turned", "picture", [encoded[0], "no picture"]),
        asked("vectors", "text", [b"\xff"], Encoding.PROTOBUF),
        *(asked("vectors", "text", [text]) for text in TEXTS),
        timeout_s=110,
    )
    np.testing.assert_allclose(arrays(answers[0])["embedding"], vectors, atol=1e-5)
    np.testing.assert_allclose(arrays(answers[1])["scores"], scores, atol=1e-5)
    assert [label.decode() for label in arrays(answers[1])["label"]] == [direct.label(text) for text in TEXTS]
    for answer in answers[2:4]:
        np.testing.assert_allclose(arrays(answer)["scores"], turned, atol=1e-5)
    for answer, message in zip(
        answers[4:6],
        ("row 1: step 1 (model): 'picture' is not a picture", "row 0: step 1 (model): 'text' is not UTF-8"),
        strict=True,
    ):
        assert isinstance(answer, ErrorResponse)
        assert (answer.code, answer.message[: len(message)]) == ("unreadable_input", message)
    for answer, vector in zip(answers[6:], vectors, strict=True):
        np.testing.assert_allclose(arrays(answer)["embedding"], [vector], atol=1e-5)

    # HTTP, through a gateway.
    with gateway(write_kafka_table(service.config, tmp_path / "job.toml")) as url:
        status, found = post(url, "vectors", "text", TEXTS)
        assert status == 200
        np.testing.assert_allclose(found["embedding"], vectors, atol=1e-5)
        status, found = post(url, "turned", "picture", encoded)
        assert status == 200
        np.testing.assert_allclose(found["scores"], turned, atol=1e-5)
        assert set(found["label"].tolist()) <= {"upright", "turned"}
        status, failed = post(url, "turned", "picture", ["no picture"])
        assert (status, failed["code"]) == (400, "unreadable_input")

    # `infer()` over Kafka.
    kafka = service.config.kafka
    with Client(
        kafka.bootstrap_servers,
        requests_topic=kafka.requests_topic,
        responses_topic=kafka.responses_topic,
        timeout_s=60,
    ) as client:
        np.testing.assert_allclose(client.infer("vectors", {"text": TEXTS})["embedding"], vectors, atol=1e-5)
        result = client.infer("turned", {"picture": np.array(pictures, dtype=object)})
        np.testing.assert_allclose(result["scores"], turned, atol=1e-5)
        with pytest.raises(UnreadableInput):
            client.infer("turned", {"picture": ["no picture"]})

    # Events of a flow, and their embeddings in a vector store.
    reviews, notes, words, lines, *_ = service.config.flow
    for flow in (reviews, words):
        scored = through(service, flow, [{"id": f"{n}", "review": review} for n, review in enumerate(REVIEWS)])
        for value, review in zip(scored, REVIEWS, strict=True):
            event, expected = json.loads(value), direct.scores(review)
            assert event["review"] == review
            np.testing.assert_allclose(event["rating"]["all"], expected, atol=1e-5)
            assert event["rating"]["label"] == direct.label(review)
            assert event["rating"]["score"] == pytest.approx(expected.max(), abs=1e-5)
    shown = [{"id": f"{n}", "png": each} for n, each in enumerate([*encoded, "bm8gcGljdHVyZQ==", *encoded])]
    answered = [json.loads(value) for value in through(service, lines, shown)]
    assert answered.pop(len(turned))["inference_error"] == "unreadable_input"
    np.testing.assert_allclose([event["turned"] for event in answered], [*turned, *turned], atol=1e-5)
    store = VectorStore(str(tmp_path / "notes.db"), SIZE)
    store.put(through(service, notes, [{"id": f"{n}", "text": text} for n, text in enumerate(TEXTS)]))
    for text, vector in zip(TEXTS, vectors, strict=True):
        [(_, found_text, distance)] = store.nearest(vector.astype(np.float32), 1)
        assert found_text == text
        assert distance == pytest.approx(0, abs=1e-5)


@pytest.mark.timeout(180)
def test_sounds_of_events_become_an_answer_for_each_frame(service: Topics, exports: tuple[Path, Direct]) -> None:
    direct, (*_, sounds, calls) = exports[1], service.config.flow
    signals = [sound(number, 1 + 37 * number) for number in range(40)]

    # Lists of numbers, by a step of the flow, which fills the last frame up.
    floats = [(samples / 32768).tolist() for samples in signals]
    events: list[dict[str, Any]] = [{"id": f"{n}", "sound": {"samples": each}} for n, each in enumerate(floats)]
    events.append({"id": "40", "sound": {"samples": []}})
    *heard, silent = [json.loads(value) for value in through(service, sounds, events)]
    assert silent == {**events[40], "inference_error": "unreadable_input"}
    for event, sent, samples in zip(heard, events[:-1], floats, strict=True):
        bands = event["sound"].pop("bands")
        assert event == sent
        starts = range(0, max(1, len(samples) - FRAME + HOP), HOP)
        np.testing.assert_allclose(bands, direct.bands(np.array(samples), starts), rtol=1e-5, atol=1e-5)

    # 16-bit samples in base64, by a chain that drops the rest of a sound.
    encoded = [base64.b64encode(samples.tobytes()).decode() for samples in signals]
    found = through(service, calls, [{"id": f"{n}", "pcm": each} for n, each in enumerate(encoded)])
    for value, samples in zip(found, signals, strict=True):
        event = json.loads(value)
        if len(samples) < FRAME:
            assert event["inference_error"] == "unreadable_input"
            continue
        starts = range(0, len(samples) - FRAME + 1, HOP)
        expected = direct.bands(samples / 32768, starts)
        np.testing.assert_allclose(event["bands"], expected, rtol=1e-5, atol=1e-5)
