"""The flows of a job, by topic."""

from collections.abc import Callable, Iterable
from typing import Any

from anabranch.operators.core.flows.flow import EventFunction, Flow
from anabranch.operators.core.flows.flow_spec import FlowSpec
from anabranch.operators.core.flows.formats.registered_schemas import SchemaRegistry
from anabranch.schemas.model import FunctionSpec, ModelSpec


def _unloaded(function: FunctionSpec) -> EventFunction:
    raise ValueError(f"{function.path} is not loaded here")


class Flows:
    """Compiles each flow when a task first needs it, after it was pickled.

    Args:
        load: Loads the functions; tasks that only write events do without.
        registry: Schemas of events that have some.
    """

    def __init__(
        self,
        flows: Iterable[tuple[FlowSpec, ModelSpec]] = (),
        load: Callable[[FunctionSpec], EventFunction] = _unloaded,
        registry: SchemaRegistry | None = None,
    ) -> None:
        self._specs = {spec.topic: (spec, model) for spec, model in flows}
        self._load = load
        self._registry = registry
        self._compiled: dict[str, Flow] = {}

    def __bool__(self) -> bool:
        return bool(self._specs)

    def __getstate__(self) -> dict[str, Any]:
        return {"_specs": self._specs, "_load": _unloaded, "_compiled": {}, "_registry": self._registry}

    def with_functions(self, load: Callable[[FunctionSpec], EventFunction]) -> "Flows":
        """Return the same flows with loaded functions.

        Raises:
            ModelLoadFailed: A function cannot be loaded.
        """
        loaded = Flows(self._specs.values(), load, self._registry)
        for topic, (spec, _) in self._specs.items():
            if spec.function is not None:
                loaded.of(topic)
        return loaded

    def of(self, topic: str) -> Flow | None:
        """Return the flow of a topic."""
        flow = self._compiled.get(topic)
        if flow is None and topic in self._specs:
            spec, model = self._specs[topic]
            is_loaded = spec.function is not None and self._load is not _unloaded
            function = self._load(spec.function) if is_loaded and spec.function is not None else None
            flow = self._compiled[topic] = Flow(spec, model, function, self._registry)
        return flow
