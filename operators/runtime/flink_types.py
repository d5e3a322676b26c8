"""Types of emitted records."""

from pyflink.common import Types

BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
#: Key, value and carried fields for Kafka.
KAFKA_ROW = Types.ROW([BYTES, BYTES, BYTES])
#: Window and record.
PARTS = Types.ROW([Types.STRING(), BYTES])
