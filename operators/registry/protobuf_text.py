"""Descriptors of Protobuf files that a registry has as text."""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError

from anabranch.schemas.errors import UnknownSchema

#: No other file has this name.
_FILE = "the_events_own.proto"


def is_descriptor(text: str) -> bool:
    """Tell a descriptor in base64 from the text of a file."""
    try:
        return bool(FileDescriptorProto.FromString(base64.b64decode(text, validate=True)).ListFields())
    except (binascii.Error, DecodeError, ValueError):
        return False


def compiled(text: str, title: str, others: Mapping[str, str]) -> str:
    """Return the descriptor of a text.

    Args:
        title: Of the schema, for messages.
        others: Descriptors by the names that the text imports them by.

    Raises:
        UnknownSchema: protoc is missing, or refuses the text.
    """
    try:
        from grpc_tools import protoc  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise UnknownSchema(
            f"{title} is text, which this machine cannot compile: run pip install 'anabranch[protobuf]' on each "
            "machine of the cluster"
        ) from None
    files = [FileDescriptorProto.FromString(base64.b64decode(found)) for found in others.values()]
    for name, file in zip(others, files, strict=True):
        file.name = name
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / _FILE).write_text(text, encoding="utf-8")
        (folder / "others").write_bytes(FileDescriptorSet(file=files).SerializeToString())
        # Google's own files are beside protoc.
        folders = [f"--proto_path={each}" for each in (folder, Path(protoc.__file__).parent / "_proto")]
        places = [f"--descriptor_set_in={folder / 'others'}", f"--descriptor_set_out={folder / 'made'}"]
        if protoc.main(["protoc", *folders, *places, _FILE]):
            raise UnknownSchema(
                f"{title} is not a file that protoc compiles: see its message in the task's log, and correct the file"
            )
        made = (folder / "made").read_bytes()
    [compiled_file] = FileDescriptorSet.FromString(made).file
    return base64.standard_b64encode(compiled_file.SerializeToString(deterministic=True)).decode()
