"""LocalRegistry: numbers from 1, one for each schema."""

import pytest

from anabranch.operators.core.flows.formats.registered_schemas import LocalRegistry, RegisteredSchema
from anabranch.schemas.errors import UnknownSchema


def test_local_registry_numbers_each_schema_once() -> None:
    registry = LocalRegistry("a")
    assert [registry.register("any", RegisteredSchema(text)).number for text in "bab"] == [2, 1, 2]
    guid = registry.register("any", RegisteredSchema("b")).guid
    assert registry.schema(guid).text == "b"
    assert registry.schema(2).text == "b"
    for number in (0, 3):
        with pytest.raises(UnknownSchema, match=f"no schema {number}"):
            registry.schema(number)
