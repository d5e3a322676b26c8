"""PyFlink types of the records that operators emit."""

from pyflink.common import Types

BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
#: Key and value of a Kafka record.
KEYED_BYTES = Types.ROW([BYTES, BYTES])
#: Name of a window, and a record for it.
PARTS = Types.ROW([Types.STRING(), BYTES])
