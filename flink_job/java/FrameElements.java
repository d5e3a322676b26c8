package anabranch;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.BoundedOneInput;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.types.Row;

/**
 * Packs the elements of a stream into frames, as `FrameSource` does with Kafka's records.
 *
 * A frame leaves when it is full, after a millisecond, and before each checkpoint, so there is no state. Watermarks
 * but the last end here: `serve` takes one for the end of its input.
 */
public final class FrameElements extends AbstractStreamOperator<Row>
        implements OneInputStreamOperator<byte[], Row>, BoundedOneInput {
    private static final long serialVersionUID = 1L;
    private static final int COUNT_BYTES = 4;
    private static final int HEADER_BYTES = 24;
    private static final int CARRIED_HEAD_BYTES = 8;
    private static final long WAIT_MS = 1;
    /** Offsets of a later run are higher. */
    private static final int OFFSETS_PER_MS_BITS = 20;

    private final int maxRecords;
    private final int maxBytes;
    private final int[] keysByGroup;
    private final int flow;
    private final byte[] carried;

    private transient List<byte[]> elements;
    private transient List<Long> times;
    private transient long sizeBytes;
    private transient long offset;
    private transient int partition;
    private transient Integer taskKey;
    private transient boolean isTimed;

    /**
     * @param maxRecords Elements of a full frame.
     * @param maxBytes Bytes of a full frame; its last element may exceed them.
     * @param keysByGroup A key of each key group.
     * @param flow Number of the flow, above the bits of partitions.
     * @param carried Carried fields of each element.
     */
    public FrameElements(int maxRecords, int maxBytes, int[] keysByGroup, int flow, byte[] carried) {
        this.maxRecords = maxRecords;
        this.maxBytes = maxBytes;
        this.keysByGroup = keysByGroup;
        this.flow = flow;
        this.carried = carried;
    }

    @Override
    public void open() throws Exception {
        super.open();
        int index = getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
        int tasks = getRuntimeContext().getTaskInfo().getNumberOfParallelSubtasks();
        taskKey = keysByGroup[KeyGroupRangeAssignment.computeKeyGroupRangeForOperatorIndex(
                keysByGroup.length, tasks, index).getStartKeyGroup()];
        partition = flow << CarriedFields.PARTITION_BITS | index;
        offset = System.currentTimeMillis() << OFFSETS_PER_MS_BITS;
        elements = new ArrayList<>();
        times = new ArrayList<>();
        sizeBytes = COUNT_BYTES;
    }

    @Override
    public void processElement(StreamRecord<byte[]> element) {
        elements.add(element.getValue());
        times.add(System.currentTimeMillis());
        sizeBytes += HEADER_BYTES + CARRIED_HEAD_BYTES + carried.length + element.getValue().length;
        if (elements.size() >= maxRecords || sizeBytes >= maxBytes) {
            flush();
        } else if (!isTimed) {
            isTimed = true;
            long now = getProcessingTimeService().getCurrentProcessingTime();
            getProcessingTimeService().registerTimer(now + WAIT_MS, time -> {
                isTimed = false;
                flush();
            });
        }
    }

    @Override
    public void prepareSnapshotPreBarrier(long checkpointId) {
        flush();
    }

    @Override
    public void processWatermark(Watermark watermark) throws Exception {
        if (watermark.getTimestamp() == Long.MAX_VALUE) {
            flush();
            super.processWatermark(watermark);
        }
    }

    @Override
    public void endInput() {
        flush();
    }

    private void flush() {
        if (elements.isEmpty()) {
            return;
        }
        ByteBuffer frame = ByteBuffer.allocate(Math.toIntExact(sizeBytes)).order(ByteOrder.LITTLE_ENDIAN);
        frame.putInt(elements.size());
        for (int index = 0; index < elements.size(); index++) {
            frame.putInt(elements.get(index).length).putInt(partition).putLong(offset++).putLong(times.get(index));
        }
        for (byte[] element : elements) {
            frame.put(element);
        }
        for (int index = 0; index < elements.size(); index++) {
            frame.putInt(index).putInt(carried.length).put(carried);
        }
        elements.clear();
        times.clear();
        sizeBytes = COUNT_BYTES;
        output.collect(new StreamRecord<>(Row.of(taskKey, frame.array())));
    }
}
