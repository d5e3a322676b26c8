"""Dead letters have all that a replay needs, in plain JSON."""

import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Failure
from anabranch.schemas.wire.dead_letters import DeadLetter, DeadLetterSource, decode_dead_letter, encode_dead_letter
from tests.strategies import texts


@given(texts, texts, texts, st.none() | st.binary(max_size=50))
def test_dead_letter_any_fields_round_trip_as_plain_json(
    topic: str, request_id: str, message: str, original: bytes | None
) -> None:
    failure = Failure("wrong_size", message, "admit", "m", "1")
    letter = encode_dead_letter(topic, Source(3, 4, 5), request_id, failure, original)
    assert decode_dead_letter(letter) == DeadLetter(
        id=request_id,
        code="wrong_size",
        message=message,
        stage="admit",
        model_name="m",
        model_version="1",
        source=DeadLetterSource(topic, 3, 4, 5),
        original=original,
    )
    plain = json.loads(letter)["original"]
    assert plain is None if original is None else base64.b64decode(plain) == original


def test_dead_letter_original_as_view_is_encoded() -> None:
    letter = encode_dead_letter("t", Source(0, 0, 0), "a", Failure("c", "m", "s"), memoryview(b"-value-")[1:-1])
    assert decode_dead_letter(letter).original == b"value"
