"""Checks answers by the request alone, for the simulator and for tests with crashes.

Requests are for the models of `tests.core.models`. Every row has a distinct output, so that lost, doubled and misplaced
rows are found.
"""

from dataclasses import dataclass, field
from itertools import chain

from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse, Parameter
from anabranch.schemas.wire.codec import encode_request
from tests.core.models import ENSEMBLES, MEMBERS, POISON, POISON_OF, expected, expected_of_members, tensors_of


@dataclass(frozen=True)
class Sent:
    """One request.

    Attributes:
        values: One for each row; for `whole`, one for each element.
        timeout_ms: From `timestamp_ms`.
    """

    request_id: str
    model: str
    values: tuple[float, ...]
    timestamp_ms: int = 0
    encoding: Encoding = Encoding.PROTOBUF
    priority: int = 0
    partial: bool = False
    timeout_ms: int | None = None

    def encode(self) -> bytes:
        """Value of the Kafka record."""
        parameters: dict[str, Parameter] = {"priority": self.priority, "partial": self.partial}
        if self.timeout_ms is not None:
            parameters["timeout"] = self.timeout_ms * 1000
        inputs = tensors_of(self.model, self.values)
        return encode_request(InferRequest(self.model, inputs, self.request_id, "", parameters, encoding=self.encoding))

    @property
    def rows(self) -> int:
        return 1 if self.model == "whole" else len(self.values)

    @property
    def bad_rows(self) -> set[int]:
        """Rows that the model cannot answer; a fixed batch fails as a whole."""
        poisoned = [row for row, value in enumerate(self.values) if value == POISON]
        if self.model == "whole":
            return {0} if poisoned else set()
        if self.model == "sums":
            return set(range(self.rows)) if poisoned else set()
        if self.model == "pairs":
            return {row for at in poisoned for row in (at // 2 * 2, at // 2 * 2 + 1)}
        return set(poisoned)


@dataclass
class Fate:
    """Faults that a request met.

    Attributes:
        lost: Rows of lost records (perhaps of one with a copy), numbered as in records.
        may_be_refused: True if full tasks refuse.
        gives_up_ms: Time before its deadline from which a request may be given up.
    """

    lost: set[int] = field(default_factory=set)
    may_be_refused: bool = False
    gives_up_ms: float = 0.0


def check_answer(sent: Sent, answer: InferResponse | ErrorResponse, fate: Fate, answered_at_ms: float) -> None:
    """Checks that a request may get this answer.

    Raises:
        AssertionError: It may not.
    """
    assert answer.id == sent.request_id
    named = (answer.model_name, answer.model_version)
    is_refused = isinstance(answer, ErrorResponse) and named == ("", "")  # refused at admission
    assert is_refused or named == (sent.model, "10" if sent.model == "rows" else "1")
    if sent.model in ENSEMBLES:
        _check_ensemble(sent, answer, fate, answered_at_ms)
        return
    is_late = sent.timeout_ms is not None and answered_at_ms >= sent.timestamp_ms + sent.timeout_ms - fate.gives_up_ms
    everything = set(range(sent.rows))
    if isinstance(answer, ErrorResponse):
        _check_code(sent, answer.code, fate, is_late=is_late)
        is_excused = is_late or answer.code == "overloaded"
        assert is_excused or not sent.partial or sent.bad_rows | fate.lost == everything, "good rows were not answered"
        return
    missing = _rows_named(str(answer.parameters.get("missing_rows", "")))
    assert sent.bad_rows <= missing < everything
    if missing:
        assert sent.partial, "rows are missing from a complete answer"
        assert is_late or missing <= sent.bad_rows | fate.lost, "rows are missing that were not lost"
        _check_code(sent, str(answer.parameters["error_code"]), fate, is_late=is_late)
    there = sorted(everything - missing)
    assert [tensor.name for tensor in answer.outputs] == list(expected(sent.model, ()))
    for tensor in answer.outputs:
        assert tensor.to_array().tolist() == _expected_rows(sent, tensor.name, there), f"rows {there} of {tensor.name}"


def _check_ensemble(sent: Sent, answer: InferResponse | ErrorResponse, fate: Fate, answered_at_ms: float) -> None:
    ensemble = ENSEMBLES[sent.model]
    if isinstance(answer, ErrorResponse) and answer.code == "overloaded":
        assert fate.may_be_refused
        return
    timeouts = [each for each in (sent.timeout_ms, ensemble.member_timeout_ms) if each]
    is_late = bool(timeouts) and answered_at_ms >= sent.timestamp_ms + min(timeouts)
    poisoned = {
        (member, row)
        for member, (name, _) in enumerate(MEMBERS)
        for row, value in enumerate(sent.values)
        if value == POISON_OF[name]
    }
    damaged = poisoned | {divmod(row, sent.rows) for row in fate.lost}
    failing, bad_rows = {member for member, _ in damaged}, {row for _, row in damaged}
    everything = set(range(sent.rows))
    if isinstance(answer, ErrorResponse) or answer.parameters.keys() & {"error_code"}:
        code = answer.code if isinstance(answer, ErrorResponse) else str(answer.parameters["error_code"])
        assert (code == "inference_failed") <= bool(poisoned)
        assert (code == "deadline_exceeded") <= is_late
        assert (code == "incomplete_answer") <= (bool(fate.lost) and not timeouts)
        assert code in {"inference_failed", "deadline_exceeded", "incomplete_answer"}
    if isinstance(answer, ErrorResponse):
        assert is_late or len(MEMBERS) - len(failing) < ensemble.needed, "enough members were there"
        assert is_late or not sent.partial or bad_rows == everything, "good rows were not answered"
        return
    missing_rows = _rows_named(str(answer.parameters.get("missing_rows", "")))
    names = [name for name in str(answer.parameters.get("missing_members", "")).split(",") if name]
    members = [member for member, (name, _) in enumerate(MEMBERS) if name not in names]
    assert len(members) == len(MEMBERS) - len(names) >= ensemble.needed
    assert not (names and missing_rows), "whole members or rows, not both"
    assert is_late or set(range(len(MEMBERS))) - set(members) <= failing, "members are missing that were not lost"
    there = sorted(everything - missing_rows)
    assert there
    assert not {(member, row) for member in members for row in there} & poisoned
    if missing_rows:
        assert sent.partial, "rows are missing from a complete answer"
        assert is_late or missing_rows <= bad_rows, "rows are missing that were not lost"
    [tensor] = answer.outputs
    rows = expected_of_members(sent.model, sent.values, members)
    assert tensor.to_array().tolist() == [rows[row] for row in there]


def _check_code(sent: Sent, code: str, fate: Fate, *, is_late: bool) -> None:
    match code:
        case "inference_failed":
            assert sent.bad_rows
        case "deadline_exceeded":
            assert is_late
        case "overloaded":
            assert fate.may_be_refused
        case "incomplete_answer":
            assert fate.lost
            assert sent.timeout_ms is None
        case _:
            raise AssertionError(f"no request was made for {code}")


def _rows_named(ranges: str) -> set[int]:
    ends = [part.split("-") for part in ranges.split(",") if part]
    return set(chain.from_iterable(range(int(first), int(last) + 1) for first, last in ends))


def _expected_rows(sent: Sent, output: str, rows: list[int]) -> list[object]:
    if sent.model == "whole":
        return expected("whole", sent.values)[output]
    # Poison has no output, so these rows have none.
    harmless = [0.0 if value == POISON else value for value in sent.values]
    values = expected(sent.model, harmless)[output]
    return [values[row] for row in rows]
