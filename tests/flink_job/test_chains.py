"""Chains in the model repository: a chain with a missing or invalid part is refused."""

from pathlib import Path

import pytest

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import sha256_of
from anabranch.schemas.model import FunctionSpec, ModelSpec, TensorSpec
from tests.flink.models import FLOAT, _write

STEPS = 'steps = [{ model = "m@1", before = "steps.py:first", after = "steps.py:last", replicas = 2 }, { model = "m" }]'
ENDS = (
    'inputs.text = { datatype = "BYTES", shape = [1] }\n'
    'outputs.y = { datatype = "FP32", shape = [-1, 2] }\noutputs.n = { datatype = "INT64", shape = [] }\n'
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        _write(tmp_path / "m" / version, ["Abs x y"], {"x": (FLOAT, ["n", 2])}, {"y": (FLOAT, ["n", 2])})
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain" / "own.onnx").write_bytes((tmp_path / "m" / "1" / "model.onnx").read_bytes())
    (tmp_path / "chain" / "steps.py").write_text(
        "def first(t): ...\ndef last(t, r): ...\nthird = 3\nraise SystemExit\n"
    )
    return tmp_path


def read(repository: Path, table: str, beside: str = "") -> ModelSpec:
    (repository / "chain" / "model.toml").write_text(f"{beside}\n[chain]\n{table}")
    return read_repository(repository, ModelDefaults(), strict=True).find("chain", "")


def test_chain_has_declared_tensors_and_a_stage_per_step(repository: Path) -> None:
    chain = read(repository, f"{STEPS}\n{ENDS}", "[session]\nintra_op_threads = 3\n")
    assert chain.inputs == (TensorSpec("text", "BYTES", (1,)),)
    assert chain.outputs == (TensorSpec("y", "FP32", (None, 2)), TensorSpec("n", "INT64", ()))
    assert (chain.version, chain.path, chain.batchable, chain.is_chain) == ("1", "", False, True)
    assert chain.session.intra_op_threads == 3
    first, second = chain.stages
    steps = repository / "chain" / "steps.py"
    assert first.before == FunctionSpec(str(steps.resolve()), sha256_of(steps), "first")
    assert first.after == FunctionSpec(str(steps.resolve()), sha256_of(steps), "last")
    assert (first.name, first.replicas) == ("m@1", 2)
    assert first.path.endswith("m/1/model.onnx")
    assert second.path.endswith("m/2/model.onnx")
    assert (second.before, second.after, second.replicas) == (None, None, 1)
    assert [spec.name for spec in (*second.inputs, *second.outputs)] == ["x", "y"]


def test_chain_own_model_file_is_not_served_alone(repository: Path) -> None:
    chain = read(repository, f'steps = [{{ model = "own.onnx" }}]\n{ENDS}')
    [stage] = chain.stages
    assert (stage.name, stage.path) == ("own", str((repository / "chain" / "own.onnx").resolve()))
    assert set(read_repository(repository, ModelDefaults()).models) == {"chain", "m"}


def test_repository_with_only_a_chain_is_read(repository: Path, tmp_path: Path) -> None:
    read(repository, f'steps = [{{ model = "own.onnx" }}]\n{ENDS}')
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "chain").symlink_to(repository / "chain")
    assert read_repository(alone, ModelDefaults(), strict=True).find("", "").name == "chain"


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ("steps = []", "at least one step"),
        ('steps = [{ model = "other" }]', r"steps\[0\]: unknown model 'other'"),
        ('steps = [{ model = "m@7" }]', "'7'"),
        ('steps = [{ model = "" }]', "a step needs a model"),
        (
            'steps = [{ model = "m" }, { model = "../m/1/model.onnx" }]',
            r"steps\[1\]: model = .* beside model\.toml",
        ),
        ('steps = [{ model = "m", replicas = 0 }]', "replicas = 0, expected 1 or more"),
        ('steps = [{ model = "m", before = "first" }]', "expected file.py:function"),
        ('steps = [{ model = "m", before = "steps.py:" }]', "expected file.py:function"),
        ('steps = [{ model = "m", before = "../steps.py:first" }]', r"before = '\.\./steps\.py'"),
        ('steps = [{ model = "m", before = "none.py:first" }]', r"before: cannot read .*none\.py"),
        (
            'steps = [{ model = "m", after = "steps.py:none" }]',
            r"after: unknown function 'none' of .*steps\.py; available: ",
        ),
        ('steps = [{ model = "m", after = "steps.py:third" }]', "unknown function 'third' of "),
        ('steps = [{ model = "m", after = "broken.py:first" }]', r"broken\.py is not a Python file: "),
        ('steps = [{ model = "m", during = "steps.py:first" }]', "during"),
    ],
)
def test_chain_invalid_step_is_refused_with_the_reason(repository: Path, steps: str, reason: str) -> None:
    (repository / "chain" / "broken.py").write_text("def first(\n")
    with pytest.raises(ConfigError, match=reason) as refused:
        read(repository, f"{steps}\n{ENDS}")
    assert "chain/model.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ('inputs.x = { datatype = "FLOAT", shape = [] }\noutputs = {}', "at least one"),
        ('inputs = {}\noutputs.y = { datatype = "FP32", shape = [] }', "at least one"),
        (ENDS.replace("INT64", "int64"), r"outputs\.n: unknown datatype 'int64'; available: BOOL, BYTES"),
        (ENDS.replace("-1", "-2"), r"outputs\.y: shape = \[-2, 2\]"),
    ],
)
def test_chain_invalid_inputs_or_outputs_are_refused(repository: Path, ends: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read(repository, f"{STEPS}\n{ends}")


def test_chain_unreadable_model_is_named(repository: Path) -> None:
    (repository / "chain" / "own.onnx").write_bytes(b"no model")
    for name in ("own.onnx", "missing.onnx"):
        with pytest.raises(ModelLoadFailed, match=name):
            read(repository, f'steps = [{{ model = "{name}" }}]\n{ENDS}')


def test_chain_other_tables_or_versions_are_refused(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[chain\] allows only"):
        read(repository, f"{STEPS}\n{ENDS}", "[validation]\nrequire_finite = true\n")
    (repository / "chain" / "1").symlink_to(repository / "m" / "1")
    with pytest.raises(ConfigError, match=r"\[chain\] allows only"):
        read(repository, f"{STEPS}\n{ENDS}")
