"""Ready steps of flows: read beside the configuration as a chain, and refused with the name of the key."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from anabranch.flink_job.config import Config, ModelDefaults, load
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.flows.flow_chains import with_chains
from anabranch.flink_job.flows.resolution import resolve
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.model_repository.store import store_models
from anabranch.operators.sessions.step_functions import load_function
from anabranch.ready_steps.options import LabelsStep, TokenizeStep
from anabranch.schemas.model import Catalog, ModelSpec
from tests.flink_job.test_flows import toml
from tests.ready_steps.exports import LABELS, SIZE, write_json, write_picture_model, write_text_model, write_tokenizer

FLOW: dict[str, Any] = {
    "from": "reviews",
    "to": "rated",
    "model": "words",
    "before": {"step": "tokenize"},
    "after": {"step": "labels"},
    "inputs": {"text": "review.body"},
    "outputs": {"label": "label", "good": "scores[1]"},
}
POOLED = {"model": "vectors", "after": {"step": "pool"}, "outputs": {"embedding": "embedding"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    write_text_model(models / "words" / "1" / "model.onnx", labels=len(LABELS))
    write_text_model(models / "vectors" / "1" / "model.onnx")
    write_text_model(models / "entangled" / "1" / "model.onnx", "entangled", labels=len(LABELS))
    write_picture_model(models / "pictures" / "1" / "model.onnx")
    signals = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n,4] x) => (float[n,4] y) { y = Add(x, x) }'
    )
    (models / "signals" / "1").mkdir(parents=True)
    onnx.save(signals, models / "signals" / "1" / "model.onnx")
    write_tokenizer(tmp_path / "tokenizer.json")
    write_json(tmp_path / "config.json", {"id2label": LABELS})
    return tmp_path


def read(folder: Path, **changes: Any) -> tuple[Config, Catalog]:
    path = folder / "job.toml"
    path.write_text(f"flow = {toml([FLOW | changes])}\nmodels.repository = {json.dumps(str(folder / 'models'))}\n")
    config = load(path)
    return config, with_chains(
        read_repository(folder / "models", ModelDefaults(), strict=True), config.flow, "job.toml"
    )


def chain_of(folder: Path, **changes: Any) -> ModelSpec:
    config, catalog = read(folder, **changes)
    [flow] = resolve(config.flow, catalog, "job.toml")
    return catalog.find(flow.model_name, flow.model_version)


def test_flow_with_steps_has_a_chain(folder: Path) -> None:
    chain = chain_of(folder)
    [stage] = chain.stages
    assert (chain.name, chain.batchable, chain.is_chain, stage.company) == ("words-of-reviews", True, True, "equal")
    assert stage.before is not None
    assert stage.after is not None
    assert (stage.before.ready, stage.after.ready) == (TokenizeStep(), LabelsStep())
    assert (stage.before.path, stage.after.path) == (str(folder / "tokenizer.json"), str(folder / "config.json"))
    assert [(spec.name, spec.shape) for spec in chain.inputs] == [("text", (None,))]
    assert [(spec.name, spec.shape) for spec in chain.outputs] == [
        ("label", (None,)),
        ("score", (None,)),
        ("scores", (None, len(LABELS))),
    ]


def test_flow_steps_are_loaded_from_the_store(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "words.json")
    config, _ = read(folder, before={"step": "tokenize", "file": "words.json"}, **POOLED)
    served = read_repository(folder / "models", ModelDefaults(), strict=True)
    catalog = store_models(served, config.replace(models={"store": (folder / "store").as_uri()})).catalog
    (folder / "words.json").unlink()
    [stage] = catalog.find("vectors-of-reviews", "").stages
    assert stage.before is not None
    assert stage.after is not None
    runs = load_function(stage.before, stage)({"text": np.array([b"a good film"], object)})
    [run] = [runs] if isinstance(runs, dict) else runs
    assert run["input_ids"].shape == (1, 5)
    run |= {"last_hidden_state": np.ones((1, 5, SIZE), np.float32)}
    assert load_function(stage.after, stage)({}, [run])["embedding"].shape == (1, SIZE)


def test_flow_of_pictures_and_signals_has_a_chain(folder: Path) -> None:
    labels = {"step": "labels", "labels": ["a", "b", "c"]}
    pictures = chain_of(folder, model="pictures@1", before={"step": "picture"}, after=labels, inputs={"picture": "png"})
    assert (pictures.name, pictures.batchable) == ("pictures-of-reviews", True)
    frames = {"step": "frames", "size": 4}
    signals = {"model": "signals", "before": frames, "after": {}, "inputs": {"audio": "x"}, "outputs": {"y": "y"}}
    assert not chain_of(folder, **signals).batchable
    alone = chain_of(folder, model="pictures", before={}, after=labels, inputs={"pixel_values": "pixels"})
    assert [spec.name for spec in alone.inputs] == ["pixel_values"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"before": {"step": "pool"}}, r"flow\[0\]\.before: unknown step 'pool'; available: tokenize, picture, frames"),
        ({"after": {"step": "tokenize"}}, r"flow\[0\]\.after: unknown step 'tokenize'; available: pool, labels"),
        ({"before": {"step": "tokenize", "fil": 1}}, r"flow\[0\]\.before: unknown key 'fil'; available: .*max_length"),
        (
            {"before": {"step": "tokenize", "file": "no.json"}},
            r"flow\[0\]\.before: no file .*no\.json: correct",
        ),
        (
            {"after": {"step": "labels", "labels": ["a"]}},
            r"'logits' of words has 3 columns, but there are 1 labels",
        ),
        ({"after": {}}, r"flow\[0\]: 'tokenize' may run the model several times: add `after`"),
        ({"before": {"step": "tokenize", "file": "x/t.json"}}, r"before and after have files in two folders"),
        ({"model": "no"}, r"flow\[0\]\.model: unknown model 'no'; available: "),
        ({"model": "pictures"}, r"flow\[0\]: pictures has the inputs pixel_values, but a tokenizer makes input_ids"),
        ({"inputs": {"texts": "a"}}, r"unknown input 'texts' of model 'words-of-reviews'; available: text"),
        ({"outputs": {"y": "logits"}}, r"unknown output 'logits' of model 'words-of-reviews'; available: label, score"),
        ({"order": "key"}, r"which model 'words-of-reviews' cannot keep"),
        (
            {"model": "entangled", "before": {}, "inputs": {"input_ids": "ids", "attention_mask": "mask"}},
            r"flow\[0\]\.model: 'entangled' runs requests one by one \(.*\), and takes no steps of a flow",
        ),
    ],
)
def test_flow_with_unusable_steps_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chain_of(folder, **changes)


def test_flow_steps_need_a_whole_model(folder: Path) -> None:
    path = folder / "models" / "both" / "model.toml"
    path.parent.mkdir()
    path.write_text('[ensemble]\nmembers = ["words", "others"]\n')
    write_text_model(folder / "models" / "others" / "1" / "model.onnx", labels=len(LABELS))
    with pytest.raises(ConfigError, match=r"'both' is an ensemble, a chain or in stages, but before and after need"):
        chain_of(folder, model="both")
    write_text_model(folder / "models" / "words-of-reviews" / "1" / "model.onnx")
    with pytest.raises(ConfigError, match=r"the flow's chain is 'words-of-reviews', as a model of the reposi"):
        chain_of(folder)
