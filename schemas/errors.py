"""Wire errors with their codes, which never change; `docs/reference/errors.md` lists them."""


class AnabranchError(Exception):
    """Base of all errors.

    Attributes:
        code: Stable name, also on the wire.
        message: One line for people.
    """

    code: str = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(AnabranchError):
    """The request is invalid."""

    code = "request_error"


class UnreadableRequest(RequestError):
    """The record is not a message; only a dead letter results."""

    code = "unreadable"


class MalformedRequest(RequestError):
    """The message breaks a rule of the protocol."""

    code = "malformed_request"


class RequestTooLarge(RequestError):
    """The record has too many bytes, rows or elements."""

    code = "request_too_large"


class UnknownModel(RequestError):
    """No model of that name is served."""

    code = "unknown_model"


class UnknownVersion(RequestError):
    """The model is not served in that version."""

    code = "unknown_version"


class UnknownInput(RequestError):
    """An input is unknown or repeated."""

    code = "unknown_input"


class MissingInput(RequestError):
    """An input of the model is missing."""

    code = "missing_input"


class UnknownOutput(RequestError):
    """A requested output is unknown or repeated."""

    code = "unknown_output"


class WrongDatatype(RequestError):
    """An input's datatype is not the model's."""

    code = "wrong_datatype"


class WrongShape(RequestError):
    """An input's rank, axis or number of rows is wrong."""

    code = "wrong_shape"


class WrongSize(RequestError):
    """An input's data does not fill its shape."""

    code = "wrong_size"


class EmptyBatch(RequestError):
    """The request has zero rows."""

    code = "empty_batch"


class NonFiniteInput(RequestError):
    """An input has NaN or infinity."""

    code = "non_finite_input"


class UnreadableInput(RequestError):
    """Unreadable text or picture."""

    code = "unreadable_input"


class InvalidParameter(RequestError):
    """A parameter has the wrong type or range."""

    code = "invalid_parameter"


class ReplyRefused(RequestError):
    """The request's reply address is unreadable or not allowed."""

    code = "reply_refused"


class MissingField(RequestError):
    """An event lacks a field."""

    code = "missing_field"


class InvalidField(RequestError):
    """An event has an invalid field."""

    code = "invalid_field"


class MappingFailed(RequestError):
    """A flow's function failed."""

    code = "mapping_failed"


class UnknownFlow(RequestError):
    """A topic has no flow."""

    code = "unknown_flow"


class UnknownSchema(RequestError):
    """The event's schema is unknown or unusable."""

    code = "unknown_schema"


class ServingError(AnabranchError):
    """Serving a valid request failed."""

    code = "serving_error"


class ModelUnavailable(ServingError):
    """The job serves without this model."""

    code = "model_unavailable"


class InferenceFailed(ServingError):
    """The model failed on these rows."""

    code = "inference_failed"


class RunTooLong(ServingError):
    """The run exceeded `max_run_ms`."""

    code = "run_too_long"


class OutOfMemory(ServingError):
    """The run exceeded `job.max_run_memory_mb`."""

    code = "out_of_memory"


class RequestCrashesModel(ServingError):
    """These rows crashed the process."""

    code = "request_crashes_model"


class DeadlineExceeded(ServingError):
    """The deadline passed before the answer."""

    code = "deadline_exceeded"


class Overloaded(ServingError):
    """The task is full of more urgent requests."""

    code = "overloaded"


class IncompleteAnswer(ServingError):
    """Some rows of the request got lost."""

    code = "incomplete_answer"


class ResponseTooLarge(ServingError):
    """The answer is over the message size."""

    code = "response_too_large"


class ExchangeFailed(ServingError):
    """A task could not read a record of another task."""

    code = "exchange_failed"


class SchemaRefused(ServingError):
    """The outgoing schema is refused."""

    code = "schema_refused"


class RegistryUnavailable(ServingError):
    """The schema registry does not answer."""

    code = "registry_unavailable"


class InternalError(ServingError):
    """A defect in Anabranch."""

    code = "internal_error"


def _tree(root: type[AnabranchError]) -> list[type[AnabranchError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def error_with_code(code: str, message: str) -> AnabranchError:
    """Make the error of a code; `AnabranchError` if unknown."""
    on_the_wire = {cls.code: cls for cls in (*_tree(RequestError), *_tree(ServingError))}
    error = on_the_wire.get(code, AnabranchError)(message)
    if error.code != code:
        error.code = code
    return error
