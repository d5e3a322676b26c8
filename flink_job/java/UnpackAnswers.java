import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.apache.flink.streaming.api.graph.StreamConfig;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.operators.Output;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.runtime.tasks.ProcessingTimeService;
import org.apache.flink.streaming.runtime.tasks.StreamTask;
import org.apache.flink.types.Row;

/**
 * Unpacks the answers that came out of Python together into `Row(key, value)`.
 *
 * A frame is, little-endian, for every answer: the sizes of key and value (two ints), the key, and the value.
 */
public final class UnpackAnswers extends AbstractStreamOperator implements OneInputStreamOperator {

    public UnpackAnswers(
            Object[] references, StreamTask task, StreamConfig config, Output output, ProcessingTimeService time) {
        setup(task, config, output);
    }

    public void processElement(StreamRecord element) {
        ByteBuffer frame = ByteBuffer.wrap((byte[]) element.getValue()).order(ByteOrder.LITTLE_ENDIAN);
        while (frame.hasRemaining()) {
            byte[] key = new byte[frame.getInt()];
            byte[] value = new byte[frame.getInt()];
            frame.get(key);
            frame.get(value);
            Row row = new Row(2);
            row.setField(0, key);
            row.setField(1, value);
            output.collect(new StreamRecord(row));
        }
    }
}
