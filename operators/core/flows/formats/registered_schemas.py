"""Schemas that events name by number."""

from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from anabranch.schemas.errors import UnknownSchema

Kind: TypeAlias = Literal["AVRO", "PROTOBUF"]


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

    def schema(self, schema_id: int, kind: Kind = "AVRO") -> RegisteredSchema:
        """Return a schema, or raise UnknownSchema or RegistryUnavailable."""

    def register(self, subject: str, schema: RegisteredSchema) -> int:
        """Return the number of a schema, a new one if need be; raise SchemaRefused or RegistryUnavailable."""


class LocalRegistry:
    """A registry in memory, with numbers from 1."""

    def __init__(self, *schemas: str, kind: Kind = "AVRO") -> None:
        self.schemas = [RegisteredSchema(text, kind=kind) for text in schemas]

    def schema(self, schema_id: int, kind: Kind = "AVRO") -> RegisteredSchema:
        """Return a schema."""
        if not 0 < schema_id <= len(self.schemas):
            raise UnknownSchema(f"there is no schema {schema_id}: register it")
        return self.schemas[schema_id - 1]

    def register(self, subject: str, schema: RegisteredSchema) -> int:
        """Return the number of a schema."""
        if schema not in self.schemas:
            self.schemas.append(schema)
        return self.schemas.index(schema) + 1
