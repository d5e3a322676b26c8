"""Schemas that events name."""

from typing import Any, Literal, NamedTuple, Protocol, TypeAlias
from uuid import UUID

import msgspec

from anabranch.schemas.errors import UnknownSchema

Kind: TypeAlias = Literal["AVRO", "PROTOBUF"]
#: Number or GUID of a schema.
SchemaId: TypeAlias = int | str


class Registered(NamedTuple):
    """Names of a schema; not every registry gives GUIDs."""

    number: int
    guid: str = ""


class RegisteredSchema(msgspec.Struct, frozen=True):
    """A schema of a registry.

    Attributes:
        text: JSON of Avro; a Protobuf file's descriptor in base64.
        references: As the registry writes them.
        dependencies: Names and texts of all schemas that it refers to, each after its own dependencies.
    """

    text: str
    references: tuple[Any, ...] = ()
    dependencies: tuple[tuple[str, str], ...] = ()
    kind: Kind = "AVRO"


class SchemaRegistry(Protocol):
    """A registry, which remembers all answers."""

    def schema(self, schema_id: SchemaId, kind: Kind = "AVRO") -> RegisteredSchema:
        """Return a schema, or raise UnknownSchema or RegistryUnavailable."""

    def register(self, subject: str, schema: RegisteredSchema) -> Registered:
        """Return the names of a schema, new ones if need be; raise SchemaRefused or RegistryUnavailable."""


class LocalRegistry:
    """A registry in memory, with numbers from 1, also as GUIDs."""

    def __init__(self, *schemas: str, kind: Kind = "AVRO") -> None:
        self.schemas = [RegisteredSchema(text, kind=kind) for text in schemas]

    def schema(self, schema_id: SchemaId, kind: Kind = "AVRO") -> RegisteredSchema:
        """Return a schema."""
        number = UUID(schema_id).int if isinstance(schema_id, str) else schema_id
        if not 0 < number <= len(self.schemas):
            raise UnknownSchema(f"there is no schema {schema_id}: register it")
        return self.schemas[number - 1]

    def register(self, subject: str, schema: RegisteredSchema) -> Registered:
        """Return the names of a schema."""
        if schema not in self.schemas:
            self.schemas.append(schema)
        number = self.schemas.index(schema) + 1
        return Registered(number, str(UUID(int=number)))
