"""Tokenizes texts with the tokenizers library."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.options import MASK, ROWS, TokenizeStep
from anabranch.ready_steps.row_groups import group_rows
from anabranch.schemas.errors import UnreadableInput
from anabranch.schemas.model import StageSpec
from anabranch.schemas.tensors import NUMPY_DTYPES, Array

#: Inputs of a model that a tokenizer fills.
_IDS, _TYPES = "input_ids", "token_type_ids"


class BatchTokenizer:
    """Makes the inputs of a model of texts; rows of similar length share a run as far as the model's trial allows.

    Raises:
        ModelLoadFailed: The file is not a tokenizer, or the model needs other inputs.
    """

    def __init__(self, options: TokenizeStep, folder: Path, stage: StageSpec) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 - an extra

        # A task has one thread; others use the other cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        path = folder / options.file
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises Exception itself
            raise ModelLoadFailed(f"{path} is not a tokenizer: {error}; save it as tokenizer.json") from None
        self._options = options
        self._specs = {spec.name: spec for spec in stage.inputs}
        if _IDS not in self._specs or not self._specs.keys() <= {_IDS, MASK, _TYPES}:
            raise ModelLoadFailed(
                f"{stage.name} has the inputs {', '.join(self._specs)}, but a tokenizer makes {_IDS}, {MASK} and "
                f"{_TYPES}: export the model with those names, and no others"
            )
        shape = self._specs[_IDS].shape
        self._fixed = shape[1] if len(shape) > 1 else None
        self._alone, self._padding = stage.company == "alone", stage.padding
        values = {} if stage.padding is None else {name: value for name, _, value in stage.padding.inputs}
        self._fills = {_IDS: values.get(_IDS, options.pad_id), MASK: 0, _TYPES: values.get(_TYPES, 0)}
        self._limit()

    def _limit(self) -> None:
        tokenizer, limits = self._tokenizer, [self._options.max_length, self._fixed]
        truncation = tokenizer.truncation or {}
        if not self._options.max_length and truncation:
            limits.append(truncation["max_length"])
        known = [limit for limit in limits if limit]
        # The engine fills up: see `_feed`.
        tokenizer.no_padding()
        if known:
            kept = {key: truncation[key] for key in ("strategy", "direction") if key in truncation}
            tokenizer.enable_truncation(min(known), **kept)

    def __call__(self, tensors: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Return inputs for each run of the model."""
        texts = [_text(item, self._options) for item in tensors[self._options.input].ravel().tolist()]
        encoded = self._tokenizer.encode_batch_fast(texts)
        lengths = [len(each.ids) for each in encoded]
        return [self._feed(encoded, rows) for rows in self._groups(lengths)]

    def _groups(self, lengths: Sequence[int]) -> list[list[int]]:
        if self._fixed:
            return group_rows([0] * len(lengths), alone=self._alone)
        padding = self._padding
        keys = lengths if padding is None else [padding.longest_neighbour(length) for length in lengths]
        return group_rows(keys, alone=self._alone)

    def _feed(self, encoded: Sequence[Any], rows: Sequence[int]) -> dict[str, Array]:
        longest = self._fixed or max(len(encoded[row].ids) for row in rows)
        feed: dict[str, Array] = {ROWS: np.array(rows, np.int64)}
        for name, values in ((_IDS, "ids"), (MASK, "attention_mask"), (_TYPES, "type_ids")):
            spec = self._specs.get(name)
            if spec is None and name != MASK:
                continue
            dtype = NUMPY_DTYPES[spec.datatype] if spec else np.int64
            array = feed[name] = np.full((len(rows), longest), self._fills[name], dtype)
            for at, row in enumerate(rows):
                found = getattr(encoded[row], values)
                array[at, : len(found)] = found
        return feed


def _text(item: object, options: TokenizeStep) -> str:
    try:
        text = item.decode() if isinstance(item, bytes) else str(item)
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{options.input!r} is not UTF-8: {error.reason} at byte {error.start}") from None
    return text.lower() if options.lowercase else text
