package anabranch.bench;

import org.apache.flink.api.java.tuple.Tuple2;

/** How requests and answers are written. */
interface Wire {
    /** The id and the answer of one request, by one run of a session. */
    Tuple2<byte[], byte[]> answer(byte[] message) throws Exception;
}
