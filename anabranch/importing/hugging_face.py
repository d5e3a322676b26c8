"""Reads a folder that was exported from Hugging Face, as a chain of ready steps.

    model.onnx, tokenizer.json, config.json, …  ->  model.toml with [chain] and [padding], and the files that it names

The rules are those of transformers' pipelines and of sentence-transformers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.model_repository.store import external_data
from anabranch.importing.errors import ExportIncomplete, VersionThere
from anabranch.importing.picture_options import picture_options
from anabranch.importing.task import Task
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import read_signature
from anabranch.ready_steps.answers import HIDDEN
from anabranch.ready_steps.signature import fitting_outputs, show_ranks
from anabranch.schemas.model import ModelSpec, TensorSpec

TOKENIZER, CONFIG = "tokenizer.json", "config.json"
_PICTURES = "preprocessor_config.json"
_MODULES = "modules.json"
_SENTENCE = "sentence_embedding"
_MODES = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "first",
    "cls_token": "first",
    "max": "max",
    "max_tokens": "max",
}
#: Larger numbers mean no limit.
_NO_LIMIT = 1_000_000
#: Their positions begin behind that of the padding.
_SHIFTED = {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"}


@dataclass(frozen=True)
class ExportedChain:
    """A chain, before it is written.

    Attributes:
        toml: Text of its `model.toml`.
        files: Files beside it, by name.
    """

    toml: str
    files: Mapping[str, Path]


def read_export(folder: Path, task: Task, file: str = "") -> ExportedChain:
    """Read an exported folder.

    Args:
        file: Path of the ONNX file in the folder, if there are several.

    Raises:
        ExportIncomplete: A file is missing, or has what no ready step does.
        ModelLoadFailed: The ONNX file cannot be read.
    """
    if not folder.is_dir():
        raise ExportIncomplete(f"no folder at {folder}: give the folder of an export, as hf:DIR")
    export = _Export(folder, _model_of(folder, file))
    try:
        return export.chain(task)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise ExportIncomplete(
            f"{folder} has settings of an unexpected form: {type(error).__name__}: {error}"
        ) from None


def add_export(source: Path, task: Task, file: str, target: Path) -> ModelSpec:
    """Write the chain of an exported folder into a model repository, in one step.

    Args:
        target: Folder of the chain.

    Returns:
        The chain, as a job reads it.

    Raises:
        VersionThere: The repository has a model of this name.
        ExportIncomplete: The folder cannot be served.
    """
    if target.exists():
        raise VersionThere(f"{target} already exists: remove it, or choose another --name")
    chain = read_export(source, task, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=target.parent) as scratch:
        folder = Path(scratch) / target.name
        for name, path in chain.files.items():
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (folder / "model.toml").write_text(chain.toml, encoding="utf-8")
        try:
            model = read_repository(Path(scratch), ModelDefaults(), strict=True).find(target.name, "")
        except (ConfigError, ModelLoadFailed) as error:
            raise ExportIncomplete(f"{source} cannot be served: {error.message.replace(f'{scratch}/', '')}") from None
        folder.rename(target)
    return model


def _model_of(folder: Path, file: str) -> Path:
    found = sorted(path for path in (*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")))
    names = ", ".join(str(path.relative_to(folder)) for path in found)
    if file:
        path = folder / file
        if path not in found:
            raise ExportIncomplete(f"{folder} has no ONNX file {file!r}; available: {names or 'none'}")
        return path
    if not found:
        raise ExportIncomplete(f"{folder} has no ONNX file: export the model with `optimum-cli export onnx` first")
    if len(found) > 1:
        raise ExportIncomplete(f"{folder} has several ONNX files, {names}: choose one with --file")
    return found[0]


class _Export:
    def __init__(self, folder: Path, model: Path) -> None:
        self._folder = folder
        self._model = model
        self._inputs, self._outputs = read_signature(model)
        self._config: dict[str, Any] = self._json(CONFIG)
        self._files = {name: model.parent / name for name in (model.name, *external_data(model))}

    def chain(self, task: Task) -> ExportedChain:
        """Return the chain for a task."""
        padding: list[str] = []
        if task is Task.IMAGE_CLASSIFICATION:
            taken, before = "picture", {"step": "picture", **picture_options(self._needed(_PICTURES), _PICTURES)}
        else:
            taken, before, padding = "text", *self._tokenizer()
        if task is Task.FEATURE_EXTRACTION:
            after, size = self._pool()
            outputs = [("embedding", "FP32", [-1, size])]
        else:
            after, size = self._labels()
            outputs = [("label", "BYTES", [-1]), ("score", "FP32", [-1]), ("scores", "FP32", [-1, size])]
        lines = [
            f"# {task}",
            "[chain]",
            f'inputs.{taken} = {{ datatype = "BYTES", shape = [-1] }}',
            *(f"outputs.{name} = {_table({'datatype': kind, 'shape': axes})}" for name, kind, axes in outputs),
            "",
            "[[chain.steps]]",
            f"model = {_value(self._model.name)}",
            f"before = {_table(before)}",
            f"after = {_table(after)}",
            *padding,
        ]
        return ExportedChain("\n".join(lines) + "\n", self._files)

    def _json(self, name: str) -> Any:
        path = self._folder / name
        if not path.is_file():
            return {}
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ExportIncomplete(f"cannot read {path}: {error}") from None

    def _needed(self, name: str) -> Any:
        if not (self._folder / name).is_file():
            raise ExportIncomplete(f"{self._folder} has no {name}: copy it from the model's own folder")
        return self._json(name)

    def _tokenizer(self) -> tuple[dict[str, Any], list[str]]:
        """Return the step, and the lines of `[padding]`."""
        path = self._folder / TOKENIZER
        if not path.is_file():
            raise ExportIncomplete(
                f"{self._folder} has no {TOKENIZER}: write it with AutoTokenizer's save_pretrained, or copy it "
                "from the model's own folder"
            )
        self._files[TOKENIZER] = path
        step: dict[str, Any] = {"step": "tokenize"}
        pad_id = self._pad_id()
        if length := self._max_length(pad_id):
            step["max_length"] = length
        if self._json("sentence_bert_config.json").get("do_lower_case"):
            step["lowercase"] = True
        open_inputs = [spec.name for spec in self._inputs if len(spec.shape) == 2 and spec.shape[1] is None]
        if len(open_inputs) != len(self._inputs):
            return step | ({"pad_id": pad_id} if pad_id else {}), []
        mask = "attention_mask" if "attention_mask" in open_inputs else ""
        lines = ["", "[padding]", f"inputs = {_table({name: 1 for name in open_inputs if name != mask})}"]
        lines += [f"values = {_table({'input_ids': pad_id})}"] if pad_id else []
        lines += [f"mask = {_value(mask)}"] if mask else []
        grown = {spec.name: 1 for spec in self._outputs if len(spec.shape) == 3 and spec.shape[1] is None}
        return step, [*lines, f"outputs = {_table(grown)}"]

    def _pad_id(self) -> int:
        told = self._json("tokenizer_config.json").get("pad_token")
        token = told.get("content") if isinstance(told, dict) else told
        tokenizer = self._json(TOKENIZER)
        for added in tokenizer.get("added_tokens") or ():
            if added.get("content") == token:
                return int(added["id"])
        found = (tokenizer.get("padding") or {}).get("pad_id", self._config.get("pad_token_id"))
        return int(found or 0)

    def _max_length(self, pad_id: int) -> int:
        told = self._json("sentence_bert_config.json").get("max_seq_length")
        positions = self._config.get("max_position_embeddings") or _NO_LIMIT
        if self._config.get("model_type") in _SHIFTED:
            positions -= pad_id + 1
        limit = min(told or self._json("tokenizer_config.json").get("model_max_length") or _NO_LIMIT, positions)
        return int(limit) if limit < _NO_LIMIT else 0

    def _pool(self) -> tuple[dict[str, Any], int]:
        """Return the step, and the length of its vectors."""
        if any(spec.name == _SENTENCE for spec in self._outputs):
            # The export has all modules.
            return {"step": "pool", "tensor": _SENTENCE, "mode": "none", "normalize": False}, self._size(_SENTENCE)
        mode, normalize = self._modules()
        step: dict[str, Any] = {"step": "pool", "mode": mode, "normalize": normalize}
        tensor = self._chosen(3, HIDDEN)
        return step | {"tensor": tensor}, self._size(tensor)

    def _modules(self) -> tuple[str, bool]:
        path, normalize = "1_Pooling", True
        if modules := self._json(_MODULES):
            normalize = False
            for module in modules:
                kind = str(module["type"]).rpartition(".")[2]
                if kind == "Pooling":
                    path = module.get("path", path)
                elif kind == "Normalize":
                    normalize = True
                elif kind != "Transformer":
                    where = self._folder / _MODULES
                    raise ExportIncomplete(f"{where} has {kind}, which no ready step does: write a function for it")
        told = self._json(f"{path}/config.json")
        prefix = "pooling_mode_"
        chosen = [key.removeprefix(prefix) for key, on in told.items() if key.startswith(prefix) and on]
        if isinstance(told.get("pooling_mode"), str):
            chosen = [told["pooling_mode"]]
        if told and (len(chosen) != 1 or chosen[0] not in _MODES):
            raise ExportIncomplete(
                f"{self._folder / path} pools by {', '.join(chosen) or 'nothing'}, expected one of mean, cls and max: "
                "write a function for it"
            )
        return (_MODES[chosen[0]] if told else "mean"), normalize

    def _labels(self) -> tuple[dict[str, Any], int]:
        """Return the step, and the number of labels."""
        tensor = self._chosen(2, ("logits",))
        names = self._config.get("id2label") or {}
        count = len(names) or self._size(tensor)
        if count < 1:
            raise ExportIncomplete(f"{self._folder / CONFIG} has no id2label: add it, with a name for each number")
        problem = self._config.get("problem_type")
        function = "softmax"
        if problem == "regression":
            function = "none"
        elif problem == "multi_label_classification" or count == 1:
            function = "sigmoid"
        step: dict[str, Any] = {"step": "labels", "tensor": tensor, "function": function}
        if names:
            self._files[CONFIG] = self._folder / CONFIG
            return step | {"labels": CONFIG}, count
        return step | {"labels": [f"LABEL_{number}" for number in range(count)]}, count

    def _chosen(self, rank: int, usual: Sequence[str]) -> str:
        found = fitting_outputs(self._outputs, rank, usual)
        if len(found) != 1:
            there = show_ranks(self._outputs)
            raise ExportIncomplete(
                f"{self._model} has {len(found)} outputs of floats with {rank} axes, found {there}: export it for "
                "this task"
            )
        return found[0]

    def _size(self, tensor: str) -> int:
        """Return the size of the last axis; -1 if it is open."""
        [spec] = [spec for spec in self._outputs if spec.name == tensor]
        return _last(spec) or -1


def _last(spec: TensorSpec) -> int | None:
    return spec.shape[-1] if spec.shape else None


def _value(value: Any) -> str:
    """Write a value as TOML, which is JSON for these."""
    return json.dumps(value, ensure_ascii=False)


def _table(values: Mapping[str, Any]) -> str:
    return (
        "{ " + ", ".join(f"{_key(name)} = {_value(value)}" for name, value in values.items()) + " }" if values else "{}"
    )


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _value(name)
