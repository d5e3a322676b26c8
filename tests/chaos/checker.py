"""Judges a run by its topics: computes each answer again, and counts lost, wrong, doubled and disordered ones."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.dead_letters import decode_dead_letter
from tests.chaos.models import NEWEST_SMALL, Reference
from tests.chaos.workload import ORDERED_KEY, UNREADABLE

#: Outputs of matrix products depend on the size of the batch; all other outputs are compared bit by bit.
TOLERANCES = {"small": 1e-4}
MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """A record of a topic.

    Attributes:
        seen_s: Time at which the reader of answers had it.
        expected: Error code that a request must be answered with; empty for values.
    """

    partition: int
    offset: int
    key: bytes
    value: bytes | None
    seen_s: float = 0.0
    expected: str = ""


@dataclass(frozen=True)
class Generation:
    """A time in which one generation of the models answered.

    Attributes:
        from_s: Start of the command that brought it.
        until_s: End of the command that replaced it.
    """

    number: int
    from_s: float = float("-inf")
    until_s: float = float("inf")


class Verdict(msgspec.Struct):
    """Counts of one run.

    Attributes:
        requests: Records of the requests topic.
        by_kind: The same by model, or `poison`.
        lost: Requests that have no answer, or no dead letter if unreadable.
        wrong: Answers that differ from ONNX Runtime's, that are not asked for, or that have another error.
        doubled: Answers and dead letters too many, where delivery is exactly-once.
        repeated: Answers and dead letters too many, where delivery is at-least-once.
        disordered: Answers that overtook an earlier one of their key.
        letters: Dead letters.
        examples: A few of each violation.
    """

    requests: int = 0
    answers: int = 0
    letters: int = 0
    by_kind: dict[str, int] = {}
    lost: int = 0
    wrong: int = 0
    doubled: int = 0
    repeated: int = 0
    disordered: int = 0
    ordered: int = 0
    examples: list[str] = []

    @property
    def is_clean(self) -> bool:
        """True if no guarantee was broken."""
        return not (self.lost or self.wrong or self.doubled or self.disordered)


@dataclass
class Checker:
    """Compares requests, answers and dead letters.

    Attributes:
        exactly_once: A second answer is a violation.
        order: Answers of one key must be in the order of their requests.
        sent_s: Send time by id, to find the models of that time.
    """

    reference: Reference
    exactly_once: bool
    order: bool
    generations: Sequence[Generation] = (Generation(0),)
    sent_s: dict[str, float] = field(default_factory=dict)

    def check(
        self, requests: Sequence[TopicRecord], answers: Sequence[TopicRecord], letters: Sequence[TopicRecord]
    ) -> Verdict:
        """Judges the records of the three topics."""
        found = Verdict(requests=len(requests), answers=len(answers), letters=len(letters))
        asked: dict[str, list[TopicRecord]] = defaultdict(list)
        unreadable: dict[tuple[int, int], TopicRecord] = {}
        kinds: Counter[str] = Counter()
        for record in requests:
            kinds["poison" if record.expected else codec.decode_request(record.value or b"").model_name] += 1
            if record.expected == UNREADABLE:
                unreadable[record.partition, record.offset] = record
            else:
                asked[self._id_of(record)].append(record)
        found.by_kind = dict(sorted(kinds.items()))
        self._check_answers(found, asked, answers)
        self._check_letters(found, asked, unreadable, letters)
        if self.order:
            self._check_order(found, requests, answers)
        return found

    def _check_answers(
        self, found: Verdict, asked: dict[str, list[TopicRecord]], answers: Sequence[TopicRecord]
    ) -> None:
        counts: Counter[str] = Counter()
        for record in answers:
            answer = codec.decode_response(record.value or b"")
            if answer.id not in asked:
                _note(found, "wrong", f"answer to {answer.id!r}, which was not asked")
                continue
            counts[answer.id] += 1
            if record.key != answer.id.encode():
                _note(found, "wrong", f"answer to {answer.id} has key {record.key!r}")
            problems = [self._problem(request, answer, record.seen_s) for request in asked[answer.id]]
            if all(problems):
                _note(found, "wrong", f"answer to {answer.id}: {problems[0]}")
        self._compare(found, "answer", counts, {name: len(records) for name, records in asked.items()})

    def _check_letters(
        self,
        found: Verdict,
        asked: dict[str, list[TopicRecord]],
        unreadable: dict[tuple[int, int], TopicRecord],
        letters: Sequence[TopicRecord],
    ) -> None:
        failing = [record for records in asked.values() for record in records if record.expected]
        wanted: dict[Any, int] = dict.fromkeys([*unreadable, *((each.partition, each.offset) for each in failing)], 1)
        counts: Counter[Any] = Counter()
        for record in letters:
            letter = decode_dead_letter(record.value or b"")
            at = letter.source.partition, letter.source.offset
            counts[at] += 1
            if at in unreadable and letter.code != UNREADABLE:
                _note(found, "wrong", f"dead letter of {at} has code {letter.code}")
            if at not in wanted:
                _note(found, "wrong", f"dead letter of {at}, which is a good request: {letter.code}: {letter.message}")
        self._compare(found, "dead letter", counts, wanted)

    def _compare(self, found: Verdict, what: str, counts: Counter[Any], wanted: dict[Any, int]) -> None:
        for name, number in wanted.items():
            if counts[name] < number:
                _note(found, "lost", f"{counts[name]} of {number} {what}s to {name}", number - counts[name])
            elif counts[name] > number and self.exactly_once:
                _note(found, "doubled", f"{counts[name]} {what}s to {name}, expected {number}", counts[name] - number)
            else:
                found.repeated += counts[name] - number

    def _problem(self, record: TopicRecord, answer: InferResponse | ErrorResponse, seen_s: float) -> str:
        """Returns the difference between an answer and the right one; empty without a difference."""
        if isinstance(answer, ErrorResponse):
            return "" if answer.code == record.expected else f"{answer.code}: {answer.message}"
        if record.expected:
            return f"values, expected {record.expected}"
        request = codec.decode_request(record.value or b"")
        if answer.model_name != request.model_name:
            return f"model {answer.model_name}, expected {request.model_name}"
        versions = self._versions(request, seen_s)
        if versions and answer.model_version not in versions:
            return f"version {answer.model_version} of {answer.model_name}, expected {' or '.join(sorted(versions))}"
        inputs = {tensor.name: tensor.to_array() for tensor in request.inputs}
        right = self.reference.run(request.model_name, answer.model_version, inputs)
        given = {tensor.name: tensor.to_array() for tensor in answer.outputs}
        if given.keys() != right.keys():
            return f"outputs {sorted(given)}, expected {sorted(right)}"
        same = _equal(TOLERANCES.get(request.model_name, 0.0))
        return next((f"values of {name}" for name in right if not same(given[name], right[name])), "")

    def _versions(self, request: InferRequest, seen_s: float) -> set[str]:
        """Returns the versions that may answer; any if empty."""
        if request.model_version:
            return {request.model_version}
        if request.model_name != "small":
            return set()
        sent_s = self.sent_s.get(request.id, float("-inf"))
        times = [each for each in self.generations if each.from_s <= seen_s and sent_s <= each.until_s]
        return {NEWEST_SMALL[each.number] for each in times}

    def _check_order(self, found: Verdict, requests: Sequence[TopicRecord], answers: Iterable[TopicRecord]) -> None:
        """Compares the first answers of each key with the requests; answers have one partition."""
        places = {
            self._id_of(record): (record.key, record.offset)
            for record in requests
            if record.key.startswith(ORDERED_KEY)
        }
        newest: dict[bytes, int] = {}
        seen: set[str] = set()
        for record in sorted(answers, key=lambda record: record.offset):
            name = record.key.decode()
            if name not in places or name in seen:
                continue
            seen.add(name)
            found.ordered += 1
            key, offset = places[name]
            if offset < newest.get(key, -1):
                _note(found, "disordered", f"answer to {name} of {key.decode()} came after a later one")
            newest[key] = max(offset, newest.get(key, -1))

    def _id_of(self, record: TopicRecord) -> str:
        return codec.find_id(record.value or b"")[0]


def _note(found: Verdict, violation: str, example: str, count: int = 1) -> None:
    setattr(found, violation, getattr(found, violation) + count)
    if sum(each.startswith(violation) for each in found.examples) < MAX_EXAMPLES:
        found.examples.append(f"{violation}: {example}")


def _equal(tolerance: float) -> Callable[[Any, Any], bool]:
    if not tolerance:
        return np.array_equal
    return lambda given, right: given.shape == right.shape and np.allclose(given, right, tolerance, tolerance)
