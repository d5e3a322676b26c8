"""Settings that several scenarios share; a scenario's own settings extend them."""

from typing import Any, Self

import msgspec

from bench.harness.messages import Mode

_LEAST_BURST = 8


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations and numbers of a full run.

    Attributes:
        repeats: Rounds; each system has one turn in a round.
        modes: PyFlink execution modes.
        throughput_requests: Measured requests of a run at full speed.
        throughput_warm_up: Requests before these.
        workloads: Workloads of efficiency, sustainable and ledger; empty for all.
        burst_share: Share of a scenario's requests in a burst.
        load_seconds: Duration of each load at a fixed rate.
    """

    repeats: int = 5
    modes: tuple[Mode, ...] = ("thread",)
    throughput_requests: int = 200_000
    throughput_warm_up: int = 500_000
    workloads: tuple[str, ...] = ()
    burst_share: float = 1.0
    load_seconds: float = 5.0

    @classmethod
    def quick(cls, **own: Any) -> Self:
        """Return settings that only show that a scenario works; the figures mean nothing.

        Args:
            own: Values of the scenario's own settings.
        """
        return cls(
            repeats=1,
            throughput_requests=6_000,
            throughput_warm_up=3_000,
            workloads=("ffnn 1", "recognizer"),
            burst_share=0.1,
            load_seconds=1.0,
            **own,
        )

    def wants(self, workload: str) -> bool:
        """Return true if a workload is measured."""
        return not self.workloads or workload in self.workloads

    def values(self) -> dict[str, Any]:
        """All values by name, as JSON holds them."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return found

    def changed(self, values: dict[str, Any]) -> Self:
        """Return the same with other values; text is converted.

        Raises:
            msgspec.ValidationError: A value has the wrong type.
        """
        return msgspec.convert(self.values() | values, type(self), strict=False)

    def burst_of(self, requests: int) -> int:
        """Return the share of a burst's requests, at least eight."""
        return max(_LEAST_BURST, round(requests * self.burst_share))
