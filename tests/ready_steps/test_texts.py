"""Tokenizing: all rows in one call, grouped by length, filled up by the model's padding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.options import TokenizeStep
from anabranch.ready_steps.texts import BatchTokenizer
from anabranch.schemas.errors import UnreadableInput
from anabranch.schemas.model import StageSpec, TensorSpec
from anabranch.schemas.padding import Padding
from anabranch.schemas.tensors import Array
from tests.ready_steps.exports import WORDS, write_tokenizer

CLS, SEP, UNK = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "[UNK]"))
PADDING = Padding((("input_ids", 1, 9.0), ("attention_mask", 1, 0.0)), (), 0.5)
INPUTS = ("input_ids", "attention_mask")


def stage(*names: str, length: int | None = None, datatype: str = "INT64", **options: Any) -> StageSpec:
    inputs = tuple(TensorSpec(name, datatype, (None, length)) for name in names or INPUTS)
    return StageSpec("", "", inputs, (), name="model", **options)


def tokenize(folder: Path, spec: StageSpec, *texts: Any, max_length: int = 0, **options: Any) -> list[dict[str, Array]]:
    write_tokenizer(folder / "tokenizer.json", max_length)
    step = BatchTokenizer(TokenizeStep(**options), folder, spec)
    return step({"text": np.array(texts, dtype=object)})


def test_tokenizer_equal_lengths_share_a_run(tmp_path: Path) -> None:
    runs = tokenize(tmp_path, stage(company="equal"), b"good film", b"bad", b"a river", "not")
    assert [run["rows"].tolist() for run in runs] == [[0, 2], [1, 3]]
    good, film, a, river = (WORDS.index(word) for word in ("good", "film", "a", "river"))
    assert runs[0]["input_ids"].tolist() == [[CLS, good, film, SEP], [CLS, a, river, SEP]]
    assert all((run["attention_mask"] == 1).all() for run in runs)


def test_tokenizer_similar_lengths_are_filled_up(tmp_path: Path) -> None:
    spec = stage("input_ids", "attention_mask", "token_type_ids", company="similar", padding=PADDING)
    texts = [" ".join(["so"] * count) for count in range(1, 12)]
    runs = tokenize(tmp_path, spec, *texts, pad_id=3)
    assert sorted(row for run in runs for row in run["rows"]) == list(range(11))
    assert 1 < len(runs) < 6
    for run in runs:
        lengths = [row + 3 for row in run["rows"]]
        assert run["attention_mask"].sum(1).tolist() == lengths
        assert run["input_ids"].shape[1] == max(lengths)
        # The value of `[padding]` has precedence over the step's.
        assert (run["input_ids"][run["attention_mask"] == 0] == 9).all()
        assert not run["token_type_ids"].any()


def test_tokenizer_rows_that_affect_each_other_run_alone(tmp_path: Path) -> None:
    runs = tokenize(tmp_path, stage(), "good", "bad", "good")
    assert [run["rows"].tolist() for run in runs] == [[0], [1], [2]]


def test_tokenizer_calls_the_library_once_for_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Counting:
        def __init__(self, tokenizer: Tokenizer) -> None:
            self._tokenizer = tokenizer

        def encode_batch_fast(self, texts: list[str]) -> Any:
            calls.append(len(texts))
            return self._tokenizer.encode_batch_fast(texts)

    write_tokenizer(tmp_path / "tokenizer.json")
    step = BatchTokenizer(TokenizeStep(), tmp_path, stage(company="equal"))
    monkeypatch.setattr(step, "_tokenizer", Counting(step._tokenizer))
    step({"text": np.array(["good", "bad film"] * 32, dtype=object)})
    assert calls == [64]


@pytest.mark.parametrize(
    ("in_file", "max_length", "fixed", "expected"),
    [(0, 0, None, 7), (5, 0, None, 5), (0, 4, None, 4), (5, 6, None, 6), (0, 0, 6, 6), (4, 0, 6, 4), (0, 9, 5, 5)],
)
def test_tokenizer_long_row_is_truncated(
    tmp_path: Path, in_file: int, max_length: int, fixed: int | None, expected: int
) -> None:
    write_tokenizer(tmp_path / "tokenizer.json", in_file)
    step = BatchTokenizer(TokenizeStep(max_length=max_length), tmp_path, stage(length=fixed, company="equal"))
    [run] = step({"text": np.array(["so so so so so"], dtype=object)})
    assert run["attention_mask"].sum() == expected
    assert run["input_ids"][0, expected - 1] == SEP


def test_tokenizer_fixed_length_is_filled_up(tmp_path: Path) -> None:
    [run] = tokenize(tmp_path, stage(length=8, datatype="INT32", company="equal"), "good", "so bad", pad_id=2)
    assert run["input_ids"].shape == (2, 8)
    assert run["input_ids"].dtype == np.int32
    assert run["attention_mask"].sum(1).tolist() == [3, 4]
    assert (run["input_ids"][run["attention_mask"] == 0] == 2).all()


def test_tokenizer_model_without_mask_still_tells_it(tmp_path: Path) -> None:
    [run] = tokenize(tmp_path, stage("input_ids", company="equal"), "good")
    assert sorted(run) == ["attention_mask", "input_ids", "rows"]


def test_tokenizer_lowercase_lowers_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for lowercase in (False, True):
        write_tokenizer(path)
        path.write_text(path.read_text().replace('{"type":"Lowercase"}', "null").replace('"Lowercase"', '"NFC"'))
        step = BatchTokenizer(TokenizeStep(lowercase=lowercase), tmp_path, stage())
        [run] = step({"text": np.array(["GOOD"], dtype=object)})
        assert (run["input_ids"][0, 1] == UNK) is not lowercase


def test_tokenizer_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match=r"'text' is not UTF-8: invalid start byte at byte 2"):
        tokenize(tmp_path, stage(), b"ok", b"ok\xff")


def test_tokenizer_other_inputs_of_a_model_are_refused(tmp_path: Path) -> None:
    for names in (("input_ids", "position_ids"), ("ids", "attention_mask")):
        with pytest.raises(
            ModelLoadFailed, match=f"model has the inputs {names[0]}, {names[1]}, but a tokenizer makes"
        ):
            tokenize(tmp_path, stage(*names), "good")


def test_tokenizer_of_no_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="the request has no rows: send one or more"):
        tokenize(tmp_path, stage())


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_tokenizer_unusable_file_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.json is not a tokenizer: "):
        BatchTokenizer(TokenizeStep(), tmp_path, stage())
