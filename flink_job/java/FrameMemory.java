package anabranch;

import java.lang.invoke.VarHandle;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.core.memory.MemorySegment;
import org.apache.flink.core.memory.MemorySegmentFactory;

/**
 * Memory outside of Java's heap, where Python in the same process reads large frames without a copy.
 *
 * A segment starts with a header, whose first long is 1 while the frame behind it is in use. Who reads it sets it to 0
 * once nothing refers to the frame any more (`operators/transport/frame_memory.py`). So segments belong to the process: none is ever
 * freed, whatever becomes of the task that wrote it, and a frame that nobody ever read keeps its own.
 */
final class FrameMemory {
    /** Where the frame begins. */
    static final int HEADER_BYTES = 64;

    private static final int SEGMENT_BYTES = 2 * 1024 * 1024;
    private static final int MAX_SEGMENTS = 16;
    /** What is smaller is as quickly copied as it is looked after. */
    private static final int LEAST_FRAME_BYTES = 64 * 1024;

    private static final List<MemorySegment> SEGMENTS = new ArrayList<>();

    private FrameMemory() {}

    /** A segment for a frame; null where it is too small or too large for one, or all of them are in use. */
    static synchronized MemorySegment take(long frameBytes) {
        if (frameBytes < LEAST_FRAME_BYTES || frameBytes > SEGMENT_BYTES - HEADER_BYTES) {
            return null;
        }
        // Always the first that is free: it is the one that the processor's caches may still hold.
        for (MemorySegment segment : SEGMENTS) {
            if (segment.getLong(0) == 0) {
                VarHandle.acquireFence();
                segment.putLong(0, 1);
                return segment;
            }
        }
        if (SEGMENTS.size() == MAX_SEGMENTS) {
            return null;
        }
        MemorySegment segment = MemorySegmentFactory.allocateOffHeapUnsafeMemory(SEGMENT_BYTES);
        segment.putLong(0, 1);
        SEGMENTS.add(segment);
        return segment;
    }
}
