"""External data: weights are read from the model's folder only."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from anabranch.partition.errors import PartitionError, UnreadableModel, UnsafeModel
from anabranch.partition.graph.external_data import locate
from anabranch.partition.graph.model_graph import load_graph
from tests.partition.texts import model_of

WEIGHTS = np.arange(8, dtype=np.float32).tobytes()


def external(location: str, **places: str) -> TensorProto:
    tensor = TensorProto(name="w", dims=[8], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **places}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_with(tensor: TensorProto) -> onnx.ModelProto:
    model = model_of("g (float[8] x) => (float[8] y) { y = Add(x, w) }")
    model.graph.initializer.append(tensor)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder beside a secret pipe, which would block its reader."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_bytes(b"head" + WEIGHTS)
    os.mkfifo(tmp_path / "secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(folder / "sub")
    os.mkfifo(folder / "pipe")
    return folder


def test_external_data_inside_folder_is_read(folder: Path) -> None:
    weights = locate(external("sub/weights", offset="4", length="32"), folder)
    assert weights.read() == WEIGHTS
    assert locate(external("./sub/weights"), folder).read() == b"head" + WEIGHTS[:-4]


@pytest.mark.parametrize(
    "location",
    [
        "",
        "../secret",
        "sub/../../secret",
        "sub/..",
        "{folder}/sub/weights",
        "/dev/zero",
        "link",
        "linked/weights",
        "pipe",
        "sub",
        ".",
        "..\\secret",
        "sub/weights\0",
    ],
)
def test_external_data_outside_folder_is_refused(folder: Path, location: str) -> None:
    tensor = external(location.format(folder=folder))
    with pytest.raises(UnsafeModel, match="external data of 'w'") as refused:
        locate(tensor, folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "places",
    [
        {"offset": "-1"},
        {"offset": "5"},
        {"offset": str(2**63)},
        {"offset": "x"},
        {"length": "31"},
        {"length": str(2**63)},
        {"length": "-32"},
        {"offset": "1e3"},
    ],
)
def test_external_data_beyond_file_is_refused(folder: Path, places: dict[str, str]) -> None:
    with pytest.raises(UnsafeModel, match="external data of 'w'"):
        locate(external("sub/weights", **places), folder)


def test_external_data_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(UnreadableModel, match=r"'w', .*missing: No such file"):
        locate(external("missing"), folder)


def in_initializer(tensor: TensorProto) -> onnx.ModelProto:
    return model_with(tensor)


def in_attribute(tensor: TensorProto) -> onnx.ModelProto:
    model = model_of("g (float[8] x) => (float[8] y) { w = Constant() y = Add(x, w) }")
    model.graph.node[0].attribute.append(helper.make_attribute("value", tensor))
    return model


def in_body(tensor: TensorProto) -> onnx.ModelProto:
    model = model_of(
        """g (bool b, float[8] x) => (float[8] y) {
            y = If (b) <then_branch = t () => (float[8] r) { r = Identity(w) },
                        else_branch = e () => (float[8] u) { u = Identity(x) }>
        }"""
    )
    model.graph.node[0].attribute[0].g.initializer.append(tensor)
    return model


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        g (float[8] x) => (float[8] y) { y = own.add(x) }
        <domain: "own", opset_import: ["" : 17]> add (c) => (r) { w = Constant() r = Add(c, w) }"""
    )
    model.functions[0].node[0].attribute.append(helper.make_attribute("value", tensor))
    return model


@pytest.mark.parametrize("where", [in_initializer, in_attribute, in_body, in_function])
@pytest.mark.parametrize("location", ["../secret", "link", "missing"])
def test_external_data_unsafe_model_is_refused_unread(
    folder: Path, where: Callable[[TensorProto], onnx.ModelProto], location: str
) -> None:
    path = folder / "model.onnx"
    path.write_bytes(where(external(location)).SerializeToString())
    with pytest.raises(PartitionError, match="external data of 'w'"):
        load_graph(path)
