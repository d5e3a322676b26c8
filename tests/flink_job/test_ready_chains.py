"""Chains of ready steps in the model repository: their batches, and refusals with the reason."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from anabranch.flink_job.config import Config, ModelDefaults
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.model_repository.store import ModelStore
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.sessions.step_functions import load_function
from anabranch.ready_steps.options import PoolStep, TokenizeStep
from anabranch.schemas.model import ModelSpec
from tests.ready_steps.exports import SIZE, write_picture_model, write_text_model, write_tokenizer

TOKENIZE, POOL = '{ step = "tokenize" }', '{ step = "pool" }'
TEXT = 'inputs.text = { datatype = "BYTES", shape = [-1] }'
VECTOR = f"outputs.embedding = {{ datatype = 'FP32', shape = [-1, {SIZE}] }}"
PICTURE = 'inputs.picture = { datatype = "BYTES", shape = [-1] }'
SCORES = 'outputs.scores = { datatype = "FP32", shape = [-1, 3] }'
PADDING = '[padding]\ninputs = { input_ids = 1 }\nmask = "attention_mask"\noutputs = { last_hidden_state = 1 }\n'


def chain(before: str = TOKENIZE, after: str = POOL, model: str = "model.onnx", ends: str = f"{TEXT}\n{VECTOR}") -> str:
    functions = [f"{key} = {value}" for key, value in (("before", before), ("after", after)) if value]
    return f"[chain]\n{ends}\n\n[[chain.steps]]\nmodel = '{model}'\n" + "\n".join(functions) + "\n"


def read(folder: Path, text: str) -> ModelSpec:
    (folder / "chain").mkdir(exist_ok=True)
    (folder / "chain" / "model.toml").write_text(text)
    return read_repository(folder, ModelDefaults(), strict=True).find("chain", "")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_text_model(tmp_path / "chain" / "model.onnx")
    write_tokenizer(tmp_path / "chain" / "tokenizer.json")
    return tmp_path


def test_chain_of_ready_steps_shares_batches(repository: Path) -> None:
    model = read(repository, f"{chain()}\n{PADDING}")
    [stage] = model.stages
    assert (model.batchable, model.is_chain, model.is_indivisible) == (True, True, False)
    assert model.verdict.level == "strangers"
    assert model.verdict.reason.startswith("model: rows do not affect each other in ")
    assert stage.company == "similar"
    assert stage.padding is not None
    assert [name for name, _, _ in stage.padding.inputs] == ["input_ids", "attention_mask"]
    assert stage.before is not None
    assert stage.after is not None
    assert (stage.before.ready, stage.after.ready) == (TokenizeStep(), PoolStep())
    assert [spec.name for spec in stage.outputs] == ["last_hidden_state"]


@pytest.mark.parametrize(
    ("context", "padding", "company", "reason"),
    [
        ("masked", "", "equal", "model: rows do not affect each other in "),
        ("unmasked", PADDING, "equal", "; not padded: output 'last_hidden_state' of a row of length"),
        ("entangled", PADDING, "alone", "model: rows run alone: rows affect each other in a batch of "),
    ],
)
def test_chain_rows_share_runs_as_the_trial_allows(
    repository: Path, context: str, padding: str, company: str, reason: str
) -> None:
    write_text_model(repository / "chain" / "model.onnx", context)
    model = read(repository, f"{chain()}\n{padding}")
    assert (model.batchable, model.is_indivisible) == (True, False)
    assert model.stages[0].company == company
    assert model.stages[0].padding is None
    assert reason in model.verdict.reason


def test_chain_padding_of_an_unused_output_is_left_out(repository: Path) -> None:
    path = repository / "chain" / "model.onnx"
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("Identity", ["e"], ["more"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["n", "t", SIZE]))
    onnx.save(model, path)
    padding = PADDING.replace("{ last", "{ more = 1, last")
    [stage] = read(repository, f"{chain()}\n{padding}").stages
    assert stage.company == "similar"
    assert stage.padding is not None
    assert stage.padding.outputs == (("last_hidden_state", 1),)


def test_chain_of_a_served_model_has_its_padding(repository: Path) -> None:
    write_text_model(repository / "encoder" / "1" / "model.onnx")
    (repository / "encoder" / "model.toml").write_text(f"{PADDING}[batching]\nmax_rows = 7\n")
    model = read(repository, chain(model="encoder"))
    assert model.stages[0].company == "similar"
    assert model.batching.max_rows == 7


def test_chain_batching_that_is_switched_off_runs_requests_alone(repository: Path) -> None:
    model = read(repository, f"{chain()}\n[batching]\nenabled = false\n")
    assert (model.batchable, model.verdict.level) == (False, "whole")
    # Its rows keep away from each other, too.
    assert model.stages[0].company == "alone"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            chain(before='{ step = "tokenise" }'),
            r"before: unknown step 'tokenise'; available: tokenize, picture, frames",
        ),
        (chain(after="{}"), r"after: unknown step ''; available: pool, labels"),
        (chain(after=TOKENIZE), "after: unknown step 'tokenize'; available: pool, labels"),
        (chain(before='{ step = "tokenize", size = 3 }'), "before: unknown key 'size'; available: file, input"),
        (chain(before='{ step = "tokenize", max_length = -1 }'), "before: max_length is -1, expected at least 0"),
        (
            chain(after='{ step = "pool", mode = "sum" }'),
            "after: unknown mode 'sum'; available: first, max, mean, none",
        ),
        (chain(after=""), "'tokenize' may run the model several times: add `after`"),
        (chain(before='{ step = "tokenize", input = "t" }'), r"chain\.inputs: 'tokenize' takes 't'; available: text"),
        (
            chain(ends=f"{TEXT}\noutputs.vector = {{ datatype = 'FP32', shape = [-1] }}"),
            r"chain\.outputs: 'pool' makes no 'vector' of FP32; available: embedding of FP32",
        ),
        (
            chain(ends=f"{TEXT}\noutputs.embedding = {{ datatype = 'FP64', shape = [-1] }}"),
            "'pool' makes no 'embedding' of FP64",
        ),
        (
            chain(ends=f"{TEXT.replace('-1', '2')}\n{VECTOR}") + "[batching]\nenabled = true\n",
            r"enabled = true under \[batching\], but axis 0 of 'text' is not -1: remove it",
        ),
        (chain() + "[padding]\ninputs = { ids = 1 }\n", r"padding\.inputs: unknown tensor 'ids'"),
        (chain() + "[validation]\nrequire_finite = true\n", r"\[chain\] allows only \[session\] and \[batching\] be"),
    ],
)
def test_chain_invalid_ready_step_is_refused(repository: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        read(repository, text)
    assert "chain/model.toml" in str(refused.value)


def test_chain_fixed_batch_size_runs_rows_alone_or_is_refused(repository: Path) -> None:
    ends = f"{PICTURE}\n{SCORES}"
    text = chain('{ step = "picture", resize = [6, 6] }', '{ step = "labels", labels = ["a", "b", "c"] }', ends=ends)
    for rows, company in (("n", "equal"), (1, "alone")):
        write_picture_model(repository / "chain" / "model.onnx", rows=rows)
        model = read(repository, text)
        assert (model.batchable, model.stages[0].company) == (True, company)
    write_picture_model(repository / "chain" / "model.onnx", rows=4)
    with pytest.raises(ConfigError, match="model has a fixed batch size of 4: export it with a free batch axis"):
        read(repository, text)


def test_chain_of_frames_runs_requests_alone(repository: Path) -> None:
    ends = 'inputs.audio = { datatype = "FP32", shape = [-1] }\noutputs.logits = { datatype = "FP32", shape = [-1, 3] }'
    write_picture_model(repository / "chain" / "model.onnx")
    model = read(repository, chain('{ step = "frames", size = 4 }', "", ends=ends))
    assert model.batchable is False
    with pytest.raises(ConfigError, match=r"step 'model\.onnx' does not make one row of each"):
        read(repository, chain('{ step = "frames", size = 4 }', "", ends=ends) + "[batching]\nenabled = true\n")


def test_chain_without_its_tokenizer_is_left_out_with_the_reason(repository: Path) -> None:
    (repository / "chain" / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.json is not a tokenizer"):
        read(repository, chain())


def test_chain_without_the_package_of_a_step_is_not_served(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (repository / "chain" / "model.toml").write_text(chain())
    with pytest.raises(ConfigError) as refused:
        read_repository(repository, ModelDefaults())
    assert str(refused.value).endswith(
        "can be served: chain/1: step 'tokenize' needs the package 'tokenizers': run pip install 'anabranch[text]' on "
        "each machine of the cluster"
    )


def test_chain_in_a_store_has_the_files_of_its_steps(repository: Path, tmp_path: Path) -> None:
    (repository / "chain" / "notes.txt").write_text("not needed")
    read(repository, chain())
    store = tmp_path / "store"
    stored = ModelStore(store.as_uri(), Config().job.flink).add(read_repository(repository, ModelDefaults()))
    [stage] = stored.catalog.find("chain", "").stages
    assert stage.before is not None
    assert stage.before.path.endswith("#model.toml")
    names = {path.read_bytes() for path in (store / "files").iterdir()}
    assert b"not needed" not in names
    step = load_function(stage.before, stage)
    [run] = step({"text": np.array([b"good"], dtype=object)})
    assert run["input_ids"].shape == (1, 3)
