package anabranch;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import org.apache.flink.api.common.functions.FlatMapFunction;
import org.apache.flink.api.common.functions.MapFunction;
import org.apache.flink.types.Row;
import org.apache.flink.util.Collector;

/** Elements of a stream as bytes, and back, without Python. */
public final class ElementValues {
    private ElementValues() {}

    /** Encodes texts as UTF-8. */
    public static final class OfTexts implements MapFunction<String, byte[]> {
        private static final long serialVersionUID = 1L;

        @Override
        public byte[] map(String text) {
            return text.getBytes(StandardCharsets.UTF_8);
        }
    }

    /** Packs the value of a row into a frame of answers. */
    public static final class FrameOfRow implements MapFunction<Row, byte[]> {
        private static final long serialVersionUID = 1L;

        @Override
        public byte[] map(Row row) {
            byte[] value = (byte[]) row.getField(1);
            ByteBuffer frame = ByteBuffer.allocate(2 * Integer.BYTES + value.length).order(ByteOrder.LITTLE_ENDIAN);
            return frame.putInt(0).putInt(value.length).put(value).array();
        }
    }

    /** Unpacks the values of a frame of answers; see `UnpackAnswers`. */
    public static final class Unpack implements FlatMapFunction<byte[], Object> {
        private static final long serialVersionUID = 1L;
        private final boolean asTexts;

        /** @param asTexts Decodes values as UTF-8. */
        public Unpack(boolean asTexts) {
            this.asTexts = asTexts;
        }

        @Override
        public void flatMap(byte[] answers, Collector<Object> out) {
            ByteBuffer frame = ByteBuffer.wrap(answers).order(ByteOrder.LITTLE_ENDIAN);
            while (frame.hasRemaining()) {
                int keySize = frame.getInt();
                int valueSize = frame.getInt();
                frame.position(frame.position() + (keySize < 0 ? ~keySize : keySize));
                if (asTexts) {
                    out.collect(new String(answers, frame.position(), valueSize, StandardCharsets.UTF_8));
                    frame.position(frame.position() + valueSize);
                } else {
                    byte[] value = new byte[valueSize];
                    frame.get(value);
                    out.collect(value);
                }
                if (keySize < 0) {
                    frame.position(frame.position() + Integer.BYTES + frame.getInt(frame.position()));
                }
            }
        }
    }
}
