"""Ensembles in the model repository: they have their members' signature, and members that disagree are refused."""

from pathlib import Path

import pytest
from onnx import TensorProto

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.schemas.model import ModelSpec, TensorSpec
from tests.flink.models import FLOAT, FLOAT16, INT64, STRING, _write

N: list[str | int] = ["n", 2]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models for ensembles, linked into the repository of each test."""
    folder = tmp_path_factory.mktemp("members")
    floats: dict[str, tuple[int, list[str | int]]] = {"x": (FLOAT, N)}
    _write(folder / "a" / "1", ["Add x x y"], floats, {"y": (FLOAT, N)})
    _write(folder / "a" / "2", ["Mul x x y"], floats, {"y": (FLOAT, N)})
    _write(folder / "b" / "1", ["Abs x y", "Neg x z"], floats, {"z": (FLOAT, N), "y": (FLOAT, N)})
    _write(folder / "open" / "1", ["Abs x y"], {"x": (FLOAT, ["n", "w"])}, {"y": (FLOAT, ["n", "w"])})
    _write(folder / "pairs" / "1", ["Abs x y"], {"x": (FLOAT, [2, 2])}, {"y": (FLOAT, [2, 2])})
    _write(folder / "triples" / "1", ["Abs x y"], {"x": (FLOAT, [3, 2])}, {"y": (FLOAT, [3, 2])})
    _write(folder / "wide" / "1", ["Abs x y"], {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])})
    _write(folder / "half" / "1", ["Abs x y"], {"x": (FLOAT16, N)}, {"y": (FLOAT16, N)})
    _write(folder / "named" / "1", ["Abs other y"], {"other": (FLOAT, N)}, {"y": (FLOAT, N)})
    _write(folder / "apart" / "1", ["Abs x z"], floats, {"z": (FLOAT, N)})
    _write(folder / "text" / "1", ["Identity s t"], {"s": (STRING, N)}, {"t": (STRING, N)})
    _write(folder / "text" / "2", ["Identity s t"], {"s": (STRING, N)}, {"t": (STRING, N)})
    _write(folder / "bits" / "1", ["Round x r", "Greater x r y"], floats, {"y": (TensorProto.BOOL, N)})
    _write(folder / "bits" / "2", ["Round x r", "Less x r y"], floats, {"y": (TensorProto.BOOL, N)})
    _write(folder / "sum" / "1", ["ReduceSum x y"], floats, {"y": (FLOAT, [])}, keepdims=0)
    _write(folder / "most" / "1", ["ReduceMax x y"], floats, {"y": (FLOAT, [])}, keepdims=0)
    _write(folder / "index" / "1", ["Abs i y"], {"i": (INT64, N)}, {"y": (INT64, N)})
    (folder / "b" / "model.toml").write_text("[validation]\nrequire_finite = true\n")
    return folder


@pytest.fixture
def repository(tmp_path: Path, members: Path) -> Path:
    for model in members.iterdir():
        (tmp_path / model.name).symlink_to(model)
    return tmp_path


def read(repository: Path, table: str, beside: str = "") -> ModelSpec:
    (repository / "panel").mkdir(exist_ok=True)
    (repository / "panel" / "model.toml").write_text(f"{beside}\n[ensemble]\n{table}\n")
    return read_repository(repository, ModelDefaults(), strict=True).find("panel", "")


def refused(repository: Path, table: str, beside: str = "") -> str:
    with pytest.raises(ConfigError, match=r"panel/model\.toml: ") as error:
        read(repository, table, beside)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_ensemble_has_its_members_signature_and_no_file(repository: Path) -> None:
    panel = read(repository, 'members = ["a", "b"]')
    assert panel.inputs == (TensorSpec("x", "FP32", (None, 2)),)
    assert panel.outputs == (TensorSpec("y", "FP32", (None, 2)),)
    assert (panel.version, panel.path, panel.batchable, panel.fixed_rows) == ("1", "", True, None)
    assert panel.require_finite
    assert panel.ensemble is not None
    assert panel.ensemble.members == (("a", "2"), ("b", "1"))
    assert (panel.ensemble.merge, panel.ensemble.weights, panel.ensemble.needed) == ("mean", (1.0, 1.0), 2)


def test_ensemble_reads_versions_weights_and_failure_rule(repository: Path) -> None:
    panel = read(
        repository,
        'members = ["a@1", "a", "b"]\nmerge = "weighted_mean"\nweights = [1, 2.5, 3]\n'
        'on_failure = "rest"\nmin_members = 2\nmember_timeout_ms = 40\n',
    ).ensemble
    assert panel is not None
    assert panel.labels == ("a@1", "a@2", "b")
    assert (panel.weights, panel.needed, panel.member_timeout_ms) == ((1.0, 2.5, 3.0), 2, 40)


def test_ensemble_of_the_rest_needs_one_member_by_default(repository: Path) -> None:
    panel = read(repository, 'members = ["a", "b"]\non_failure = "rest"').ensemble
    assert panel is not None
    assert panel.needed == 1


@pytest.mark.parametrize(
    ("table", "output"),
    [
        ('members = ["bits@1", "bits@2"]', TensorSpec("y", "FP64", (None, 2))),
        ('members = ["bits@1", "bits@2"]\nmerge = "vote"', TensorSpec("y", "BOOL", (None, 2))),
        ('members = ["text@1", "text@2"]\nmerge = "vote"', TensorSpec("t", "BYTES", (None, 2))),
        ('members = ["a", "b"]\nmerge = "stack"', TensorSpec("y", "FP32", (None, 2, 2))),
        ('members = ["a", "b"]\nmerge = "stack"\non_failure = "rest"', TensorSpec("y", "FP32", (None, None, 2))),
        ('members = ["sum", "most"]\nmerge = "stack"', TensorSpec("y", "FP32", (2,))),
        ('members = ["sum", "most"]\nmerge = "max"', TensorSpec("y", "FP32", ())),
        ('members = ["open", "a"]', TensorSpec("y", "FP32", (None, 2))),
    ],
)
def test_ensemble_outputs_follow_the_merge_rule(repository: Path, table: str, output: TensorSpec) -> None:
    assert read(repository, table).outputs == (output,)


def test_ensemble_fixed_rows_are_a_common_multiple(repository: Path) -> None:
    assert read(repository, 'members = ["pairs", "triples", "a"]').fixed_rows == 6
    assert not read(repository, 'members = ["sum", "most"]').batchable


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("members = []", "members has 0 entries, expected 2 or more"),
        ('members = ["a"]', "members has 1"),
        ('members = ["a", "c"]', "members: unknown model 'c'; available: "),
        ('members = ["a", "b@7"]', "'7'"),
        ('members = ["a", ""]', "a member needs a name"),
        ('members = ["a", "a@2"]', "has a model twice"),
        ('members = ["a", "panel"]', "unknown model 'panel'"),
        ('members = ["a", "b"]\nmerge = "median"', "median"),
        ('members = ["a", "b"]\nmerge = "weighted_mean"', "weights has 0 numbers for 2 members"),
        ('members = ["a", "b"]\nweights = [1, 2]', "weights are for weighted_mean"),
        ('members = ["a", "b"]\nmerge = "weighted_mean"\nweights = [1, 0]', "above 0"),
        ('members = ["a", "b"]\nmerge = "weighted_mean"\nweights = [1, inf]', "above 0"),
        ('members = ["a", "b"]\nmerge = "vote"', "vote needs labels"),
        ('members = ["text@1", "text@2"]', "mean needs numbers"),
        ('members = ["a", "b"]\noutputs = ["z"]', "a has no output 'z'; it gives y"),
        ('members = ["a", "apart"]', "no output in common: a gives y; apart gives z"),
        ('members = ["a", "wide"]', "disagree on input 'x': a has FP32 [any, 2]; wide has FP32 [any, 3]"),
        ('members = ["a", "half"]', "disagree on input 'x'"),
        ('members = ["a", "bits"]', "disagree on output 'y'"),
        ('members = ["a", "named"]', "a takes x, named takes other"),
        ('members = ["a", "sum"]', "axis 0 counts rows in one of a and sum"),
        ('members = ["a", "b"]\nmin_members = 2', 'needs on_failure = "rest"'),
        ('members = ["a", "b"]\non_failure = "rest"\nmin_members = 3', "expected 1 to 2"),
        ('members = ["a", "b"]\nmember_timeout_ms = -1', "expected 0 or more"),
        ('members = ["a", "b"]\nquorum = 2', "quorum"),
        ('merge = "mean"', "members"),
    ],
)
def test_ensemble_invalid_table_is_refused_with_the_reason(repository: Path, table: str, reason: str) -> None:
    assert reason in refused(repository, table)


def test_ensemble_other_tables_or_versions_are_refused(repository: Path) -> None:
    table = 'members = ["a", "b"]'
    assert "no other table" in refused(repository, table, "[batching]\nmax_rows = 3")
    assert "no other table" in refused(repository, table, "[validation]\nrequire_finite = true")
    _write(repository / "panel" / "1", ["Abs x y"], {"x": (FLOAT, N)}, {"y": (FLOAT, N)})
    assert "no version" in refused(repository, table)
