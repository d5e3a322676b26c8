"""Wire errors: stable codes."""

import re

import pytest

from anabranch.schemas.errors import AnabranchError, RequestError, ServingError, error_with_code


def leaves(*roots: type[AnabranchError]) -> list[type[AnabranchError]]:
    found = []
    for root in roots or (RequestError, ServingError):
        children = root.__subclasses__()
        found += leaves(*children) if children else [root]
    return found


def test_errors_every_leaf_has_a_code_of_its_own() -> None:
    codes = [leaf.code for leaf in leaves()]
    assert len(codes) == len(set(codes)) >= 19
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_errors_released_codes_are_kept() -> None:
    # Never remove a code: users depend on it.
    assert {leaf.code for leaf in leaves()} >= {
        *("unreadable", "malformed_request", "request_too_large", "unknown_model", "unknown_version"),
        *("unknown_input", "missing_input", "unknown_output", "wrong_datatype", "wrong_shape", "wrong_size"),
        *("empty_batch", "non_finite_input", "invalid_parameter", "inference_failed", "deadline_exceeded"),
        *("incomplete_answer", "response_too_large", "internal_error", "exchange_failed"),
    }


@pytest.mark.parametrize("leaf", leaves())
def test_error_with_code_known_code_gives_its_class(leaf: type[AnabranchError]) -> None:
    error = error_with_code(leaf.code, "why")
    assert (type(error), error.code, error.message, str(error)) == (leaf, leaf.code, "why", "why")


def test_error_with_code_unknown_code_is_kept() -> None:
    error = error_with_code("made_up_later", "why")
    assert (type(error), error.code) == (AnabranchError, "made_up_later")
    assert AnabranchError.code == "error"
