"""The stage manifest round-trips."""

import msgspec
import pytest

from anabranch.schemas.stage_manifest import StageEntry, StageManifest, decode_manifest, encode_manifest

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


def test_manifest_round_trip_is_equal() -> None:
    assert decode_manifest(encode_manifest(PLAN)) == PLAN


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", encode_manifest(PLAN).replace(b'"ms": 4.5', b'"ms": "fast"')])
def test_manifest_with_wrong_json_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_manifest(text)
