"""Exported folders become chains that are served, and equal tokenizers, Pillow and ONNX Runtime used directly."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from tokenizers import Tokenizer

from anabranch.importing.errors import ExportIncomplete, VersionThere
from anabranch.importing.hugging_face import add_export, read_export
from anabranch.importing.task import Task
from anabranch.schemas.messages import ErrorResponse
from anabranch.schemas.tensors import Array
from tests.ready_steps.exports import (
    LABELS,
    SIZE,
    WORDS,
    png,
    write_json,
    write_picture_export,
    write_text_export,
    write_text_model,
)
from tests.ready_steps.served import Served, outputs_of

TEXTS = [
    "a good film",
    "so bad",
    "the river runs and joins again",
    "not",
    "a very very long film " * 9,
    "unknown words",
]


def directly(folder: Path, text: str, max_length: int = 0) -> tuple[Array, Array]:
    """The first output for a text alone, and its mask."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    if max_length:
        tokenizer.enable_truncation(max_length)
    encoded = tokenizer.encode(text)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {"input_ids": np.array([encoded.ids]), "attention_mask": np.array([encoded.attention_mask])}
    return session.run(None, feed)[0][0], np.array(encoded.attention_mask)


def serve(folder: Path, task: Task, tmp_path: Path) -> Served:
    add_export(folder, task, "", tmp_path / "models" / "m")
    return Served(tmp_path / "models")


