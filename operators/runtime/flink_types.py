"""Types of emitted records."""

from pyflink.common import Types

BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
#: Kafka's key and value.
KEYED_BYTES = Types.ROW([BYTES, BYTES])
#: Window and record.
PARTS = Types.ROW([Types.STRING(), BYTES])
