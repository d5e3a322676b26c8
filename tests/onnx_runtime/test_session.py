"""Sessions: one module opens them, options reach ONNX Runtime, failures are one line."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from anabranch.onnx_runtime.session import SessionError, first_line, open_session
from anabranch.schemas.model import SessionOptions

ROOT = Path(__file__).parents[2]
MODEL = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Neg(x) }')


def test_product_opens_sessions_in_one_module() -> None:
    packages = ("schemas", "operators", "partition", "flink_job", "anabranch")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    openers = {path.relative_to(ROOT) for path in files if "InferenceSession(" in path.read_text()}
    assert openers == {Path("anabranch/onnx_runtime/session.py")}


def test_session_of_bytes_and_of_file_compute_the_same(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL.SerializeToString())
    for source in (MODEL.SerializeToString(), tmp_path / "model.onnx"):
        [y] = open_session(source).run(["y"], {"x": np.array([1.0, -2.0], np.float32)})
        assert y.tolist() == [-1.0, 2.0]


def test_session_default_options_are_one_idle_thread() -> None:
    used = open_session(MODEL.SerializeToString()).get_session_options()
    assert (used.intra_op_num_threads, used.inter_op_num_threads) == (1, 1)
    assert used.graph_optimization_level.name == "ORT_ENABLE_ALL"
    assert used.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert used.log_severity_level == 4


def test_session_profile_and_optimized_model_are_written(tmp_path: Path) -> None:
    prefix, optimized = tmp_path / "runs", tmp_path / "optimized.onnx"
    session = open_session(MODEL.SerializeToString(), profile_prefix=prefix, optimized_path=optimized)
    session.run(None, {"x": np.zeros(1, np.float32)})
    assert Path(session.end_profiling()).name.startswith("runs")
    assert [node.op_type for node in onnx.load(optimized).graph.node] == ["Neg"]


def test_session_external_data_is_read_from_its_folder(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.arange(1024, dtype=np.float32), "w")
    graph = onnx.parser.parse_graph("g (float[1024] x) => (float[1024] y) { y = Add(x, w) }")
    graph.initializer.append(weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    content = (tmp_path / "model.onnx").read_bytes()
    session = open_session(content, external_data_dir=tmp_path)
    assert session.run(None, {"x": np.zeros(1024, np.float32)})[0][-1] == 1023
    with pytest.raises(SessionError, match=r"w\.data"):
        open_session(content, external_data_dir=tmp_path / "elsewhere")


def test_session_missing_provider_lists_available_ones() -> None:
    options = SessionOptions(providers=("TPUExecutionProvider", "CPUExecutionProvider"))
    with pytest.raises(SessionError, match=r"provider TPUExecutionProvider; available: .*CPUExecutionProvider"):
        open_session(MODEL.SerializeToString(), options)


def test_session_broken_model_fails_in_one_line() -> None:
    with pytest.raises(SessionError) as refused:
        open_session(b"not a model")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("message", "line"), [("a\nb", "a"), ("", "ValueError")])
def test_first_line_of_an_error_is_never_empty(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
