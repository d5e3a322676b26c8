package anabranch;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.connector.source.Boundedness;
import org.apache.flink.api.connector.source.ReaderOutput;
import org.apache.flink.api.connector.source.Source;
import org.apache.flink.api.connector.source.SourceEvent;
import org.apache.flink.api.connector.source.SourceOutput;
import org.apache.flink.api.connector.source.SourceReader;
import org.apache.flink.api.connector.source.SourceReaderContext;
import org.apache.flink.api.connector.source.SplitEnumerator;
import org.apache.flink.api.connector.source.SplitEnumeratorContext;
import org.apache.flink.api.java.typeutils.ResultTypeQueryable;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.KafkaSourceEnumState;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.connector.kafka.source.split.KafkaPartitionSplit;
import org.apache.flink.core.io.InputStatus;
import org.apache.flink.core.io.SimpleVersionedSerializer;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.record.TimestampType;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.types.Row;
import org.apache.flink.util.Collector;

/**
 * Flink's Kafka source, which emits all records that it has at hand as one: Row(lane, frame).
 *
 * The lane is a key that belongs to the very task that reads. A frame is, little-endian: the number of records (int); for
 * every record its value's size (int, -1 where there is none), partition (int), offset (long), and timestamp in Unix
 * milliseconds (long, -1 where there is none); all values.
 *
 * Nobody waits for company, and nothing is held: a frame is made and emitted within one call of the task, and checkpoints
 * are taken between calls. So the offsets in them are those of frames that have left.
 */
