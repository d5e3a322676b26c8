"""Models as functions of Flink's SQL and Table API: `SELECT fraud(amount, age) FROM payments`.

columns of an Arrow batch --> tensors of its rows --> [ one task in this process ] --> columns of the outputs
"""

import logging
from collections.abc import Sequence
from decimal import Decimal
from math import prod
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
from pyflink.table import DataTypes, TableEnvironment
from pyflink.table.types import DataType
from pyflink.table.udf import FunctionContext, ScalarFunction

from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends.base import Backend
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.core.flows.flow_spec import FieldSpec, InputSpec
from anabranch.operators.core.flows.input_mapping import InputMapping, Mapped
from anabranch.operators.core.outputs import Answer
from anabranch.operators.runtime.flink_compat import CheckedFunction
from anabranch.schemas.errors import AnabranchError
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.model import Catalog, ModelSpec, TensorSpec
from anabranch.schemas.records import Source
from anabranch.schemas.tensors import Array, Tensor
from anabranch.schemas.wire import codec
from anabranch.trial.local_run import LocalRun

_LOGGER = logging.getLogger("anabranch.functions")

_TYPES = {
    "BOOL": DataTypes.BOOLEAN(),
    "INT8": DataTypes.TINYINT(),
    "UINT8": DataTypes.SMALLINT(),
    "INT16": DataTypes.SMALLINT(),
    "UINT16": DataTypes.INT(),
    "INT32": DataTypes.INT(),
    "UINT32": DataTypes.BIGINT(),
    "INT64": DataTypes.BIGINT(),
    "UINT64": DataTypes.DECIMAL(20, 0),
    "FP16": DataTypes.FLOAT(),
    "FP32": DataTypes.FLOAT(),
    "FP64": DataTypes.DOUBLE(),
    "BYTES": DataTypes.STRING(),
}
_EXACT_BELOW = 2.0**53
#: Time between two lines of a function's log.
_SILENCE_S = 10.0


def register(
    t_env: TableEnvironment, repository: str | Path, *, config: Config | None = None, backend: Backend | None = None
) -> list[str]:
    """Register the newest version of each model as a function of its name; return the names.

    A function takes an argument for each input of the model, or for each element of a row of all inputs, in their
    order. Its result is the output, or a ROW of several ones. A row with NULL or NaN, and one that the model refuses,
    has the result NULL. A model with an output of any rank has no function. A query with other arguments is refused at
    its planning.

    Args:
        repository: Folder of models, on every TaskManager.
        config: Its `[defaults]` apply.
        backend: ONNX Runtime by default.

    Raises:
        ConfigError: The repository is unusable.
    """
    config = config or Config()
    catalog = read_repository(Path(repository), config.defaults)
    runtime = backend or OnnxBackend(config.job.max_run_memory_mb)
    names = []
    for name in catalog.models:
        model = catalog.find(name, "")
        if any(output.any_rank for output in model.outputs):
            _LOGGER.warning("%s: no function, because an output has no fixed rank", name)
            continue
        evaluated = ModelFunction(config, catalog, model, runtime)
        function = CheckedFunction(evaluated, result_type(model), name, forms_of(model), expected_of(model))
        t_env.create_temporary_system_function(name, function)
        names.append(name)
    return names


def forms_of(model: ModelSpec) -> list[str]:
    """Return the forms of a call, by inputs and by elements: see `CheckedFunction.java`."""
    shapes = [_row_shape(spec, model) for spec in model.inputs]
    names = [_kind(spec) for spec in model.inputs]
    sizes = [prod(axis or 0 for axis in shape) for shape in shapes]
    by_input = [_argument(kind, shape) for kind, shape in zip(names, shapes, strict=True)]
    forms = [",".join(by_input)]
    if all(sizes):
        forms.append(",".join(kind for kind, size in zip(names, sizes, strict=True) for _ in range(size)))
    return list(dict.fromkeys(forms))


