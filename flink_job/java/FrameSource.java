package anabranch;

import java.nio.ByteBuffer;
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
import org.apache.flink.core.memory.MemorySegment;
import org.apache.flink.core.memory.MemorySegmentFactory;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Headers;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.record.TimestampType;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.serialization.Deserializer;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.types.Row;
import org.apache.flink.util.Collector;

/**
 * Flink's Kafka source, which emits all fetched records as one Row(task key, frame).
 *
 * The task key belongs to the reading task. Both kinds of frames are little-endian:
 *
 * <pre>
 * frame   number of records (int); for each record: size of its value (int, -1 for null), partition (int),
 *         offset (long), Unix milliseconds (long, -1 for none); all values; for each record with carried fields: its
 *         index, their size (ints), {@link CarriedFields}
 * claim   -1, size of the frame (ints), its address in {@link FrameMemory} (long); only if Python runs in this process
 * </pre>
 *
 * A frame is emitted within one call of the task, so the offsets of a checkpoint are those of emitted frames.
 */
public final class FrameSource
        implements Source<Row, KafkaPartitionSplit, KafkaSourceEnumState>, ResultTypeQueryable<Row> {
    private static final long serialVersionUID = 1L;

    private final KafkaSource<ConsumerRecord<?, ?>> kafka;
    private final int maxRecords;
    private final int maxBytes;
    private final int[] keysByGroup;
    private final boolean stayInProcess;
    private final CarriedFields carriedFields;

    /**
     * @param kafka Made with {@link Whole} and {@link Views}.
     * @param maxRecords Records of a full frame.
     * @param maxBytes Bytes of a full frame; its last record may exceed them.
     * @param keysByGroup A key of each key group.
     * @param stayInProcess Python runs in this process.
     * @param headers Headers to carry; `*` for all.
     * @param carriesKeys Carries the keys of records, too.
     * @param requestsTopic Records of other topics are events.
     */
    public FrameSource(
            KafkaSource<ConsumerRecord<?, ?>> kafka,
            int maxRecords,
            int maxBytes,
            int[] keysByGroup,
            boolean stayInProcess,
            String[] headers,
            boolean carriesKeys,
            String requestsTopic) {
        this.kafka = kafka;
        this.maxRecords = maxRecords;
        this.maxBytes = maxBytes;
        this.keysByGroup = keysByGroup;
        this.stayInProcess = stayInProcess;
        this.carriedFields = new CarriedFields(headers, carriesKeys, requestsTopic);
    }

    @Override
    public Boundedness getBoundedness() {
        return kafka.getBoundedness();
    }

    @Override
    public SourceReader<Row, KafkaPartitionSplit> createReader(SourceReaderContext context) throws Exception {
        int firstGroup = KeyGroupRangeAssignment.computeKeyGroupRangeForOperatorIndex(
                keysByGroup.length, context.currentParallelism(), context.getIndexOfSubtask()).getStartKeyGroup();
        Frame frame = new Frame(maxRecords, maxBytes, stayInProcess, carriedFields);
        return new Reader(kafka.createReader(context), frame, keysByGroup[firstGroup]);
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

    /** Returns views of the fetched buffer; Kafka's own deserializers copy. */
    public static final class Views implements Deserializer<ByteBuffer> {
        @Override
        public ByteBuffer deserialize(String topic, Headers headers, ByteBuffer value) {
            return value;
        }

        @Override
        public ByteBuffer deserialize(String topic, byte[] value) {
            return value == null ? null : ByteBuffer.wrap(value);
        }
    }

    /** Passes on whole records, with partition and offset. */
    public static final class Whole implements KafkaRecordDeserializationSchema<ConsumerRecord<?, ?>> {
        private static final long serialVersionUID = 1L;

        @Override
        public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<ConsumerRecord<?, ?>> out) {
            out.collect(record);
        }

        @Override
        @SuppressWarnings({"unchecked", "rawtypes"})
        public TypeInformation<ConsumerRecord<?, ?>> getProducedType() {
            return (TypeInformation) Types.GENERIC(ConsumerRecord.class);
        }
    }

    private static final class Reader implements SourceReader<Row, KafkaPartitionSplit> {
        private final SourceReader<ConsumerRecord<?, ?>, KafkaPartitionSplit> kafka;
        private final Frame frame;
        private final Integer taskKey;

        Reader(SourceReader<ConsumerRecord<?, ?>, KafkaPartitionSplit> kafka, Frame frame, int taskKey) {
            this.kafka = kafka;
            this.frame = frame;
            this.taskKey = taskKey;
        }

        @Override
        public InputStatus pollNext(ReaderOutput<Row> output) throws Exception {
            InputStatus status = kafka.pollNext(frame);
            while (status == InputStatus.MORE_AVAILABLE && !frame.isFull()) {
                status = kafka.pollNext(frame);
            }
            if (!frame.isEmpty()) {
                output.collect(Row.of(taskKey, frame.take()));
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

    /** Collects the records of a frame, as the output of all partitions. */
    private static final class Frame implements ReaderOutput<ConsumerRecord<?, ?>> {
        private static final int COUNT_BYTES = 4;
        private static final int HEADER_BYTES = 24;
        private static final int CLAIM_BYTES = 16;
        private static final int CARRIED_HEAD_BYTES = 8;

        private final int maxRecords;
        private final int maxBytes;
        private final boolean stayInProcess;
        private final CarriedFields carriedFields;
        private final List<ConsumerRecord<?, ?>> records = new ArrayList<>();
        private final List<Integer> carriers = new ArrayList<>();
        private final List<byte[]> carried = new ArrayList<>();
        private long sizeBytes = COUNT_BYTES;

        Frame(int maxRecords, int maxBytes, boolean stayInProcess, CarriedFields carriedFields) {
            this.maxRecords = maxRecords;
            this.maxBytes = maxBytes;
            this.stayInProcess = stayInProcess;
            this.carriedFields = carriedFields;
        }

        boolean isEmpty() {
            return records.isEmpty();
        }

        boolean isFull() {
            return records.size() >= maxRecords || sizeBytes >= maxBytes;
        }

        byte[] take() {
            MemorySegment shared = stayInProcess ? FrameMemory.take(sizeBytes) : null;
            byte[] taken;
            if (shared == null) {
                taken = new byte[Math.toIntExact(sizeBytes)];
                write(MemorySegmentFactory.wrap(taken), 0);
            } else {
                write(shared, FrameMemory.HEADER_BYTES);
                taken = new byte[CLAIM_BYTES];
                MemorySegment claim = MemorySegmentFactory.wrap(taken);
                claim.putIntLittleEndian(0, -1);
                claim.putIntLittleEndian(4, (int) sizeBytes);
                claim.putLongLittleEndian(8, shared.getAddress() + FrameMemory.HEADER_BYTES);
            }
            records.clear();
            carriers.clear();
            carried.clear();
            sizeBytes = COUNT_BYTES;
            return taken;
        }

        private void write(MemorySegment segment, int at) {
            segment.putIntLittleEndian(at, records.size());
            at += COUNT_BYTES;
            for (ConsumerRecord<?, ?> record : records) {
                boolean hasTimestamp = record.timestampType() != TimestampType.NO_TIMESTAMP_TYPE;
                segment.putIntLittleEndian(at, record.value() == null ? -1 : sizeOf(record));
                segment.putIntLittleEndian(at + 4, carriedFields.partitionOf(record));
                segment.putLongLittleEndian(at + 8, record.offset());
                segment.putLongLittleEndian(at + 16, hasTimestamp ? record.timestamp() : -1);
                at += HEADER_BYTES;
            }
            for (ConsumerRecord<?, ?> record : records) {
                if (record.value() != null) {
                    int size = sizeOf(record);
                    segment.put(at, ((ByteBuffer) record.value()).duplicate(), size);
                    at += size;
                }
            }
            for (int index = 0; index < carriers.size(); index++) {
                byte[] fields = carried.get(index);
                segment.putIntLittleEndian(at, carriers.get(index));
                segment.putIntLittleEndian(at + 4, fields.length);
                segment.put(at + CARRIED_HEAD_BYTES, fields);
                at += CARRIED_HEAD_BYTES + fields.length;
            }
        }

        private static int sizeOf(ConsumerRecord<?, ?> record) {
            return record.value() == null ? 0 : ((ByteBuffer) record.value()).remaining();
        }

        @Override
        public void collect(ConsumerRecord<?, ?> record) {
            byte[] fields = carriedFields.of(record);
            if (fields != null) {
                carriers.add(records.size());
                carried.add(fields);
                sizeBytes += CARRIED_HEAD_BYTES + fields.length;
            }
            records.add(record);
            sizeBytes += HEADER_BYTES + sizeOf(record);
        }

        @Override
        public void collect(ConsumerRecord<?, ?> record, long timestamp) {
            collect(record);
        }

        @Override
        public SourceOutput<ConsumerRecord<?, ?>> createOutputForSplit(String splitId) {
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
