package anabranch;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.zip.CRC32;
import java.io.Serializable;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Header;

/**
 * Encodes the reply address, key and headers of a record, which travel with its request.
 *
 * `schemas/wire/carried.py` describes the layout.
 */
final class CarriedFields implements Serializable {
    private static final long serialVersionUID = 1L;

    /** As `MAX_CARRIED_BYTES` in `schemas/limits.py`. */
    static final int MAX_BYTES = 16 * 1024;
    static final int HEAD_BYTES = 10;
    private static final int MAX_TOPIC_BYTES = 249;
    private static final int ANY_PARTITION = -1;
    private static final int UNREADABLE = -2;
    /** The event of a flow. */
    static final int EVENT = -3;
    /** Bits of a partition's number, as in `schemas/wire/carried.py`. */
    static final int PARTITION_BITS = 17;

    private final Set<String> names;
    private final boolean allHeaders;
    private final boolean key;
    private final String requestsTopic;
    private final Map<String, Integer> flows = new HashMap<>();

    /**
     * @param names Headers to carry; `*` for all.
     * @param key Carries the key, too.
     * @param requestsTopic Records of other topics are events, also of a flow that was removed.
     */
    CarriedFields(String[] names, boolean key, String requestsTopic) {
        this.requestsTopic = requestsTopic;
        this.names = new HashSet<>(Arrays.asList(names));
        this.allHeaders = this.names.contains("*");
        this.key = key;
    }

    /** Returns the encoded fields; null if the record has none of them. */
    byte[] of(ConsumerRecord<?, ?> record) {
        if (!requestsTopic.equals(record.topic())) {
            return ofEvent(record);
        }
        Header[] headers = record.headers().toArray();
        byte[] carriedKey = key ? fitting((byte[]) record.key(), MAX_BYTES / 2) : null;
        if (headers.length == 0 && carriedKey == null) {
            return null;
        }
        int partition = ANY_PARTITION;
        byte[] topic = new byte[0];
        int size = HEAD_BYTES + (carriedKey == null ? 0 : carriedKey.length);
        List<Header> carried = new ArrayList<>(headers.length);
        List<byte[]> carriedNames = new ArrayList<>(headers.length);
        for (Header header : headers) {
            String name = header.key();
            byte[] value = header.value();
            switch (name) {
                case "reply-topic":
                case "kafka_replyTopic":
                    topic = value == null ? topic : value;
                    break;
                case "reply-partition":
                    partition = numberOf(value);
                    break;
                case "kafka_replyPartition":
                    partition = value != null && value.length == 4 ? ByteBuffer.wrap(value).getInt() : UNREADABLE;
                    break;
                default:
                    break;
            }
            if (allHeaders || names.contains(name)) {
                byte[] encodedName = name.getBytes(StandardCharsets.UTF_8);
                int more = 6 + encodedName.length + (value == null ? 0 : value.length);
                if (size + more <= MAX_BYTES - MAX_TOPIC_BYTES) {
                    size += more;
                    carried.add(header);
                    carriedNames.add(encodedName);
                }
            }
        }
        if (partition < ANY_PARTITION || topic.length > MAX_TOPIC_BYTES) {
            partition = UNREADABLE;
            topic = new byte[0];
        }
        if (carried.isEmpty() && carriedKey == null && partition == ANY_PARTITION && topic.length == 0) {
            return null;
        }
        ByteBuffer encoded = ByteBuffer.allocate(size + topic.length).order(ByteOrder.LITTLE_ENDIAN);
        encoded.putInt(partition).putShort((short) topic.length).putInt(carriedKey == null ? -1 : carriedKey.length);
        encoded.put(topic);
        if (carriedKey != null) {
            encoded.put(carriedKey);
        }
        for (int index = 0; index < carried.size(); index++) {
            byte[] name = carriedNames.get(index);
            byte[] value = carried.get(index).value();
            encoded.putShort((short) name.length).putInt(value == null ? -1 : value.length).put(name);
            if (value != null) {
                encoded.put(value);
            }
        }
        return encoded.array();
    }

    /** Returns the partition, with the number of the record's flow above it. */
    int partitionOf(ConsumerRecord<?, ?> record) {
        if (requestsTopic.equals(record.topic())) {
            return record.partition();
        }
        return flows.computeIfAbsent(record.topic(), CarriedFields::numberOfFlow) << PARTITION_BITS | record.partition();
    }

    /** As `flow_number` in `schemas/wire/carried.py`. */
    private static int numberOfFlow(String topic) {
        CRC32 checksum = new CRC32();
        checksum.update(topic.getBytes(StandardCharsets.UTF_8));
        return (int) (checksum.getValue() % ((1 << (31 - PARTITION_BITS)) - 1)) + 1;
    }

    /** Returns topic, key and all headers: an event keeps them. */
    private static byte[] ofEvent(ConsumerRecord<?, ?> record) {
        byte[] topic = record.topic().getBytes(StandardCharsets.UTF_8);
        byte[] eventKey = (byte[]) record.key();
        Header[] headers = record.headers().toArray();
        byte[][] names = new byte[headers.length][];
        int size = HEAD_BYTES + topic.length + (eventKey == null ? 0 : eventKey.length);
        for (int index = 0; index < headers.length; index++) {
            names[index] = headers[index].key().getBytes(StandardCharsets.UTF_8);
            byte[] value = headers[index].value();
            size += 6 + names[index].length + (value == null ? 0 : value.length);
        }
        ByteBuffer encoded = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN);
        encoded.putInt(EVENT).putShort((short) topic.length).putInt(eventKey == null ? -1 : eventKey.length);
        encoded.put(topic);
        if (eventKey != null) {
            encoded.put(eventKey);
        }
        for (int index = 0; index < headers.length; index++) {
            byte[] value = headers[index].value();
            encoded.putShort((short) names[index].length).putInt(value == null ? -1 : value.length).put(names[index]);
            if (value != null) {
                encoded.put(value);
            }
        }
        return encoded.array();
    }

    private static byte[] fitting(byte[] value, int maxBytes) {
        return value == null || value.length > maxBytes ? null : value;
    }

    private static int numberOf(byte[] text) {
        if (text == null || text.length == 0 || text.length > 9) {
            return UNREADABLE;
        }
        int number = 0;
        for (byte digit : text) {
            if (digit < '0' || digit > '9') {
                return UNREADABLE;
            }
            number = 10 * number + digit - '0';
        }
        return number;
    }
}
