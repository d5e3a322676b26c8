"""The manifest of a plan."""

import msgspec
import pytest

from anabranch.schemas.stage_manifest import StageEntry, StageManifest, decode_plan, encode_plan

PLAN = StageManifest(
    model_sha256="0" * 64,
    rows=8,
    bottleneck_ms=4.5,
    stages=(
        StageEntry(
            file="stage-0.onnx",
            sha256="1" * 64,
            inputs=("x",),
            outputs=("a", "b"),
            nodes=3,
            parameter_bytes=400,
            ms=4.5,
            output_bytes=96,
            replicas=2,
        ),
        StageEntry(
            file="stage-1.onnx",
            sha256="2" * 64,
            inputs=("a", "b"),
            outputs=("y",),
            nodes=2,
            parameter_bytes=0,
            ms=2.0,
            output_bytes=8,
        ),
    ),
)


def test_a_manifest_comes_back_as_it_was() -> None:
    assert decode_plan(encode_plan(PLAN)) == PLAN


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", encode_plan(PLAN).replace(b'"ms": 4.5', b'"ms": "fast"')])
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_plan(text)
