"""The task of a Flink operator."""

from dataclasses import dataclass
from time import time

from pyflink.datastream import RuntimeContext

from anabranch.operators.runtime.flink_compat import execution_graph_of, java_runtime_context


@dataclass(frozen=True, slots=True)
class TaskContext:
    """One parallel instance of an operator.

    Attributes:
        attempt: Number of earlier starts in the same execution.
        execution: Id of the job's execution, which ends with its JobManager; empty in process mode.
        in_jvm: True in thread mode: records leave before `yield` returns.
    """

    index: int
    parallelism: int
    attempt: int
    in_jvm: bool = True
    execution: str = ""


def now_ms() -> float:
    """Return Unix time in milliseconds."""
    return time() * 1000


def task_context_of(context: RuntimeContext) -> TaskContext:
    """Return the task of a runtime context."""
    java_context = java_runtime_context(context)
    if java_context is None:
        return TaskContext(
            context.get_index_of_this_subtask(),
            context.get_number_of_parallel_subtasks(),
            context.get_attempt_number(),
            in_jvm=False,
        )
    info = java_context.getTaskInfo()
    return TaskContext(
        info.getIndexOfThisSubtask(),
        info.getNumberOfParallelSubtasks(),
        info.getAttemptNumber(),
        execution=execution_graph_of(java_context),
    )
