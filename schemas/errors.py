"""Every way in which a request can fail, as one tree. A class is a wire code; an instance becomes an answer.

    AnabranchError
    ├── RequestError                     the sender can mend it
    │   ├── UnreadableRequest            unreadable            not a message at all: dead letter only
    │   ├── MalformedRequest             malformed_request     readable, but breaks the protocol
    │   ├── RequestTooLarge              request_too_large
    │   ├── UnknownModel                 unknown_model
    │   ├── UnknownVersion               unknown_version
    │   ├── UnknownInput                 unknown_input         a name that the model does not have
    │   ├── MissingInput                 missing_input
    │   ├── UnknownOutput                unknown_output
    │   ├── WrongDatatype                wrong_datatype
    │   ├── WrongShape                   wrong_shape           rank or a fixed axis disagrees
    │   ├── WrongSize                    wrong_size            data and shape disagree
    │   ├── EmptyBatch                   empty_batch           zero rows
    │   ├── NonFiniteInput               non_finite_input      NaN or infinity where the model forbids it
    │   └── InvalidParameter             invalid_parameter
    └── ServingError                     the sender did nothing wrong
        ├── InferenceFailed              inference_failed
        ├── DeadlineExceeded             deadline_exceeded
        ├── Overloaded                   overloaded            more urgent requests fill the task; try again later
        ├── IncompleteAnswer             incomplete_answer     some rows never came back
        ├── ResponseTooLarge             response_too_large
        ├── ExchangeFailed               exchange_failed       a task could not hand a part to another; try again
        └── InternalError                internal_error

Nothing here logs or raises on import; the codes are part of the contract with users and never change meaning.
"""


class AnabranchError(Exception):
    """Base of all errors of Anabranch; `anabranch.errors` draws the whole tree.

    Attributes:
        code: The stable name of the failure; of a `RequestError` or `ServingError`, its code on the wire.
        message: One line that says what is wrong and, where it helps, what to do.
    """

    code: str = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(AnabranchError):
    """The request is at fault: sending it again unchanged fails again."""

    code = "request_error"


class UnreadableRequest(RequestError):
    """The record is no message of the protocol; nobody can be answered."""

    code = "unreadable"


class MalformedRequest(RequestError):
    """The message can be read, but breaks a rule of the protocol."""

    code = "malformed_request"


class RequestTooLarge(RequestError):
    """The record is over the configured message size."""

    code = "request_too_large"


class UnknownModel(RequestError):
    """No model of that name is served."""

    code = "unknown_model"


class UnknownVersion(RequestError):
    """The model is served, but not in that version."""

    code = "unknown_version"


class UnknownInput(RequestError):
    """An input that the model does not have, or the same input twice."""

    code = "unknown_input"


class MissingInput(RequestError):
    """An input that the model needs is not there."""

    code = "missing_input"


class UnknownOutput(RequestError):
    """A requested output that the model does not have, or the same output twice."""

    code = "unknown_output"


class WrongDatatype(RequestError):
    """An input's datatype is unknown, or not the model's."""

    code = "wrong_datatype"


class WrongShape(RequestError):
    """An input's rank or one of its fixed axes is not the model's, or the inputs disagree on their rows."""

    code = "wrong_shape"


class WrongSize(RequestError):
    """An input's data is shorter or longer than its shape says."""

    code = "wrong_size"


class EmptyBatch(RequestError):
    """A request with zero rows."""

    code = "empty_batch"


class NonFiniteInput(RequestError):
    """NaN or infinity in the input of a model that is configured to refuse them."""

    code = "non_finite_input"


class InvalidParameter(RequestError):
    """A scheduling parameter of the wrong type or out of range."""

    code = "invalid_parameter"


class ServingError(AnabranchError):
    """The request was fine; serving it failed."""

    code = "serving_error"


class InferenceFailed(ServingError):
    """The model failed on these rows."""

    code = "inference_failed"


class DeadlineExceeded(ServingError):
    """The request's deadline passed before its answer was complete."""

    code = "deadline_exceeded"


class Overloaded(ServingError):
    """More came than can be served; the request was among the least urgent."""

    code = "overloaded"


class IncompleteAnswer(ServingError):
    """Some rows of the request never came back."""

    code = "incomplete_answer"


class ResponseTooLarge(ServingError):
    """The answer is over the configured message size."""

    code = "response_too_large"


class ExchangeFailed(ServingError):
    """A task could not hand a part of the request on to another."""

    code = "exchange_failed"


class InternalError(ServingError):
    """A defect of ours, caught so that neither the job nor a neighbour dies of it."""

    code = "internal_error"


def _tree(root: type[AnabranchError]) -> list[type[AnabranchError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def error_with_code(code: str, message: str) -> AnabranchError:
    """The exception that stands for a wire code; codes that this version does not know become `AnabranchError`."""
    on_the_wire = {cls.code: cls for cls in (*_tree(RequestError), *_tree(ServingError))}
    error = on_the_wire.get(code, AnabranchError)(message)
    if error.code != code:
        error.code = code  # keeps what the wire carried
    return error