def expected_of(model: ModelSpec) -> str:
    """Describe the arguments of a call."""
    shapes = [_row_shape(spec, model) for spec in model.inputs]
    sizes = [prod(axis or 0 for axis in shape) for shape in shapes]
    inputs = []
    for spec, shape, size in zip(model.inputs, shapes, sizes, strict=True):
        depth = 0 if size == 1 else len(shape)
        inputs.append(f"{spec.name} {'ARRAY<' * depth}{_kind(spec)}{'>' * depth}")
    has_elements = all(sizes) and sum(sizes) != len(sizes)
    elements = f", or {sum(sizes)} arguments for the elements of a row" if has_elements else ""
    return f"({', '.join(inputs)}){elements}"


def _kind(spec: TensorSpec) -> str:
    return {"BOOL": "BOOLEAN", "BYTES": "TEXT"}.get(spec.datatype, "NUMBER")


def _argument(kind: str, shape: tuple[int | None, ...]) -> str:
    if prod(axis or 0 for axis in shape) == 1:
        return kind
    # One element may fill free axes.
    is_one = prod(axis or 1 for axis in shape) == 1
    return "[" * len(shape) + kind + (f"|{kind}" if is_one else "")


def result_type(model: ModelSpec) -> DataType:
    """Return the type of a function's result."""
    types = []
    for output in model.outputs:
        output_type = _TYPES[output.datatype]
        for _ in _row_shape(output, model):
            output_type = DataTypes.ARRAY(output_type)
        types.append(DataTypes.FIELD(output.name, output_type))
    return types[0].data_type if len(types) == 1 else DataTypes.ROW(types)


