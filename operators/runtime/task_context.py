"""What a Flink operator needs to know of the task that it runs in."""

from dataclasses import dataclass
from time import time

from pyflink.datastream import RuntimeContext


@dataclass(frozen=True, slots=True)
class TaskContext:
    """One parallel instance of an operator.

    Attributes:
        attempt: How often Flink has started it before.
        in_jvm: Whether it runs in a thread of the JVM, so that what it emits has left when it goes on.
    """

    index: int
    parallelism: int
    attempt: int
    in_jvm: bool = True


def now_ms() -> float:
    """Unix time."""
    return time() * 1000


def task_context_of(context: RuntimeContext) -> TaskContext:
    """The task of a runtime context, in either execution mode."""
    java_context = getattr(context, "_runtime_context", None)
    if java_context is None:
        return TaskContext(
            context.get_index_of_this_subtask(),
            context.get_number_of_parallel_subtasks(),
            context.get_attempt_number(),
            in_jvm=False,
        )
    # Thread mode: PyFlink 2.3 asks the Java context for methods that moved to its TaskInfo.
    info = java_context.getTaskInfo()
    return TaskContext(info.getIndexOfThisSubtask(), info.getNumberOfParallelSubtasks(), info.getAttemptNumber())
