"""The catalog: what a name and a version mean, and how their absence is told."""

import pytest

from anabranch.schemas.errors import UnknownModel, UnknownVersion
from anabranch.schemas.model import Catalog, Ensemble, ModelSpec, StageSpec, TensorSpec


def served(**versions: list[str]) -> Catalog:
    return Catalog(
        {name: {version: ModelSpec(name, version, "", "", (), ()) for version in of} for name, of in versions.items()}
    )


def test_a_model_is_found_by_name_and_version_and_the_last_is_the_newest() -> None:
    catalog = served(a=["1", "2", "10"], b=["1"])
    assert catalog.find("a", "2").version == "2"
    assert catalog.find("a", "").version == "10"


def test_the_only_model_needs_no_name() -> None:
    assert served(a=["1"]).find("", "").name == "a"
    with pytest.raises(UnknownModel, match="there is a, b"):
        served(a=["1"], b=["1"]).find("", "")


def test_what_is_not_served_is_told_with_what_is() -> None:
    with pytest.raises(UnknownModel, match=r"'c'.*there is a, b"):
        served(a=["1"], b=["1"]).find("c", "1")
    with pytest.raises(UnknownVersion, match=r"'3'.*there is 1, 2"):
        served(a=["1", "2"]).find("a", "3")
    with pytest.raises(UnknownModel, match="there is none"):
        served().find("a", "")


def test_members_are_called_by_name_and_by_version_where_that_is_not_enough() -> None:
    members = (("a", "1"), ("b", "1"), ("b", "2"))
    assert Ensemble(members, "mean", (1.0, 1.0, 1.0), needed=3).labels == ("a", "b@1", "b@2")


def test_a_stage_is_loaded_as_a_model_of_its_own() -> None:
    x, h, y = (TensorSpec(name, "FP32", (None, 2)) for name in "xhy")
    stages = (StageSpec("0.onnx", "00", (x,), (h,)), StageSpec("1.onnx", "11", (h,), (y,), replicas=3))
    model = ModelSpec("a", "1", "model.onnx", "ff", (x,), (y,), fixed_rows=2, stages=stages)
    stage = model.stage(1)
    assert (stage.path, stage.sha256, stage.inputs, stage.outputs, stage.stages) == ("1.onnx", "11", (h,), (y,), ())
    assert (stage.name, stage.version, stage.fixed_rows, stage.session.calibrate) == ("a", "1", 2, False)


def test_a_catalog_tells_what_is_cut_from_what_runs_whole() -> None:
    catalog = served(a=["1"], b=["1"])
    catalog.models["a"]["2"] = cut = ModelSpec("a", "2", "", "", (), (), stages=(StageSpec("", "", (), ()),) * 2)
    assert catalog.in_stages() == [cut]
    assert [(model.name, model.version) for model in catalog.whole()] == [("a", "1"), ("b", "1")]
