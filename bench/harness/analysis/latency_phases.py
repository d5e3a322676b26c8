"""Mean time of requests by phase: the job's own phases, and those before and after the job.

scheduled -send- sent -broker- read -admit- -queue- -batch- -session- -merge- -encode- written -write- appended
-read- received
"""

import numpy as np

from anabranch.schemas.latency_breakdown import PHASES
from bench.harness.analysis.measures import Floats
from bench.harness.load_run import LoadRun

ALL_STAGES = ("send", *PHASES, "write", "read")

_BROKER = PHASES.index("broker")
#: Mean of the part that a broker's whole milliseconds cut off.
_CUT_OFF_MS = 0.5


def stages_ms(offered: LoadRun) -> dict[str, float]:
    """Mean milliseconds of each phase, over the requests with a latency breakdown.

    The first and the last two phases are differences between clocks, so they may be negative.
    """
    means = _table(offered).mean(axis=0)
    return {stage: round(float(mean), 4) for stage, mean in zip(ALL_STAGES, means, strict=True)}


def _table(offered: LoadRun) -> Floats:
    """Milliseconds, [requests, stages]."""
    said = offered.firsts >= 0
    said[said] = ~np.isnan(offered.answers.stages_us[offered.firsts[said]]).any(axis=1)
    firsts = offered.firsts[said]
    inside_ms = offered.answers.stages_us[firsts] / 1000
    scheduled_ns, sent_ns = offered.scheduled_ns[said], offered.sent_ns[said]
    stamped_ns = sent_ns - sent_ns % 1_000_000
    written_ns = stamped_ns + inside_ms.sum(axis=1) * 1e6
    inside_ms[:, _BROKER] -= (sent_ns - stamped_ns) / 1e6
    appended_ns = (offered.answers.appended_ms[firsts] + _CUT_OFF_MS) * 1e6
    write_ms, read_ms = (appended_ns - written_ns) / 1e6, (offered.answers.received_ns[firsts] - appended_ns) / 1e6
    return np.column_stack([(sent_ns - scheduled_ns) / 1e6, inside_ms, write_ms, read_ms])
