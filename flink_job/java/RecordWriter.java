package anabranch;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.regex.Pattern;
import org.apache.flink.api.common.serialization.SerializationSchema;
import org.apache.flink.connector.kafka.lineage.DefaultKafkaDatasetFacet;
import org.apache.flink.connector.kafka.lineage.DefaultKafkaDatasetIdentifier;
import org.apache.flink.connector.kafka.lineage.KafkaDatasetFacet;
import org.apache.flink.connector.kafka.lineage.KafkaDatasetFacetProvider;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.admin.Admin;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.config.ConfigResource;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.errors.AuthorizationException;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.errors.InvalidTopicException;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Headers;
import org.apache.flink.types.Row;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Writes `Row(key, value, carried fields)` to a topic, with the carried headers, or to the reply address.
 *
 * A reply address that does not exist, or takes no record of that size, would fail the job: its records go to the
 * topic instead.
 */
public final class RecordWriter implements KafkaRecordSerializationSchema<Row>, KafkaDatasetFacetProvider {
    private static final long serialVersionUID = 1L;
    private static final Logger LOG = LoggerFactory.getLogger(RecordWriter.class);

    /** Room for key, headers and Kafka's own fields. */
    private static final int FRAMING_BYTES = 64 * 1024;
    private static final int ADMIN_TIMEOUT_MS = 60_000;
    /** An address may be made, extended or removed. */
    private static final long LOOK_AGAIN_NANOS = TimeUnit.SECONDS.toNanos(10);
    private static final int LOOKS = 100;
    private static final int MAX_ADDRESSES = 10_000;
    private static final String SIZE_LIMIT = "max.message.bytes";

    private final String topic;
    private final boolean replies;
    private final String[] replyTopics;
    private final Properties adminProperties;
    private transient Map<String, Address> addresses;
    private transient long refilledNanos;
    private transient int looksLeft;

    /**
     * @param replies Sends records to their reply addresses.
     * @param replyTopics Names of these, or starts of names that end with `*`.
     * @param adminProperties Of the client that looks at reply addresses.
     */
    public RecordWriter(String topic, boolean replies, String[] replyTopics, Properties adminProperties) {
        this.topic = topic;
        this.replies = replies;
        this.replyTopics = replyTopics;
        this.adminProperties = adminProperties;
    }

    @Override
    public void open(SerializationSchema.InitializationContext context, KafkaSinkContext sinkContext) {
        addresses = new HashMap<>();
        refilledNanos = System.nanoTime();
        looksLeft = LOOKS;
        if (replies) {
            // The first request need not wait.
            addresses.put(topic, look(topic));
        }
    }

    @Override
    public ProducerRecord<byte[], byte[]> serialize(Row row, KafkaSinkContext context, Long timestamp) {
        byte[] key = (byte[]) row.getField(0);
        byte[] value = (byte[]) row.getField(1);
        byte[] carried = (byte[]) row.getField(2);
        Long stamped = timestamp == null || timestamp < 0 ? null : timestamp;
        if (carried == null || carried.length == 0) {
            return new ProducerRecord<>(topic, null, stamped, key, value);
        }
        ByteBuffer fields = ByteBuffer.wrap(carried).order(ByteOrder.LITTLE_ENDIAN);
        int partition = fields.getInt();
        byte[] name = new byte[Short.toUnsignedInt(fields.getShort())];
        int keySize = fields.getInt();
        fields.get(name);
        if (partition == CarriedFields.EVENT && replies) {
            byte[] eventKey = keySize < 0 ? null : new byte[keySize];
            if (eventKey != null) {
                fields.get(eventKey);
            }
            // TIMESTAMP/TOPIC; a topic has no slash.
            String address = new String(name, StandardCharsets.UTF_8);
            int slash = address.indexOf('/');
            long eventTime = Long.parseLong(address.substring(0, slash));
            return withHeaders(
                    new ProducerRecord<>(
                            address.substring(slash + 1), null, eventTime < 0 ? stamped : (Long) eventTime, eventKey, value),
                    fields);
        }
        fields.position(fields.position() + Math.max(0, keySize));
        String to = topic;
        Integer at = null;
        if (replies && (name.length > 0 || partition >= 0)) {
            String asked = name.length == 0 ? topic : new String(name, StandardCharsets.UTF_8);
            Address address = addressOf(asked, partition);
            if (address.takes(partition, value.length)) {
                to = asked;
                at = partition < 0 ? null : partition;
            }
        }
        return withHeaders(new ProducerRecord<>(to, at, stamped, key, value), fields);
    }