public final class FrameSource
        implements Source<Row, KafkaPartitionSplit, KafkaSourceEnumState>, ResultTypeQueryable<Row> {
    private static final long serialVersionUID = 1L;

    private final KafkaSource<ConsumerRecord<byte[], byte[]>> kafka;
    private final int maxRecords;
    private final int maxBytes;
    private final int[] keysByGroup;

    /**
     * @param kafka Made with {@link Whole}.
     * @param maxRecords The most that one frame takes.
     * @param maxBytes A frame takes no further record once it has so many.
     * @param keysByGroup For every key group, a key that Flink puts into it.
     */
    public FrameSource(
            KafkaSource<ConsumerRecord<byte[], byte[]>> kafka, int maxRecords, int maxBytes, int[] keysByGroup) {
        this.kafka = kafka;
        this.maxRecords = maxRecords;
        this.maxBytes = maxBytes;
        this.keysByGroup = keysByGroup;
    }

    @Override
    public Boundedness getBoundedness() {
        return kafka.getBoundedness();
    }

    @Override
    public SourceReader<Row, KafkaPartitionSplit> createReader(SourceReaderContext context) throws Exception {
        int firstGroup = KeyGroupRangeAssignment.computeKeyGroupRangeForOperatorIndex(
                keysByGroup.length, context.currentParallelism(), context.getIndexOfSubtask()).getStartKeyGroup();
        return new Reader(kafka.createReader(context), new Frame(maxRecords, maxBytes), keysByGroup[firstGroup]);
    }

    @Override
    public SplitEnumerator<KafkaPartitionSplit, KafkaSourceEnumState> createEnumerator(
            SplitEnumeratorContext<KafkaPartitionSplit> context) throws Exception {
        return kafka.createEnumerator(context);
    }

    @Override
    public SplitEnumerator<KafkaPartitionSplit, KafkaSourceEnumState> restoreEnumerator(
            SplitEnumeratorContext<KafkaPartitionSplit> context, KafkaSourceEnumState state) throws Exception {
        return kafka.restoreEnumerator(context, state);
    }

    @Override
    public SimpleVersionedSerializer<KafkaPartitionSplit> getSplitSerializer() {
        return kafka.getSplitSerializer();
    }

    @Override
    public SimpleVersionedSerializer<KafkaSourceEnumState> getEnumeratorCheckpointSerializer() {
        return kafka.getEnumeratorCheckpointSerializer();
    }

    @Override
    public TypeInformation<Row> getProducedType() {
        return Types.ROW(Types.INT, Types.PRIMITIVE_ARRAY(Types.BYTE));
    }

    /** Hands on the whole record: the frame wants to know where its value came from. */
    public static final class Whole implements KafkaRecordDeserializationSchema<ConsumerRecord<byte[], byte[]>> {
        private static final long serialVersionUID = 1L;

        @Override
        public void deserialize(
                ConsumerRecord<byte[], byte[]> record, Collector<ConsumerRecord<byte[], byte[]>> out) {
            out.collect(record);
        }

        @Override
        @SuppressWarnings({"unchecked", "rawtypes"})
        public TypeInformation<ConsumerRecord<byte[], byte[]>> getProducedType() {
            return (TypeInformation) Types.GENERIC(ConsumerRecord.class);
        }
    }

    private static final class Reader implements SourceReader<Row, KafkaPartitionSplit> {
        private final SourceReader<ConsumerRecord<byte[], byte[]>, KafkaPartitionSplit> kafka;
        private final Frame frame;
        private final Integer lane;

        Reader(SourceReader<ConsumerRecord<byte[], byte[]>, KafkaPartitionSplit> kafka, Frame frame, int lane) {
            this.kafka = kafka;
            this.frame = frame;
            this.lane = lane;
        }

        @Override
        public InputStatus pollNext(ReaderOutput<Row> output) throws Exception {
            InputStatus status = kafka.pollNext(frame);
            while (status == InputStatus.MORE_AVAILABLE && !frame.isFull()) {
                status = kafka.pollNext(frame);
            }
            if (!frame.isEmpty()) {
                output.collect(Row.of(lane, frame.take()));
            }
            return status;
        }

        @Override
        public void start() {
            kafka.start();
        }

        @Override
        public List<KafkaPartitionSplit> snapshotState(long checkpointId) {
            return kafka.snapshotState(checkpointId);
        }

        @Override
        public CompletableFuture<Void> isAvailable() {
            return kafka.isAvailable();
        }

        @Override
        public void addSplits(List<KafkaPartitionSplit> splits) {
            kafka.addSplits(splits);
        }

        @Override
        public void notifyNoMoreSplits() {
            kafka.notifyNoMoreSplits();
        }

        @Override
        public void handleSourceEvents(SourceEvent event) {
            kafka.handleSourceEvents(event);
        }

        @Override
        public void notifyCheckpointComplete(long checkpointId) throws Exception {
            kafka.notifyCheckpointComplete(checkpointId);
        }

        @Override
        public void notifyCheckpointAborted(long checkpointId) throws Exception {
            kafka.notifyCheckpointAborted(checkpointId);
        }

        @Override
        public void close() throws Exception {
            kafka.close();
        }
    }

    /** Where the Kafka reader emits to. The job has no watermarks, so there is one output for all partitions. */
    private static final class Frame implements ReaderOutput<ConsumerRecord<byte[], byte[]>> {
        private static final int COUNT_BYTES = 4;
        private static final int HEADER_BYTES = 24;

        private final int maxRecords;
        private final int maxBytes;
        private final List<ConsumerRecord<byte[], byte[]>> records = new ArrayList<>();
        private long sizeBytes = COUNT_BYTES;

        Frame(int maxRecords, int maxBytes) {
            this.maxRecords = maxRecords;
            this.maxBytes = maxBytes;
        }

        boolean isEmpty() {
            return records.isEmpty();
        }

        boolean isFull() {
            return records.size() >= maxRecords || sizeBytes >= maxBytes;
        }

        byte[] take() {
            byte[] frame = new byte[Math.toIntExact(sizeBytes)];
            ByteBuffer buffer = ByteBuffer.wrap(frame).order(ByteOrder.LITTLE_ENDIAN);
            buffer.putInt(records.size());
            for (ConsumerRecord<byte[], byte[]> record : records) {
                buffer.putInt(record.value() == null ? -1 : record.value().length);
                buffer.putInt(record.partition());
                buffer.putLong(record.offset());
                buffer.putLong(record.timestampType() == TimestampType.NO_TIMESTAMP_TYPE ? -1 : record.timestamp());
            }
            for (ConsumerRecord<byte[], byte[]> record : records) {
                if (record.value() != null) {
                    buffer.put(record.value());
                }
            }
            records.clear();
            sizeBytes = COUNT_BYTES;
            return frame;
        }

        @Override
        public void collect(ConsumerRecord<byte[], byte[]> record) {
            records.add(record);
            sizeBytes += HEADER_BYTES + (record.value() == null ? 0 : record.value().length);
        }

        @Override
        public void collect(ConsumerRecord<byte[], byte[]> record, long timestamp) {
            collect(record);
        }

        @Override
        public SourceOutput<ConsumerRecord<byte[], byte[]>> createOutputForSplit(String splitId) {
            return this;
        }

        @Override
        public void releaseOutputForSplit(String splitId) {}

        @Override
        public void emitWatermark(Watermark watermark) {}

        @Override
        public void markIdle() {}

        @Override
        public void markActive() {}
    }
}
