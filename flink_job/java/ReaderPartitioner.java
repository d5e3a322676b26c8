package anabranch;

import org.apache.flink.api.common.functions.Partitioner;
import org.apache.flink.api.java.functions.KeySelector;

/**
 * Sends a record to the reader that its ticket names.
 *
 * A ticket begins with byte 254; bytes 4 to 7 are the reader, little-endian. Other records go to reader 0.
 */
public final class ReaderPartitioner implements Partitioner<Integer>, KeySelector<byte[], Integer> {
    private static final long serialVersionUID = 1L;
    private static final int READER_AT = 4;

    @Override
    public Integer getKey(byte[] record) {
        if (record.length < READER_AT + 4 || (record[0] & 0xFF) != 254) {
            return 0;
        }
        return (record[READER_AT] & 0xFF)
                | (record[READER_AT + 1] & 0xFF) << 8
                | (record[READER_AT + 2] & 0xFF) << 16
                | (record[READER_AT + 3] & 0xFF) << 24;
    }

    @Override
    public int partition(Integer reader, int readers) {
        return Math.floorMod(reader, readers);
    }
}