    private static ProducerRecord<byte[], byte[]> withHeaders(
            ProducerRecord<byte[], byte[]> record, ByteBuffer fields) {
        Headers headers = record.headers();
        while (fields.hasRemaining()) {
            byte[] header = new byte[Short.toUnsignedInt(fields.getShort())];
            int size = fields.getInt();
            byte[] content = size < 0 ? null : new byte[size];
            fields.get(header);
            if (content != null) {
                fields.get(content);
            }
            headers.add(new String(header, StandardCharsets.UTF_8), content);
        }
        return record;
    }

    /** Names the topics in which Flink looks for transactions that an earlier run left open. */
    @Override
    public Optional<KafkaDatasetFacet> getKafkaDatasetFacet() {
        if (!replies || replyTopics.length == 0) {
            return Optional.of(new DefaultKafkaDatasetFacet(
                    DefaultKafkaDatasetIdentifier.ofTopics(Collections.singletonList(topic))));
        }
        StringBuilder pattern = new StringBuilder(Pattern.quote(topic));
        for (String name : replyTopics) {
            boolean isStart = name.endsWith("*");
            pattern.append('|').append(Pattern.quote(isStart ? name.substring(0, name.length() - 1) : name));
            pattern.append(isStart ? ".*" : "");
        }
        // A pattern, because a listed topic that does not exist would fail the job.
        return Optional.of(new DefaultKafkaDatasetFacet(
                DefaultKafkaDatasetIdentifier.ofPattern(Pattern.compile(pattern.toString()))));
    }

    private Address addressOf(String name, int partition) {
        Address known = addresses.get(name);
        boolean isOld = known == null || System.nanoTime() - known.seenNanos > LOOK_AGAIN_NANOS;
        if (known == null || (isOld && Math.max(partition, 0) >= known.partitions)) {
            if (!mayLook()) {
                return known == null ? Address.NONE : known;
            }
            if (addresses.size() >= MAX_ADDRESSES) {
                addresses.clear();
            }
            known = look(name);
            addresses.put(name, known);
        }
        return known;
    }

    /** Limits the time that requests with unknown addresses can take. */
    private boolean mayLook() {
        long now = System.nanoTime();
        if (now - refilledNanos > LOOK_AGAIN_NANOS) {
            refilledNanos = now;
            looksLeft = LOOKS;
        }
        return looksLeft-- > 0;
    }

    private Address look(String name) {
        try (Admin admin = Admin.create(adminProperties)) {
            int partitions = admin.describeTopics(Collections.singleton(name)).allTopicNames()
                    .get(ADMIN_TIMEOUT_MS, TimeUnit.MILLISECONDS).get(name).partitions().size();
            ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, name);
            long maxBytes = Long.MAX_VALUE;
            try {
                maxBytes = Long.parseLong(admin.describeConfigs(Collections.singleton(resource)).all()
                        .get(ADMIN_TIMEOUT_MS, TimeUnit.MILLISECONDS).get(resource).get(SIZE_LIMIT).value());
            } catch (ExecutionException error) {
                // A principal may write to a topic and not describe its configuration.
                LOG.info("cannot read {} of reply topic {}: {}", SIZE_LIMIT, name, error.toString());
            }
            return new Address(partitions, maxBytes);
        } catch (ExecutionException error) {
            Throwable cause = error.getCause();
            if (cause instanceof UnknownTopicOrPartitionException
                    || cause instanceof InvalidTopicException
                    || cause instanceof AuthorizationException) {
                LOG.warn("no reply topic {}, its answers go to {}: {}", name, topic, cause.toString());
                return Address.NONE;
            }
            throw new IllegalStateException("cannot look at reply topic " + name, cause);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException("interrupted at reply topic " + name, error);
        } catch (TimeoutException error) {
            throw new IllegalStateException("no broker tells about reply topic " + name, error);
        }
    }

    private static final class Address {
        static final Address NONE = new Address(0, 0);

        final int partitions;
        final long maxBytes;
        final long seenNanos = System.nanoTime();

        Address(int partitions, long maxBytes) {
            this.partitions = partitions;
            this.maxBytes = maxBytes;
        }

        boolean takes(int partition, int sizeBytes) {
            return Math.max(partition, 0) < partitions && sizeBytes <= maxBytes - Math.min(FRAMING_BYTES, maxBytes / 2);
        }
    }
}
