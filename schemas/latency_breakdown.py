"""Where the time of one request went: what an answer says of it, if it was asked to `explain`.

    sent -broker- read -admit- admitted -queue- taken -batch- started -session- ended -merge- merged -encode- written

Each stage ends where the next begins, so they sum to the time from the Kafka record's timestamp to the written answer.
Of a request that was split, the stages between are those of the shard that ended last: all others waited for it.
"""

import msgspec

#: In the order of time; an answer has the parameter `STAGE_us` for each, in microseconds.
STAGES = ("broker", "admit", "queue", "batch", "session", "merge", "encode")
SUFFIX = "_us"


class LatencyBreakdown(msgspec.Struct, gc=False):
    """When a request reached what; Unix time in milliseconds.

    Attributes:
        sent_ms: The Kafka record's timestamp.
        read_ms: A task took its frame.
        admitted_ms: It was found valid.
        taken_ms: A task took its batch, or its shard.
        started_ms: The session was called.
        ended_ms: The session had run.
        merged_ms: All its rows were there, and in order.
    """

    sent_ms: float
    read_ms: float
    admitted_ms: float = 0.0
    taken_ms: float = 0.0
    started_ms: float = 0.0
    ended_ms: float = 0.0
    merged_ms: float = 0.0

    def to_parameters(self, written_ms: float) -> dict[str, int]:
        """What the answer says; clocks of several machines may disagree, but no stage takes less than nothing."""
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
            f"{stage}{SUFFIX}": max(0, round((end_ms - start_ms) * 1000))
            for stage, start_ms, end_ms in zip(STAGES, stamps, stamps[1:], strict=False)
        }
