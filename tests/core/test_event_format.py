"""The format of a flow is its configured one."""

from msgspec.structs import replace

from anabranch.operators.core.flows.formats.avro_format import AvroFormat
from anabranch.operators.core.flows.formats.event_format import format_of
from anabranch.operators.core.flows.formats.json_format import JsonFormat
from tests.core.test_avro_format import model, spec


def test_format_of_a_flow_is_the_configured_one() -> None:
    assert isinstance(format_of(replace(spec("amount"), format="json"), model()), JsonFormat)
    assert isinstance(format_of(spec("amount"), model()), AvroFormat)
