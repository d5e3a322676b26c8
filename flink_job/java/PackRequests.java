import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.apache.flink.api.common.TaskInfo;
import org.apache.flink.api.common.operators.MailboxExecutor;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.streaming.api.graph.StreamConfig;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.operators.Output;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.runtime.tasks.ProcessingTimeService;
import org.apache.flink.streaming.runtime.tasks.StreamTask;
import org.apache.flink.table.data.RowData;
import org.apache.flink.types.Row;
import org.apache.flink.util.function.ThrowingRunnable;

/**
 * Packs the Kafka records that are there into one frame, so that they cross into Python together, and keys it with a
 * key that belongs to this very task.
 *
 * A frame leaves when the source has nothing more at hand, or when it is full: a request that comes alone waits for
 * nobody. Whether there is more shows a mail that this operator sends to its own task: the task takes it when the source
 * has had its turn, and what the source had then is in the frame. Nothing is held across a checkpoint.
 *
 * A frame is, little-endian: the number of records (int); for every record its value's size (int, -1 where there is
 * none), partition (int), offset (long), and timestamp in Unix milliseconds (long, -1 where there is none); all values.
 */
public final class PackRequests extends AbstractStreamOperator implements OneInputStreamOperator, ThrowingRunnable {
    private static final int COUNT_BYTES = 4;
    private static final int HEADER_BYTES = 24;

    private final int maxBytes;
    private final int[] keysByGroup;
    private final byte[][] values;
    private final int[] partitions;
    private final long[] offsets;
    private final long[] timestamps;
    private int count;
    private int sizeBytes;
    private int countAtLastLook;
    private boolean looking;
    private Integer lane;
    private MailboxExecutor mailbox;

    public PackRequests(
            Object[] references, StreamTask task, StreamConfig config, Output output, ProcessingTimeService time) {
        setup(task, config, output);
        int maxRecords = ((Integer) references[0]).intValue();
        maxBytes = ((Integer) references[1]).intValue();
        keysByGroup = (int[]) references[2];
        values = new byte[maxRecords][];
        partitions = new int[maxRecords];
        offsets = new long[maxRecords];
        timestamps = new long[maxRecords];
    }

    public void open() throws Exception {
        super.open();
        TaskInfo task = getRuntimeContext().getTaskInfo();
        int firstGroup = KeyGroupRangeAssignment.computeKeyGroupRangeForOperatorIndex(
                keysByGroup.length, task.getNumberOfParallelSubtasks(), task.getIndexOfThisSubtask()).getStartKeyGroup();
        lane = Integer.valueOf(keysByGroup[firstGroup]);
        mailbox = getContainingTask().getMailboxExecutorFactory().createExecutor(getOperatorConfig().getChainIndex());
    }

    public void processElement(StreamRecord element) throws Exception {
        RowData row = (RowData) element.getValue();
        byte[] value = row.isNullAt(0) ? null : row.getBinary(0);
        int size = HEADER_BYTES + (value == null ? 0 : value.length);
        if (count > 0 && sizeBytes + size > maxBytes) {
            flush();
        }
        values[count] = value;
        partitions[count] = row.getInt(1);
        offsets[count] = row.getLong(2);
        timestamps[count] = row.isNullAt(3) ? -1L : row.getTimestamp(3, 3).getMillisecond();
        count++;
        sizeBytes += size;
        if (count == values.length || sizeBytes >= maxBytes) {
            flush();
        } else if (!looking) {
            look();
        }
    }

    /** The source has had its turn since the last look. */
    public void run() throws Exception {
        looking = false;
        if (count == 0) {
            return;
        }
        if (count == countAtLastLook) {
            flush();
        } else {
            countAtLastLook = count;
            look();
        }
    }

    public void processWatermark(Watermark mark) throws Exception {
        flush();
        super.processWatermark(mark);
    }

    public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
        flush();
        super.prepareSnapshotPreBarrier(checkpointId);
    }

    public void finish() throws Exception {
        flush();
        super.finish();
    }

    private void look() {
        looking = true;
        mailbox.execute(this, "look whether more requests are there");
    }

    private void flush() {
        if (count == 0) {
            return;
        }
        byte[] frame = new byte[COUNT_BYTES + sizeBytes];
        ByteBuffer buffer = ByteBuffer.wrap(frame).order(ByteOrder.LITTLE_ENDIAN);
        buffer.putInt(count);
        for (int i = 0; i < count; i++) {
            byte[] value = values[i];
            buffer.putInt(value == null ? -1 : value.length);
            buffer.putInt(partitions[i]);
            buffer.putLong(offsets[i]);
            buffer.putLong(timestamps[i]);
        }
        for (int i = 0; i < count; i++) {
            if (values[i] != null) {
                buffer.put(values[i]);
                values[i] = null;
            }
        }
        count = 0;
        sizeBytes = 0;
        countAtLastLook = 0;
        Row row = new Row(2);
        row.setField(0, lane);
        row.setField(1, frame);
        output.collect(new StreamRecord(row));
    }
}
