import sysconfig
from pathlib import Path
from typing import Any

import magika
import numpy as np
import pytest

from anabranch.demo.features import (
    INPUT_NAME,
    LABELS,
    OUTPUT_NAME,
    TOKENS,
    Detector,
    FeatureReader,
    ModelFile,
    RuledFile,
    ScoreReader,
    UnreadFile,
    model_path,
)
from anabranch.onnx_runtime.session import open_session
from anabranch.schemas.tensors import Array

CONTENTS = {
    "empty": b"",
    "short": b"1234567",
    "short_binary": b"\xff\xfe\x00",
    "white_space": b" \n" * 5_000,
    "almost_white_space": b" " * 100 + b"1234567" + b" " * 100,
    "just_enough": b"12345678",
    "text": b"import os\n\nprint(os.getcwd())\n" * 20,
    "leading_space": b"\n\n\t" + b"x" * 3_000,
    "exactly_1024": b"a" * 1_024,
    "exactly_4096": bytes(range(256)) * 16,
    "long_binary": bytes(range(256)) * 300,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in CONTENTS] + [Path(__file__), Path(np.__file__), model_path()]


class Recording:
    """Records the inputs of Magika's own session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.fed: list[Array] = []

    def run(self, names: list[str], feed: dict[str, Any]) -> Any:
        self.fed.append(np.array(feed[INPUT_NAME], np.int32))
        return self._session.run(names, feed)


def test_feature_reader_tokens_equal_magikas(files: list[Path]) -> None:
    own = magika.Magika()
    recording = own._onnx_session = Recording(own._onnx_session)
    reader = FeatureReader()
    kinds = set()
    for path in files:
        recording.fed.clear()
        label = str(own.identify_path(path).output.label)
        read = reader.read(path)
        kinds.add(type(read))
        if isinstance(read, ModelFile):
            assert read.tokens.shape == (TOKENS,)
            assert read.tokens.dtype == np.int32
            np.testing.assert_array_equal(read.tokens[np.newaxis], recording.fed[0])
        else:
            assert read == RuledFile(path, label)
            assert not recording.fed
    assert kinds == {ModelFile, RuledFile}


def test_score_reader_labels_equal_magikas(files: list[Path]) -> None:
    session = open_session(model_path())
    own, reader, scorer = magika.Magika(), FeatureReader(), ScoreReader()
    for path in files:
        read = reader.read(path)
        if isinstance(read, ModelFile):
            scores = session.run([OUTPUT_NAME], {INPUT_NAME: read.tokens[np.newaxis]})[0]
            assert scores.shape == (1, LABELS)
            assert scorer.label(read, scores[0]) == str(own.identify_path(path).output.label)


def test_feature_reader_unreadable_file_is_reported(tmp_path: Path) -> None:
    reader = FeatureReader()
    missing = reader.read(tmp_path / "missing")
    assert isinstance(missing, UnreadFile)
    assert "not_found" in missing.reason
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    assert isinstance(reader.read(circle), UnreadFile)
    with pytest.raises(OSError, match="not_found"):
        Detector(lambda tokens: tokens).label(tmp_path / "missing")


def test_model_path_signature_equals_constants() -> None:
    session = open_session(model_path())
    (tokens,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (tokens.name, tokens.type, tokens.shape[1:]) == (INPUT_NAME, "tensor(int32)", [TOKENS])
    assert (scores.name, scores.type, scores.shape[1:]) == (OUTPUT_NAME, "tensor(float)", [LABELS])


def test_feature_reader_python_files_need_the_model() -> None:
    reader = FeatureReader()
    folder = Path(sysconfig.get_path("stdlib")) / "json"
    assert {type(reader.read(path)) for path in folder.glob("*.py")} == {ModelFile}
