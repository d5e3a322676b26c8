"""Small models in folders as Hugging Face's tools write them."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from anabranch.schemas.tensors import Array

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "good", "film", "bad", "was", "a", "very", "not", "so", "long"]
WORDS += ["river", "runs", "and", "joins", "again"]
LABELS = {"0": "NEGATIVE", "1": "POSITIVE", "2": "NEUTRAL"}
SIZE = 8
#: What a token knows of its row: the mean of all tokens, of those of the mask, or of all rows.
CONTEXTS = {
    "masked": "w = Cast<to = 1>(attention_mask) w3 = Unsqueeze(w, two) we = Mul(e, w3) "
    "s = ReduceSum<keepdims = 1>(we, one) c = ReduceSum<keepdims = 1>(w3, one) m = Div(s, c)",
    "unmasked": "m = ReduceMean<axes = [1], keepdims = 1>(e)",
    "entangled": "m = ReduceMean<axes = [0, 1], keepdims = 1>(e)",
}


def write_tokenizer(path: Path, max_length: int = 0, **processor: Any) -> Tokenizer:
    """Writes a tokenizer of `WORDS`; a row begins with [CLS] and ends with [SEP]."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    )
    if max_length:
        tokenizer.enable_truncation(max_length)
    # Saved files often pad: the step must not.
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(path))
    return tokenizer


def write_model(path: Path, text: str, **tables: Array) -> None:
    """Writes a model in ONNX's own language, with its tables."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tables.items())
    onnx.save(model, path)


def write_text_model(path: Path, context: str = "masked", labels: int = 0, length: int | str = "t") -> None:
    """Writes a model of token ids: vectors of tokens, or logits."""
    rng = np.random.default_rng(3)
    out = f"float[n,{labels}] logits" if labels else f"float[n,{length},{SIZE}] last_hidden_state"
    head = "x = Squeeze(m, one) logits = MatMul(x, heads)" if labels else "last_hidden_state = Add(e, m)"
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"g (int64[n,{length}] input_ids, int64[n,{length}] attention_mask) => ({out}) "
        f"{{ e = Gather(table, input_ids) {CONTEXTS[context]} {head} }}"
    )
    tables: dict[str, Any] = {
        "table": rng.standard_normal((len(WORDS), SIZE)).astype(np.float32),
        "heads": rng.standard_normal((SIZE, max(1, labels))).astype(np.float32),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
    }
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in tables.items() if name in used
    )
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def write_picture_model(path: Path, labels: int = 3, size: int | str = 6, rows: int | str = "n") -> None:
    """Writes a model of pixels: logits of the mean of each channel."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"g (float[{rows},3,{size},{size}] pixel_values) => (float[{rows},{labels}] logits) "
        "{ m = ReduceMean<axes = [2, 3], keepdims = 0>(pixel_values) logits = MatMul(m, heads) }"
    )
    heads = np.random.default_rng(5).standard_normal((3, labels)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(heads, "heads"))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def write_text_export(folder: Path, *, labels: bool = False, **config: Any) -> Path:
    """Writes an export for texts."""
    write_text_model(folder / "model.onnx", labels=len(LABELS) if labels else 0)
    write_tokenizer(folder / "tokenizer.json")
    write_json(folder / "config.json", {"id2label": LABELS if labels else None, "hidden_size": SIZE, **config})
    return folder


def write_picture_export(folder: Path, **processor: Any) -> Path:
    """Writes an export for pictures."""
    write_picture_model(folder / "model.onnx")
    write_json(folder / "config.json", {"id2label": LABELS})
    told = {"image_processor_type": "ViTImageProcessor", "size": {"height": 6, "width": 6}, "resample": 2}
    told |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    write_json(folder / "preprocessor_config.json", told | processor)
    return folder


def png(width: int, height: int) -> bytes:
    """A picture of noise."""
    buffer = BytesIO()
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