class ModelFunction(ScalarFunction):
    """One model as a vectorised function."""

    def __init__(self, config: Config, catalog: Catalog, model: ModelSpec, backend: Backend) -> None:
        self.model = model
        self._served = config, catalog, backend
        self._max_bytes = config.kafka.max_message_bytes

    def open(self, function_context: FunctionContext) -> None:  # noqa: ARG002 - PyFlink's interface
        """Load the model; raise ModelLoadFailed."""
        config, catalog, backend = self._served
        self._run = LocalRun(config, catalog, (), backend)
        self._run.load(self.model)
        self._offset = 0
        self._unlogged = 0
        self._silent_until_s = 0.0

    def eval(self, *arguments: Any) -> pd.Series | pd.DataFrame:
        """Return the outputs for each row.

        Args:
            arguments: Columns, or constants.

        Raises:
            ConfigError: Their number does not fit, or none is a column.
        """
        model = self.model
        rows = next((len(each) for each in arguments if isinstance(each, pd.Series)), None)
        if rows is None:
            raise ConfigError(f"function {model.name!r} has no column among its arguments: correct the query")
        columns = [
            each if isinstance(each, pd.Series) else pd.Series([each] * rows, dtype=object) for each in arguments
        ]
        found = {output.name: np.full(rows, None, object) for output in model.outputs}
        failures: list[str] = []
        groups: dict[tuple[tuple[int, ...], ...], dict[int, list[Mapped]]] = {}
        for index, mapped in enumerate(CallMapping(model, len(columns)).rows(columns)):
            if isinstance(mapped, AnabranchError):
                failures.append(f"{mapped.code}: {mapped.message}")
            elif mapped is not None:
                groups.setdefault(tuple([shape for _, shape in mapped]), {})[index] = mapped
        for group in groups.values():
            row_bytes = sum(len(raw) for raw, _ in next(iter(group.values())))
            # Rows are of strangers.
            is_batched = model.batchable and not model.is_indivisible
            step = max(1, self._max_bytes // (2 * row_bytes + 1)) if is_batched else 1
            indices = list(group)
            for start in range(0, len(indices), step):
                self._answer(indices[start : start + step], group, found, failures)
        if failures:
            self._log(failures)
        series = {name: pd.Series(values) for name, values in found.items()}
        return next(iter(series.values())) if len(series) == 1 else pd.DataFrame(series)

    def _log(self, failures: Sequence[str]) -> None:
        self._unlogged += len(failures)
        now_s = monotonic()
        if now_s >= self._silent_until_s:
            _LOGGER.warning("%s: %d rows became NULL; the last: %s", self.model.name, self._unlogged, failures[-1])
            self._unlogged, self._silent_until_s = 0, now_s + _SILENCE_S

    def _answer(
        self, indices: list[int], group: dict[int, list[Mapped]], found: dict[str, Array], failures: list[str]
    ) -> None:
        """Fill in the outputs of rows of equal shapes; those at fault are found by halving."""
        try:
            response = self._ask([group[index] for index in indices])
            if isinstance(response, InferResponse):
                for output in response.outputs:
                    array = output.to_array() if self.model.batchable else output.to_array()[None]
                    for index, value in zip(indices, _values(array, output.datatype), strict=True):
                        found[output.name][index] = value
                return
            failure = f"{response.code}: {response.message}"
        except UnicodeDecodeError:
            failure = "wrong_datatype: an output has a text that is not UTF-8"
        if len(indices) > 1:
            half = len(indices) // 2
            self._answer(indices[:half], group, found, failures)
            self._answer(indices[half:], group, found, failures)
            return
        for values in found.values():
            values[indices[0]] = None
        failures.append(failure)

    def _ask(self, rows: list[list[Mapped]]) -> InferResponse | ErrorResponse:
        model = self.model
        inputs = []
        for spec, column in zip(model.inputs, zip(*rows, strict=True), strict=True):
            shape = column[0][1]
            axes = (len(rows), *shape) if model.batchable else shape
            inputs.append(Tensor(spec.name, spec.datatype, axes, b"".join([raw for raw, _ in column])))
        request = InferRequest(model.name, tuple(inputs), model_version=model.version)
        self._offset += 1
        record = codec.encode_request(request), Source(0, self._offset, -1)
        [answer] = [output for output in self._run.serve([record]) if isinstance(output, Answer)]
        return codec.decode_response(answer.value)


class CallMapping:
    """Makes rows of a model from the arguments of a call, as flows do from fields.

    Raises:
        ConfigError: The number of arguments does not fit.
    """

    def __init__(self, model: ModelSpec, arguments: int) -> None:
        shapes = [_row_shape(spec, model) for spec in model.inputs]
        sizes = [prod(axis or 0 for axis in shape) for shape in shapes]
        if arguments == len(shapes):
            counts = [1] * arguments
        elif all(sizes) and arguments == sum(sizes):
            counts = sizes
        else:
            raise ConfigError(
                f"function {model.name!r} has {arguments} arguments, expected {expected_of(model)}: correct the query"
            )
        self._spans = []
        #: Arguments whose integers pandas may have rounded.
        self._exact: set[int] = set()
        start = 0
        for spec, shape, size, count in zip(model.inputs, shapes, sizes, counts, strict=True):
            fields = tuple(FieldSpec(("argument", start + index)) for index in range(count))
            mapping = InputMapping(InputSpec(spec.name, spec.datatype, shape, fields, is_whole=count != size))
            self._spans.append((mapping.map, start, start + count))
            if spec.datatype in ("INT64", "UINT64"):
                self._exact.update(range(start, start + count))
            start += count

    def rows(self, columns: Sequence[pd.Series]) -> list[list[Mapped] | AnabranchError | None]:
        """Return the tensors of each row; None for one with NULL."""
        rows: list[list[Mapped] | AnabranchError | None] = []
        for values in zip(*[self._values(index, column) for index, column in enumerate(columns)], strict=True):
            if any(value is None or value != value for value in values):  # noqa: PLR0124 - NaN
                rows.append(None)
                continue
            try:
                rows.append([convert(values[start:stop]) for convert, start, stop in self._spans])
            except AnabranchError as error:
                rows.append(error)
        return rows

    def _values(self, index: int, column: pd.Series) -> list[Any]:
        values: list[Any] = column.tolist()
        if column.dtype == object:
            return [_plain(value) for value in values]
        if column.dtype.kind == "f" and index in self._exact:
            # For a NULL, pandas makes floats of all integers; a text is refused.
            return [str(value) if abs(value) >= _EXACT_BELOW else value for value in values]
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


def _row_shape(spec: TensorSpec, model: ModelSpec) -> tuple[int | None, ...]:
    return spec.shape[1:] if model.batchable else spec.shape


def _values(array: Array, datatype: str) -> list[Any]:
    values = array.tolist()
    if datatype == "BYTES":
        return [_text(value) for value in values]
    return [_exact(value) for value in values] if datatype == "UINT64" else values


def _text(value: Any) -> Any:
    return [_text(each) for each in value] if isinstance(value, list) else value.decode()


def _exact(value: Any) -> Any:
    return [_exact(each) for each in value] if isinstance(value, list) else Decimal(value)
