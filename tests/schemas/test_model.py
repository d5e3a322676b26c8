"""The catalog: finding and listing models."""

import pytest

from anabranch.schemas.errors import UnknownModel, UnknownVersion
from anabranch.schemas.model import Catalog, Ensemble, ModelSpec, StageSpec, TensorSpec


def served(**versions: list[str]) -> Catalog:
    return Catalog(
        {name: {version: ModelSpec(name, version, "", "", (), ()) for version in of} for name, of in versions.items()}
    )


def test_catalog_find_without_version_gives_the_newest() -> None:
    catalog = served(a=["1", "2", "10"], b=["1"])
    assert catalog.find("a", "2").version == "2"
    assert catalog.find("a", "").version == "10"


def test_catalog_find_without_name_gives_the_only_model() -> None:
    assert served(a=["1"]).find("", "").name == "a"
    with pytest.raises(UnknownModel, match=r"unknown model ''; available: a, b$"):
        served(a=["1"], b=["1"]).find("", "")


def test_catalog_find_unknown_names_the_available() -> None:
    with pytest.raises(UnknownModel, match=r"unknown model 'c'; available: a, b$"):
        served(a=["1"], b=["1"]).find("c", "1")
    with pytest.raises(UnknownVersion, match=r"unknown version '3' of model 'a'; available: 1, 2$"):
        served(a=["1", "2"]).find("a", "3")
    with pytest.raises(UnknownModel, match=r"available: none$"):
        served().find("a", "")


def test_ensemble_labels_repeated_name_has_its_version() -> None:
    members = (("a", "1"), ("b", "1"), ("b", "2"))
    assert Ensemble(members, "mean", (1.0, 1.0, 1.0), needed=3).labels == ("a", "b@1", "b@2")


def test_model_stage_is_a_model_of_its_own() -> None:
    x, h, y = (TensorSpec(name, "FP32", (None, 2)) for name in "xhy")
    stages = (StageSpec("0.onnx", "00", (x,), (h,)), StageSpec("1.onnx", "11", (h,), (y,), replicas=3))
    model = ModelSpec("a", "1", "model.onnx", "ff", (x,), (y,), fixed_rows=2, stages=stages)
    stage = model.stage(1)
    assert (stage.path, stage.sha256, stage.inputs, stage.outputs, stage.stages) == ("1.onnx", "11", (h,), (y,), ())
    assert (stage.name, stage.version, stage.fixed_rows, stage.session.calibrate) == ("a", "1", 2, False)


def test_catalog_models_are_listed_in_stages_or_whole() -> None:
    catalog = served(a=["1"], b=["1"])
    catalog.models["a"]["2"] = cut = ModelSpec("a", "2", "", "", (), (), stages=(StageSpec("", "", (), ()),) * 2)
    assert catalog.in_stages() == [cut]
    assert [(model.name, model.version) for model in catalog.whole()] == [("a", "1"), ("b", "1")]
