"""`trust = true` of a chain: whose rows share batches by it, and planted defects of that verdict."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.flows.flow_chains import with_chains
from anabranch.flink_job.flows.flow_tables import FlowTable
from anabranch.flink_job.model_repository import batching_proof, chains, repository
from anabranch.flink_job.model_repository.chains import ChainFile, _StepReader
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.schemas.model import Catalog, ModelSpec, TensorSpec
from tests.flink.models import FLOAT, _write
from tests.planted import both, mutated
from tests.ready_steps.exports import SIZE, write_text_model, write_tokenizer

TRUST = "[batching]\ntrust = true\n"
FUNCTION = 'model = "own.onnx"\nbefore = "steps.py:first"\n\n[[chain.steps]]\nmodel = "own.onnx"'
READY = 'model = "text.onnx"\nbefore = { step = "tokenize" }\nafter = { step = "pool" }'
TEXT = 'inputs.text = { datatype = "BYTES", shape = [-1] }'
ROWS = f'{TEXT}\noutputs.y = {{ datatype = "FP32", shape = [-1, 2] }}'
VECTORS = f'{TEXT}\noutputs.embedding = {{ datatype = "FP32", shape = [-1, {SIZE}] }}'


def chain(folder: Path, step: str, ends: str = ROWS, batching: str = TRUST, context: str = "entangled") -> ModelSpec:
    """Reads a chain; the rows of `text.onnx` and of the model `text` affect each other."""
    if not folder.joinpath("chain").exists():
        _write(folder / "chain", ["Abs x y"], {"x": (FLOAT, ["n", 2])}, {"y": (FLOAT, ["n", 2])}, file="own.onnx")
        (folder / "chain" / "steps.py").write_text("def first(t): ...\ndef last(t, r): ...\n")
        write_tokenizer(folder / "chain" / "tokenizer.json")
    write_text_model(folder / "chain" / "text.onnx", context)
    write_text_model(folder / "text" / "1" / "model.onnx", context)
    (folder / "chain" / "model.toml").write_text(f"{batching}\n[chain]\n{ends}\n[[chain.steps]]\n{step}\n")
    return read_repository(folder, ModelDefaults(), strict=True).find("chain", "")


def check_functions(folder: Path) -> None:
    """Functions share batches by trust alone."""
    trusted = chain(folder, FUNCTION, batching=f"{TRUST}max_rows = 16\n")
    assert (trusted.batchable, trusted.batching.max_rows, trusted.verdict.level) == (True, 16, "strangers")
    assert trusted.verdict.reason == "; ".join(["own: not tried: trust = true under [batching]"] * 2)
    assert trusted.inputs == (TensorSpec("text", "BYTES", (None,)),)
    alone = chain(folder, FUNCTION, batching="[batching]\nmax_rows = 16\n")
    assert (alone.batchable, alone.batching.max_rows, alone.verdict.level) == (False, None, "whole")
    assert alone.verdict.reason == "requests for a chain run one by one"
    with pytest.raises(ConfigError, match="unless trust = true says so of its functions"):
        chain(folder, FUNCTION, batching="[batching]\nenabled = true\n")


def check_mixed_step(folder: Path) -> None:
    """A ready step says nothing about the function on the other side of its model."""
    step = 'model = "text.onnx"\nbefore = "steps.py:first"\nafter = { step = "pool" }'
    assert chain(folder, step, VECTORS).batchable
    assert not chain(folder, step, VECTORS, "", "masked").batchable


def check_frames(folder: Path) -> None:
    """A signal has several rows, which no trust changes."""
    signal = ROWS.replace("text", "audio").replace("BYTES", "FP32")
    step = 'model = "own.onnx"\nbefore = { step = "frames", size = 2 }\nafter = "steps.py:last"'
    assert not chain(folder, step, signal).batchable
    with pytest.raises(ConfigError, match=r"step 'own\.onnx' does not make one row of each"):
        chain(folder, step, signal, f"{TRUST}enabled = true\n")


def check_ends(folder: Path) -> None:
    """Without the axis of rows, there is nothing to trust in."""
    for ends, name in ((ROWS.replace("[-1]", "[1]"), "text"), (ROWS.replace("[-1, 2]", "[2, -1]"), "y")):
        assert not chain(folder, FUNCTION, ends).batchable
        with pytest.raises(ConfigError, match=f"axis 0 of '{name}' is not -1"):
            chain(folder, FUNCTION, ends, f"{TRUST}enabled = true\n")


def check_switch(folder: Path) -> None:
    """`enabled = false` is stronger."""
    assert not chain(folder, FUNCTION, batching=f"{TRUST}enabled = false\n").batchable


def check_ready_steps(folder: Path) -> None:
    """Rows of ready steps share the runs of a model by trust in place of its trial."""
    trusted = chain(folder, READY, VECTORS)
    assert (trusted.batchable, trusted.stages[0].company) == (True, "equal")
    assert trusted.verdict.reason == "text: not tried: trust = true under [batching]"
    tried = chain(folder, READY, VECTORS, "")
    assert (tried.batchable, tried.stages[0].company) == (True, "alone")
    assert tried.verdict.reason.startswith("text: rows run alone: rows affect each other in ")


def check_served_model(folder: Path) -> None:
    """The trust of a chain is not that of a model beside it, which has a trial of its own."""
    step = READY.replace("text.onnx", "text")
    (folder / "chain").mkdir(exist_ok=True)
    write_tokenizer(folder / "chain" / "tokenizer.json")
    assert chain(folder, step, VECTORS).stages[0].company == "alone"
    (folder / "text" / "model.toml").write_text(TRUST)
    assert chain(folder, step, VECTORS, "").stages[0].company == "equal"


def flow_chain(folder: Path, toml: str, **steps: Any) -> ModelSpec:
    """Reads the chain of a flow over an entangled model."""
    write_text_model(folder / "text" / "1" / "model.onnx", "entangled")
    _write(folder / "signal" / "1", ["Abs x y"], {"x": (FLOAT, ["n", 2])}, {"y": (FLOAT, ["n", 2])})
    for model in ("text", "signal"):
        (folder / model / "model.toml").write_text(toml)
    flow = FlowTable(source="a", to="b", inputs={}, outputs={}, **steps)
    read = with_chains(read_repository(folder, ModelDefaults(), strict=True), [flow], "job.toml")
    return read.find(f"{flow.model}-of-a", "")


def check_flow(folder: Path) -> None:
    """A flow with steps goes by the trust of its model."""
    steps: dict[str, Any] = {"model": "text", "after": {"step": "pool"}}
    assert flow_chain(folder, TRUST, **steps).batchable
    with pytest.raises(ConfigError, match=r"'text' runs requests one by one \(rows affect each other"):
        flow_chain(folder, "", **steps)
    frames = {"model": "signal", "before": {"step": "frames", "size": 2}}
    assert not flow_chain(folder, TRUST, **frames).batchable


CHECKS = (
    check_functions,
    check_mixed_step,
    check_frames,
    check_ends,
    check_switch,
    check_ready_steps,
    check_served_model,
    check_flow,
)


@pytest.mark.parametrize("check", CHECKS)
def test_chain_shares_batches_as_its_trust_says(tmp_path: Path, check: Callable[[Path], None]) -> None:
    check(tmp_path)


def read_planted(file: ChainFile, models: Catalog) -> ModelSpec:
    """Reads a chain as `chains` does at the time of the call."""
    return chains.read_chain(file, models)


_TRUST, _ENDS, _UNTRIED = "self._file.batching.trust", "table.inputs | table.outputs", "not model.batching.trust"
#: The defect, and the check that has to fail.
PLANTED: dict[str, tuple[AbstractContextManager[Any], Callable[[Path], None]]] = {
    "functions need no trust": (mutated(_StepReader, "by_row", f"{_TRUST} and ", ""), check_functions),
    "functions are never trusted": (mutated(_StepReader, "by_row", _TRUST, "False"), check_functions),
    "a ready step speaks for a function": (mutated(_StepReader, "has_functions", "any(", "all("), check_mixed_step),
    "signals are trusted": (
        mutated(_StepReader, "by_row", f"{_TRUST} and keeps_rows(self.before)", _TRUST),
        check_frames,
    ),
    "frames of a flow are rows": (
        mutated(_StepReader, "by_row", "return keeps_rows(self.before) and", "return"),
        check_flow,
    ),
    "any model behind a flow is trusted": (mutated(_StepReader, "by_row", "self._is_shared", "True"), check_flow),
    "inputs need no rows": (mutated(chains, "_obstacle", _ENDS, "table.outputs"), check_ends),
    "outputs need no rows": (mutated(chains, "_obstacle", _ENDS, "table.inputs"), check_ends),
    "trust is stronger than the switch": (
        both(
            mutated(chains, "read_chain", " and file.batching.enabled is not False", ""),
            patch.object(repository, "read_chain", read_planted),
        ),
        check_switch,
    ),
    "trust is not asked for": (mutated(batching_proof, "_without_trial", _UNTRIED, "False"), check_ready_steps),
    "trusted models are tried": (mutated(batching_proof, "_without_trial", _UNTRIED, "True"), check_ready_steps),
    "models of the repository are trusted": (
        mutated(_StepReader, "_with_company", 'model.verdict.level == "strangers"', "True"),
        check_served_model,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("defect", PLANTED)
def test_planted_defect_of_trust_is_caught(tmp_path: Path, defect: str) -> None:
    plant, check = PLANTED[defect]
    with plant, pytest.raises((AssertionError, pytest.fail.Exception)):
        check(tmp_path)
