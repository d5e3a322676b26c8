package anabranch;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.apache.flink.api.common.functions.FlatMapFunction;
import org.apache.flink.types.Row;
import org.apache.flink.util.Collector;

/**
 * Unpacks a frame of answers into `Row(key, value)`.
 *
 * A frame holds, for every answer: sizes of key and value (little-endian ints), key, value.
 */
public final class UnpackAnswers implements FlatMapFunction<byte[], Row> {
    private static final long serialVersionUID = 1L;

    @Override
    public void flatMap(byte[] answers, Collector<Row> out) {
        ByteBuffer frame = ByteBuffer.wrap(answers).order(ByteOrder.LITTLE_ENDIAN);
        while (frame.hasRemaining()) {
            byte[] key = new byte[frame.getInt()];
            byte[] value = new byte[frame.getInt()];
            frame.get(key);
            frame.get(value);
            out.collect(Row.of(key, value));
        }
    }
}
