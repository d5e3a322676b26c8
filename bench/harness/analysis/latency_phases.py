"""Where the time of requests went: what the job says of them, with what lies before and after it.

scheduled -send- sent -broker- read -admit- -queue- -batch- -session- -merge- -encode- written -write- appended
-read- received
"""

import numpy as np

from anabranch.schemas.latency_breakdown import STAGES
from bench.harness.analysis.measures import Floats
from bench.harness.load_run import LoadRun

ALL_STAGES = ("send", *STAGES, "write", "read")

_BROKER = STAGES.index("broker")
#: A broker's stamp has whole milliseconds, rounded down: on the average it cuts off half of one.
_CUT_OFF_MS = 0.5


def stages_ms(offered: LoadRun) -> dict[str, float]:
    """The mean time of each stage, in milliseconds, over all requests whose answers say where theirs went.

    A record's timestamp, where the job starts to count, has whole milliseconds: what that cuts off the time of sending
    is no time that the broker took. Each time between is by another clock or process, so that the first and the last
    two stages are less than nothing where what the job says overlaps or is too much.
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
