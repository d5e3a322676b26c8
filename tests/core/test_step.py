"""Steps: results of functions are sent on, and exceptions fail their request by name."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anabranch.operators.backends.fake import FakeSession
from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.stage import enter
from anabranch.operators.core.execution.step import After, Before, Step
from anabranch.operators.core.merging.request_window import Window, answer_of
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, Output, Unit, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.errors import UnreadableInput
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse, Parameter
from anabranch.schemas.model import Catalog, ModelSpec, StageSpec, TensorSpec
from anabranch.schemas.records import FailureRecord, PartialRecord, Source, decode_record
from anabranch.schemas.tensors import Array, Tensor
from anabranch.schemas.wire import codec
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, now_ms
from tests.core.routed_queue import RoutedQueue

WRITER = ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms)
_VECTOR = (TensorSpec("v", "FP32", (None,)),)
_STAGES = tuple(StageSpec("", "", _VECTOR, (TensorSpec("w", "FP32", (None,)),), name=name) for name in ("cut", "join"))
CHAIN = ModelSpec(
    name="chain",
    version="1",
    path="",
    sha256="",
    inputs=(TensorSpec("text", "BYTES", (1,)), TensorSpec("scale", "FP32", ())),
    outputs=(TensorSpec("sum", "FP32", ()), TensorSpec("words", "BYTES", (None,))),
    batchable=False,
    stages=_STAGES,
    is_chain=True,
)


# ---- a chain: split a text into words; double the length of each; join them again


def words(tensors: Mapping[str, Array]) -> list[dict[str, Array]]:
    return [{"v": np.full(1, len(word), np.float32), "word": np.array(word)} for word in tensors["text"][0].split()]


def lengths(tensors: Mapping[str, Array], runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {
        "lengths": np.array([run["w"][0] for run in runs], np.float32),
        "words": np.array([run["word"].item() for run in runs], dtype=object),
        "scale": tensors["scale"],
    }


def scaled(tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {"v": tensors["lengths"] * tensors["scale"]}


def total(tensors: Mapping[str, Array], runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {"sum": runs[0]["w"].sum(), "words": tensors["words"]}


FUNCTIONS: list[tuple[Before | None, After | None]] = [(words, lengths), (scaled, total)]


def double(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"w": inputs["v"] * 2}


def _inputs(text: str) -> tuple[Tensor, ...]:
    return Tensor.from_array("scale", np.float32(10)), Tensor.from_array("text", np.array([text], dtype=object))


def ask(
    text: str = "an anabranch joins",
    functions: Sequence[tuple[Any, Any]] = FUNCTIONS,
    *,
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]] = double,
    model: ModelSpec = CHAIN,
    outputs: tuple[str, ...] = (),
    **parameters: Parameter,
) -> InferResponse | ErrorResponse:
    """The answer to a request after all steps and its window."""
    message = codec.encode_request(
        InferRequest("chain", _inputs(text), "a", "", parameters, outputs, Encoding.PROTOBUF)
    )
    served = Catalog({"chain": {"1": model}})
    admission = Admission(served, MAX_MESSAGE_BYTES, 5, Defects(Meter()))
    request = admission.admit(message, Source(0, 7, int(NOW_MS)), NOW_MS)
    assert isinstance(request, Request), request
    routed = RoutedQueue(served, lambda _: pytest.fail("a chain has no cost model"))
    assert routed.take_in(request, NOW_MS) == []
    departure = routed.next(NOW_MS)
    assert departure is not None
    [opening, unit] = routed.to_stages(departure.batch)
    steps = [
        Step(model, index, FakeSession(run), now_ms, index, before=before, after=after)
        for index, (before, after) in enumerate(functions)
    ]
    records: list[Output] = [opening]
    flying: list[Output] = [unit]
    for step in steps:
        came = [step.on_unit(each.value, NOW_MS) for each in flying]
        flying = [each for some in came for each in some if isinstance(each, Unit)]
        records += [each for some in came for each in some if isinstance(each, WindowPart)]
    window, kept, closing = Window(SchedulingPolicy()), [], None
    for record in records:
        keep, closing = window.on_record(record.value, NOW_MS)
        kept += [record.value] if keep else []
    assert closing is not None
    [answer] = [each for each in answer_of(closing, kept, WRITER) if isinstance(each, Answer)]
    return codec.decode_response(answer.value)


def failure(*arguments: Any, **options: Any) -> str:
    answer = ask(*arguments, **options)
    assert isinstance(answer, ErrorResponse), answer
    assert (answer.code, answer.model_name) == ("inference_failed", "chain")
    return answer.message


def test_step_request_with_many_runs_gives_one_answer() -> None:
    answer = ask()
    assert isinstance(answer, InferResponse), answer
    values = {tensor.name: tensor.to_array() for tensor in answer.outputs}
    assert values["sum"] == (2 + 9 + 5) * 2 * 10 * 2
    assert values["words"].tolist() == [b"an", b"anabranch", b"joins"]
    assert (answer.model_name, answer.model_version, answer.parameters) == ("chain", "1", {})


def test_step_without_runs_gives_an_answer() -> None:
    answer = ask("")
    assert isinstance(answer, InferResponse), answer
    assert {tensor.name: tensor.shape for tensor in answer.outputs} == {"sum": (), "words": (0,)}


def test_step_unrequested_outputs_are_left_out() -> None:
    answer = ask(outputs=("words",), explain=True)
    assert isinstance(answer, InferResponse), answer
    assert [tensor.name for tensor in answer.outputs] == ["words"]
    assert (answer.parameters["shards"], answer.parameters["tasks"]) == (1, 1)


def test_step_without_functions_forwards_tensors() -> None:
    def vector(tensors: Mapping[str, Array]) -> dict[str, Array]:
        return {"v": np.arange(3, dtype=np.float32)}

    def again(tensors: Mapping[str, Array]) -> dict[str, Array]:
        return {"v": tensors["w"], "words": np.array([b"w"], dtype=object)}

    model = ModelSpec(
        **{name: getattr(CHAIN, name) for name in ("name", "version", "path", "sha256", "inputs", "stages")},
        outputs=(TensorSpec("w", "FP32", (3,)),),
        batchable=False,
        is_chain=True,
    )
    answer = ask(functions=[(vector, None), (again, None)], model=model)
    assert isinstance(answer, InferResponse), answer
    assert answer.outputs[0].to_array().tolist() == [0, 4, 8]


def test_step_function_that_raises_is_noted_as_a_defect() -> None:
    def raises(*_: Any) -> Any:
        raise KeyError("lost")

    defects = Defects(Meter())
    message = codec.encode_request(InferRequest("chain", _inputs("a"), "a", "", {}, (), Encoding.PROTOBUF))
    admission = Admission(Catalog({"chain": {"1": CHAIN}}), MAX_MESSAGE_BYTES, 5, defects)
    request = admission.admit(message, Source(0, 7, int(NOW_MS)), NOW_MS)
    assert isinstance(request, Request), request
    unit = enter([request], CHAIN).encode()
    for before, after, run, detail in (
        (raises, lengths, double, "step 1 (cut): before"),
        (words, raises, double, "step 1 (cut): after"),
        (words, lengths, raises, "step 1 (cut): model"),
    ):
        step = Step(CHAIN, 0, FakeSession(run), now_ms, 0, defects=defects, before=before, after=after)
        [part] = step.on_unit(unit, NOW_MS)
        assert isinstance(part, WindowPart)
        [defect] = defects.drain()
        assert (defect.phase, type(defect.error), defect.detail) == ("session", KeyError, detail)
        assert traceback.extract_tb(defect.error.__traceback__)[-1].name == "raises"


def test_step_exception_becomes_the_answer_and_names_the_step() -> None:
    def raises(*_: Any) -> Any:
        raise KeyError("lost")

    assert failure(functions=[(raises, lengths), (scaled, total)]) == "step 1 (cut): before: KeyError: 'lost'"
    assert failure(functions=[(words, raises), (scaled, total)]) == "step 1 (cut): after: KeyError: 'lost'"
    assert failure(functions=[(words, lengths), (scaled, raises)]) == "step 2 (join): after: KeyError: 'lost'"
    assert failure(run=raises) == "step 1 (cut): model: KeyError: 'lost'"


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ([(lambda _: 3, lengths)], "step 1 (cut): before returned int"),
        ([(lambda _: [3], lengths)], "before returned list"),
        ([(lambda _: {"x": 1}, lengths)], "the model lacks v, found x: return all inputs from `before`"),
        ([(words, None)], "the model ran 3 times, expected 1: add `after`"),
        ([(words, lambda *_: 3)], "after returned int"),
        ([(words, lambda *_: {"x": np.zeros(2, complex)})], "tensor 'x' cannot be sent on"),
        ([(words, lambda *_: {"x": [[1], [1, 2]]})], "tensor 'x' cannot be sent on"),
        (
            [(words, lengths), (scaled, lambda *_: {"sum": np.float32(1)})],
            "step 2 (join): output 'words' of the chain is missing, found sum",
        ),
        (
            [(words, lengths), (scaled, lambda *_: {"sum": np.float64(1), "words": []})],
            "output 'sum' of the chain is FP64 [], expected FP32 []",
        ),
        (
            [(words, lengths), (scaled, lambda *_: {"sum": np.float32(1), "words": np.array([["a"]])})],
            "output 'words' of the chain is BYTES [1, 1], expected BYTES [any]",
        ),
    ],
)
def test_step_invalid_result_fails_with_the_reason(functions: list[tuple[Any, Any]], reason: str) -> None:
    assert reason in failure(functions=functions)


def test_step_first_gets_all_tensors_read_only() -> None:
    seen: list[str] = []

    def look(tensors: Mapping[str, Array]) -> dict[str, Array]:
        seen.extend(tensors)
        assert not tensors["scale"].flags.writeable
        raise ValueError("seen")

    assert failure(functions=[(look, lengths)], outputs=("words",)) == "step 1 (cut): before: ValueError: seen"
    assert seen == ["text", "scale"]


# ---- a chain whose axis 0 counts rows: lengths of texts, doubled; "bad" fails, and "worse" is a defect

ROWS = replace(
    CHAIN,
    inputs=(TensorSpec("text", "BYTES", (None,)),),
    outputs=(TensorSpec("w", "FP32", (None,)),),
    batchable=True,
    stages=_STAGES[:1],
)


def row_lengths(tensors: Mapping[str, Array]) -> dict[str, Array]:
    texts = tensors["text"].tolist()
    if b"worse" in texts:
        raise KeyError("lost")
    if b"bad" in texts:
        raise UnreadableInput("'text' is bad")
    return {"v": np.array([len(text) for text in texts], np.float32)}


def run_rows(
    *requests: Sequence[str], before: Any = row_lengths, after: Any = None, defects: Defects | None = None
) -> tuple[list[list[float]], list[tuple[int, str, str]], list[int]]:
    """The outputs of each part, the failures by first row of their request, and the sizes of the batches."""
    defects = defects or Defects(Meter())
    admission = Admission(Catalog({"chain": {"1": ROWS}}), MAX_MESSAGE_BYTES, 5, defects)
    admitted = []
    for number, texts in enumerate(requests):
        tensor = Tensor.from_array("text", np.array(texts, dtype=object))
        message = codec.encode_request(InferRequest("chain", (tensor,), f"{number}", "", {}, (), Encoding.PROTOBUF))
        request = admission.admit(message, Source(0, number, int(NOW_MS)), NOW_MS)
        assert isinstance(request, Request), request
        admitted.append(request)
    session = FakeSession(double)
    after = after or (lambda _, runs: {"w": runs[0]["w"]})
    step = Step(ROWS, 0, session, now_ms, 0, defects=defects, before=before, after=after)
    good, bad = [], []
    for part in step.on_unit(enter(admitted, ROWS).encode(), NOW_MS):
        record = decode_record(part.value)
        if isinstance(record, PartialRecord):
            good.append(np.frombuffer(record.tensors[0], np.float32).tolist())
        else:
            assert isinstance(record, FailureRecord)
            bad.append((record.segment.source.offset, record.failure.code, record.failure.message))
    return good, bad, session.batches


def test_step_rows_of_several_requests_run_in_one_call() -> None:
    assert run_rows(["a", "abc"], ["ab"], ["abcd"]) == ([[2, 6], [4], [8]], [], [4])


def test_step_bad_row_fails_its_request_alone() -> None:
    defects = Defects(Meter())
    good, bad, batches = run_rows(["a", "abc"], ["ab", "bad"], ["abcd"], defects=defects)
    assert [2, 6] in good
    assert [8] in good
    assert bad == [(1, "unreadable_input", "row 1: step 1 (cut): 'text' is bad")]
    assert sum(batches) == 4
    # The sender's mistake is not a defect of the job.
    assert defects.drain() == []


def test_step_row_that_raises_is_noted_once() -> None:
    defects = Defects(Meter())
    good, bad, _ = run_rows(["a"] * 5, ["worse"], ["ab"] * 7, defects=defects)
    assert sum(map(len, good)) == 12
    assert bad == [(1, "inference_failed", "row 0: step 1 (cut): before: KeyError: 'lost'")]
    [defect] = defects.drain()
    assert (type(defect.error), defect.detail) == (KeyError, "step 1 (cut): before")


def test_step_result_without_a_row_for_each_fails() -> None:
    good, bad, _ = run_rows(["a", "b"], after=lambda *_: {"w": np.zeros(3, np.float32)})
    assert good == []
    assert {message for _, _, message in bad} == {
        f"row {row}: step 1 (cut): tensor 'w' has shape [3] for 1 rows: return a row for each" for row in (0, 1)
    }