@pytest.mark.parametrize("normalize", [True, False])
def test_export_for_features_gives_mean_vectors(normalize: bool, tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export", max_position_embeddings=20)
    if not normalize:
        modules = [{"type": "sentence_transformers.models.Transformer"}]
        modules += [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
        write_json(folder / "modules.json", modules)
        write_json(
            folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
        )
    expected = []
    for text in TEXTS:
        tokens, _ = directly(folder, text, 20)
        vector = tokens.astype(np.float64).mean(0)
        expected.append(vector / np.linalg.norm(vector) if normalize else vector)
    served = serve(folder, Task.FEATURE_EXTRACTION, tmp_path)
    together = outputs_of(served.ask("m", {"text": TEXTS}), "embedding")[0]
    apart = np.concatenate(outputs_of(served.ask("m", *({"text": [text]} for text in TEXTS)), "embedding"))
    np.testing.assert_allclose(together, expected, atol=1e-5)
    np.testing.assert_allclose(apart, expected, atol=1e-5)
    assert together.shape == (len(TEXTS), SIZE)


def test_export_for_texts_gives_labels(tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export", labels=True)
    served = serve(folder, Task.TEXT_CLASSIFICATION, tmp_path)
    [answer] = served.ask("m", {"text": TEXTS})
    assert isinstance(answer, dict)
    for row, text in enumerate(TEXTS):
        logits, _ = directly(folder, text)
        powers = np.exp(logits.astype(np.float64))
        np.testing.assert_allclose(answer["scores"][row], powers / powers.sum(), atol=1e-5)
        assert answer["label"][row].decode() == LABELS[str(logits.argmax())]
        assert answer["score"][row] == answer["scores"][row].max()
    assert len(set(answer["label"].tolist())) > 1


def test_export_serves_a_request_of_many_rows_in_shards(tmp_path: Path) -> None:
    served = serve(write_text_export(tmp_path / "export", labels=True), Task.TEXT_CLASSIFICATION, tmp_path)
    many = TEXTS * 20
    few, all_rows, failed = served.ask("m", {"text": TEXTS}, {"text": many}, {"text": [*many[:77], b"\xff", *many]})
    assert isinstance(few, dict)
    assert isinstance(all_rows, dict)
    assert len(many) > served.catalog.find("m", "").batching.shard_rows
    assert all_rows["label"].tolist() == few["label"].tolist() * 20
    np.testing.assert_allclose(all_rows["scores"], np.tile(few["scores"], (20, 1)), atol=1e-6)
    assert isinstance(failed, ErrorResponse)
    assert failed.message.startswith("row 77: step 1 (model): 'text' is not UTF-8")


def test_export_for_pictures_gives_labels(tmp_path: Path) -> None:
    folder = write_picture_export(tmp_path / "export")
    served = serve(folder, Task.IMAGE_CLASSIFICATION, tmp_path)
    pictures = [png(9, 7), png(6, 6), png(30, 40)]
    answers = served.ask("m", {"picture": pictures[:2]}, {"picture": [b"no picture"]}, {"picture": pictures[2:]})
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    found = np.concatenate(outputs_of([answers[0], answers[2]], "scores"))
    for row, data in enumerate(pictures):
        resized = np.asarray(Image.open(BytesIO(data)).resize((6, 6), Image.Resampling.BILINEAR)) / 255
        pixels = ((resized - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]).transpose(2, 0, 1)[None].astype(np.float32)
        [logits] = session.run(None, {"pixel_values": pixels})[0]
        powers = np.exp(logits.astype(np.float64))
        np.testing.assert_allclose(found[row], powers / powers.sum(), atol=1e-5)
    [partial] = served.ask("m", {"picture": [pictures[0], b"no picture", pictures[1]]}, partial=True)
    assert isinstance(partial, dict)
    np.testing.assert_allclose(partial["scores"], found[:2], atol=1e-6)
    assert isinstance(answers[1], ErrorResponse)
    assert answers[1].code == "unreadable_input"
    assert answers[1].message.startswith("row 0: step 1 (model): 'picture' is not a picture: ")


@pytest.mark.parametrize(
    ("config", "function"),
    [
        ({}, "softmax"),
        ({"problem_type": "single_label_classification"}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"problem_type": "regression"}, "none"),
    ],
)
def test_export_problem_type_decides_about_the_scores(config: dict[str, Any], function: str, tmp_path: Path) -> None:
    chain = read_export(write_text_export(tmp_path, labels=True, **config), Task.TEXT_CLASSIFICATION)
    assert f'function = "{function}", labels = "config.json"' in chain.toml


def test_export_without_names_of_labels_numbers_them(tmp_path: Path) -> None:
    folder = write_text_export(tmp_path, labels=True)
    (folder / "config.json").unlink()
    chain = read_export(folder, Task.TEXT_CLASSIFICATION)
    assert 'labels = ["LABEL_0", "LABEL_1", "LABEL_2"]' in chain.toml
    assert "config.json" not in chain.files


@pytest.mark.parametrize(
    ("files", "max_length"),
    [
        ({}, 0),
        ({"tokenizer_config.json": {"model_max_length": 1e30}}, 0),
        ({"tokenizer_config.json": {"model_max_length": 64}}, 64),
        ({"config.json": {"max_position_embeddings": 32}, "tokenizer_config.json": {"model_max_length": 64}}, 32),
        ({"config.json": {"max_position_embeddings": 514, "model_type": "roberta"}}, 513),
        ({"sentence_bert_config.json": {"max_seq_length": 16}, "tokenizer_config.json": {"model_max_length": 64}}, 16),
    ],
)
def test_export_longest_row_is_that_of_its_files(files: dict[str, Any], max_length: int, tmp_path: Path) -> None:
    folder = write_text_export(tmp_path)
    for name, content in files.items():
        write_json(folder / name, content)
    line = next(line for line in read_export(folder, Task.FEATURE_EXTRACTION).toml.splitlines() if "tokenize" in line)
    assert ("max_length" in line) == bool(max_length)
    assert f"max_length = {max_length}" in line or not max_length


@pytest.mark.parametrize("token", ["[SEP]", {"content": "[SEP]"}])
def test_export_padding_has_the_token_of_its_files(token: Any, tmp_path: Path) -> None:
    folder = write_text_export(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [{"id": WORDS.index("[SEP]"), "content": "[SEP]", "special": True}]
    tokenizer["added_tokens"][0] |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", {"pad_token": token})
    assert 'values = { input_ids = 3 }\nmask = "attention_mask"' in read_export(folder, Task.FEATURE_EXTRACTION).toml
    write_text_model(folder / "model.onnx", length=12)
    chain = read_export(folder, Task.FEATURE_EXTRACTION)
    assert "pad_id = 3" in chain.toml
    assert "[padding]" not in chain.toml


def test_export_of_a_fixed_length_fills_rows_up(tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export")
    write_text_model(folder / "model.onnx", length=12)
    served = serve(folder, Task.FEATURE_EXTRACTION, tmp_path)
    open_folder = write_text_export(tmp_path / "open")
    [found] = outputs_of(served.ask("m", {"text": TEXTS[:3]}), "embedding")
    for vector, text in zip(found, TEXTS, strict=False):
        expected = directly(open_folder, text)[0].mean(0)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_export_with_sentence_vectors_takes_them(tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export", labels=True)
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        node.output[:] = ["sentence_embedding" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "sentence_embedding"
    onnx.save(model, folder / "model.onnx")
    served = serve(folder, Task.FEATURE_EXTRACTION, tmp_path)
    [found] = outputs_of(served.ask("m", {"text": TEXTS}), "embedding")
    np.testing.assert_allclose(found, [directly(folder, text)[0] for text in TEXTS], atol=1e-5)


def test_export_with_weights_beside_the_model_copies_them(tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export")
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=300)
    serve(folder, Task.FEATURE_EXTRACTION, tmp_path).ask("m", {"text": TEXTS})
    names = {path.name for path in (tmp_path / "models" / "m").iterdir()}
    assert names == {"model.onnx", "model.onnx_data", "model.toml", "tokenizer.json"}


def spoil(folder: Path, what: str) -> None:
    modules = [{"type": "sentence_transformers.models.Dense"}]
    match what:
        case "no model":
            (folder / "model.onnx").unlink()
        case "two models":
            write_text_model(folder / "onnx" / "model_quantized.onnx")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "bad config":
            (folder / "config.json").write_text("{")
        case "dense":
            write_json(folder / "modules.json", modules)
        case "two pools":
            told = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
            write_json(folder / "1_Pooling" / "config.json", told)
        case "bad modules":
            write_json(folder / "modules.json", ["Transformer"])
        case "bad number":
            write_json(folder / "config.json", {"max_position_embeddings": "many"})
        case "bad tokenizer":
            (folder / "tokenizer.json").write_text("{}")
        case "no folder":
            folder.rename(folder.with_name("gone"))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("no folder", "no folder at .*export: give the folder of an export"),
        ("no model", "export has no ONNX file: export the model with `optimum-cli export onnx`"),
        (
            "two models",
            r"has several ONNX files, model\.onnx, onnx/model_quantized\.onnx: choose one with --file",
        ),
        ("no tokenizer", r"export has no tokenizer\.json: write it with AutoTokenizer's save_pretrained"),
        ("bad config", r"cannot read .*config\.json"),
        ("dense", r"modules\.json has Dense, which no ready step does"),
        ("two pools", "1_Pooling pools by mean_tokens, max_tokens, expected one of mean, cls and max"),
        ("bad modules", "export has settings of an unexpected form: TypeError"),
        ("bad number", "export has settings of an unexpected form: TypeError"),
        ("bad tokenizer", r"export cannot be served: m/tokenizer\.json is not a tokenizer: "),
    ],
)
def test_export_that_cannot_be_served_is_refused(what: str, reason: str, tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export")
    spoil(folder, what)
    with pytest.raises(ExportIncomplete, match=reason) as refused:
        add_export(folder, Task.FEATURE_EXTRACTION, "", tmp_path / "models" / "m")
    assert ".import-" not in refused.value.message
    assert not [*tmp_path.glob("models/*")]


def test_export_of_another_task_is_refused(tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export")
    with pytest.raises(ExportIncomplete, match="0 outputs of floats with 2 axes, found last_hidden_state of 3 axes"):
        read_export(folder, Task.TEXT_CLASSIFICATION)
    with pytest.raises(ExportIncomplete, match=r"has no preprocessor_config\.json"):
        read_export(folder, Task.IMAGE_CLASSIFICATION)


def test_export_file_is_chosen_by_its_path(tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export")
    write_text_model(folder / "onnx" / "model_quantized.onnx")
    chain = read_export(folder, Task.FEATURE_EXTRACTION, "onnx/model_quantized.onnx")
    assert 'model = "model_quantized.onnx"' in chain.toml
    with pytest.raises(ExportIncomplete, match=r"no ONNX file '\.\./x\.onnx'; available: model\.onnx, onnx/"):
        read_export(folder, Task.FEATURE_EXTRACTION, "../x.onnx")


def test_export_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export")
    target = tmp_path / "models" / "m"
    target.mkdir(parents=True)
    with pytest.raises(VersionThere, match="already exists: remove it, or choose another --name"):
        add_export(folder, Task.FEATURE_EXTRACTION, "", target)
