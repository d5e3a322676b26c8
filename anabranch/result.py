"""The answer to a request: a model's outputs as numpy arrays, and the facts that the answer carries."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from anabranch.schemas.errors import MalformedRequest
from anabranch.schemas.latency_breakdown import PHASES, SUFFIX
from anabranch.schemas.messages import InferResponse, Parameter
from anabranch.schemas.tensors import Array

MISSING_ROWS = "missing_rows"
MISSING_MEMBERS = "missing_members"


class Result(Mapping[str, Array]):
    """The outputs of one request, by name, in the order of the request.

    Arrays are read-only views of the answer's bytes (`.copy()` makes a writable one); BYTES outputs are
    object arrays of `bytes`.

    Attributes:
        model_name, model_version: The model that answered.
        missing_rows: First and last row, both included, of every range that a partial answer lacks; the outputs hold
            the other rows, in order. Empty for a complete answer.
        missing_members: Members of an ensemble that the outputs were merged without.
        latency_ms: From `submit` until the answer was decoded in this process.
        breakdown_ms: Latency by phase (see `latency_breakdown`), if the request's parameters had `explain`; "return" is
            the answer's way back. Empty otherwise.
    """

    __slots__ = (
        "_outputs",
        "breakdown_ms",
        "id",
        "latency_ms",
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
        self.breakdown_ms = _read_breakdown(response.parameters, latency_ms)

    def __getitem__(self, name: str) -> Array:
        try:
            return self._outputs[name]
        except KeyError:
            raise KeyError(f"unknown output {name!r}; available: {', '.join(self._outputs) or 'none'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._outputs.items())
        return f"Result({self.model_name}/{self.model_version}: {outputs}; {self.latency_ms:.1f} ms)"


def _read_breakdown(parameters: Mapping[str, Parameter], latency_ms: float) -> dict[str, float]:
    spent_us = {stage: parameters.get(f"{stage}{SUFFIX}") for stage in PHASES}
    breakdown_ms = {stage: us / 1000 for stage, us in spent_us.items() if isinstance(us, int)}
    # Kafka's timestamps are whole milliseconds, and clocks of other machines differ: never below 0.
    return breakdown_ms | {"return": max(0.0, latency_ms - sum(breakdown_ms.values()))} if breakdown_ms else {}


def read_row_ranges(text: str) -> list[tuple[int, int]]:
    """Return the ranges in `"first-last,…"`, or raise `MalformedRequest`."""
    try:
        pairs = [part.split("-") for part in text.split(",") if part]
        return [(int(first), int(last)) for first, last in pairs]
    except ValueError:
        raise MalformedRequest(f"the answer's {MISSING_ROWS} {text!r} should read 'first-last,…'") from None
