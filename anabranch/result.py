"""What a person gets back: the outputs of a model as numpy arrays, and what the answer says about itself."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from anabranch.schemas.errors import MalformedRequest
from anabranch.schemas.latency_breakdown import STAGES, SUFFIX
from anabranch.schemas.messages import InferResponse, Parameter
from anabranch.schemas.tensors import Array

MISSING_ROWS = "missing_rows"
MISSING_MEMBERS = "missing_members"


class Result(Mapping[str, Array]):
    """The outputs of one request, by name, in the order in which they were asked for.

    Arrays are read-only views of the answer's bytes (`.copy()` makes one that can be written to); BYTES outputs are
    object arrays of `bytes`.

    Attributes:
        id: The request's id.
        model_name: The model that answered.
        model_version: The version that answered.
        parameters: What else the answer carries.
        missing_rows: First and last row, both included, of every range that a partial answer lacks; the outputs hold
            the other rows, in order. Empty for a complete answer.
        missing_members: The members of an ensemble that the outputs are made without.
        latency_ms: From `submit` until the answer was decoded in this process.
        ledger_ms: Where that time went, by stage (see `latency_breakdown`), if the request's parameters had `explain`;
            "return" is the answer's way back. Empty otherwise.
    """

    __slots__ = (
        "_outputs",
        "id",
        "latency_ms",
        "ledger_ms",
        "missing_members",
        "missing_rows",
        "model_name",
        "model_version",
        "parameters",
    )

    def __init__(self, response: InferResponse, latency_ms: float) -> None:
        self._outputs = {output.name: output.to_array() for output in response.outputs}
        self.id = response.id
        self.model_name = response.model_name
        self.model_version = response.model_version
        self.parameters: Mapping[str, Parameter] = MappingProxyType(dict(response.parameters))
        self.missing_rows = read_row_ranges(str(response.parameters.get(MISSING_ROWS, "")))
        self.missing_members = [name for name in str(response.parameters.get(MISSING_MEMBERS, "")).split(",") if name]
        self.latency_ms = latency_ms
        self.ledger_ms = _read_ledger(response.parameters, latency_ms)

    def __getitem__(self, name: str) -> Array:
        try:
            return self._outputs[name]
        except KeyError:
            raise KeyError(f"no output {name!r}; the answer has {', '.join(self._outputs) or 'none'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._outputs.items())
        return f"Result({self.model_name}/{self.model_version}: {outputs}; {self.latency_ms:.1f} ms)"


def _read_ledger(parameters: Mapping[str, Parameter], latency_ms: float) -> dict[str, float]:
    spent_us = {stage: parameters.get(f"{stage}{SUFFIX}") for stage in STAGES}
    ledger_ms = {stage: us / 1000 for stage, us in spent_us.items() if isinstance(us, int)}
    # Kafka's timestamps are whole milliseconds, and the clocks of other machines are not ours.
    return ledger_ms | {"return": max(0.0, latency_ms - sum(ledger_ms.values()))} if ledger_ms else {}


def read_row_ranges(text: str) -> list[tuple[int, int]]:
    """The ranges in `"first-last,…"`; none for an empty text.

    Raises:
        MalformedRequest: It is no list of row ranges.
    """
    try:
        pairs = [part.split("-") for part in text.split(",") if part]
        return [(int(first), int(last)) for first, last in pairs]
    except ValueError:
        raise MalformedRequest(f"the answer's {MISSING_ROWS} {text!r} is not 'first-last,…'") from None
