"""Log of a task's defects.

`logging` reaches the TaskManager's log through pemja (thread mode) or Beam (process mode).
"""

import logging
import traceback
from time import monotonic

from anabranch.operators.core.defects import Defect, Defects
from anabranch.operators.runtime.task_context import TaskContext

#: Between logged defects of one phase and exception type.
INTERVAL_S = 10.0

_LOGGER = logging.getLogger("anabranch.defects")


class DefectLog:
    """Logs defects with traceback, at a limited rate."""

    def __init__(self, defects: Defects, operator: str, task: TaskContext) -> None:
        self._defects = defects
        self._place = f"{operator}, task {task.index}, attempt {task.attempt}"
        self._logged_at_s: dict[tuple[str, type[BaseException]], float] = {}
        self._suppressed: dict[tuple[str, type[BaseException]], int] = {}

    def report(self) -> bool:
        """Log new defects; return False without any."""
        defects = self._defects.drain()
        for defect in defects:
            self._log(defect)
        return bool(defects)

    def _log(self, defect: Defect) -> None:
        kind = (defect.phase, type(defect.error))
        now_s = monotonic()
        logged_at_s = self._logged_at_s.get(kind)
        if logged_at_s is not None and now_s - logged_at_s < INTERVAL_S:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return
        self._logged_at_s[kind] = now_s
        suppressed = self._suppressed.pop(kind, 0)
        # `exc_info` would print the traceback twice.
        _LOGGER.error(
            "defect in phase %s (%s)%s%s\n%s",
            defect.phase,
            self._place,
            f": {defect.detail}" if defect.detail else "",
            f"; {suppressed} more of this kind since the last one logged" if suppressed else "",
            "".join(traceback.format_exception(defect.error)).rstrip(),
        )
