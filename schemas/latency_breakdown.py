"""Latency breakdown: time by phase, for `explain`.

    sent -broker- read -admit- admitted -queue- taken -batch- started -session- ended -merge- merged -encode- written

A split request has the times of its last shard.
"""

import msgspec

#: Parameters `PHASE_us` of an answer.
PHASES = ("broker", "admit", "queue", "batch", "session", "merge", "encode")
SUFFIX = "_us"


class LatencyBreakdown(msgspec.Struct, gc=False):
    """Unix times of a request at the ends of its phases."""

    sent_ms: float
    read_ms: float
    admitted_ms: float = 0.0
    taken_ms: float = 0.0
    started_ms: float = 0.0
    ended_ms: float = 0.0
    merged_ms: float = 0.0

    def to_parameters(self, written_ms: float) -> dict[str, int]:
        """Make parameters in microseconds, never negative."""
        stamps = [
            self.sent_ms,
            self.read_ms,
            self.admitted_ms,
            self.taken_ms,
            self.started_ms,
            self.ended_ms,
            self.merged_ms,
            written_ms,
        ]
        return {
            f"{phase}{SUFFIX}": max(0, round((end_ms - start_ms) * 1000))
            for phase, start_ms, end_ms in zip(PHASES, stamps, stamps[1:], strict=False)
        }
