package anabranch;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.apache.flink.api.common.functions.FlatMapFunction;
import org.apache.flink.types.Row;
import org.apache.flink.util.Collector;

/**
 * Unpacks a frame of answers into `Row(key, value, carried fields)`.
 *
 * A frame holds, for every answer: sizes of key and value (little-endian ints), key, value. With carried fields, the
 * bits of the first size are inverted, and a third size and the fields follow the value.
 */
public final class UnpackAnswers implements FlatMapFunction<byte[], Row> {
    private static final long serialVersionUID = 1L;
    private static final byte[] NOTHING = new byte[0];

    @Override
    public void flatMap(byte[] answers, Collector<Row> out) {
        ByteBuffer frame = ByteBuffer.wrap(answers).order(ByteOrder.LITTLE_ENDIAN);
        while (frame.hasRemaining()) {
            int keySize = frame.getInt();
            byte[] key = new byte[keySize < 0 ? ~keySize : keySize];
            byte[] value = new byte[frame.getInt()];
            frame.get(key);
            frame.get(value);
            byte[] carried = NOTHING;
            if (keySize < 0) {
                carried = new byte[frame.getInt()];
                frame.get(carried);
            }
            out.collect(Row.of(key, value, carried));
        }
    }
}
