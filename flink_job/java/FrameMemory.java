package anabranch;

import java.lang.invoke.VarHandle;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.core.memory.MemorySegment;
import org.apache.flink.core.memory.MemorySegmentFactory;

/**
 * Off-heap memory that Python in the same process reads without a copy.
 *
 * The first long of a segment is 1 while its frame is in use; `operators/transport/frame_memory.py` sets it to 0.
 * Segments are never freed; a frame that is never read keeps its segment.
 */
final class FrameMemory {
    /** Start of the frame. */
    static final int HEADER_BYTES = 64;

    private static final int SEGMENT_BYTES = 2 * 1024 * 1024;
    private static final int MAX_SEGMENTS = 16;
    /** Copying a smaller frame is as fast. */
    private static final int LEAST_FRAME_BYTES = 64 * 1024;

    private static final List<MemorySegment> SEGMENTS = new ArrayList<>();

    private FrameMemory() {}

    /** Returns a free segment; null if all are in use, or the frame is too small or too large. */
    static synchronized MemorySegment take(long frameBytes) {
        if (frameBytes < LEAST_FRAME_BYTES || frameBytes > SEGMENT_BYTES - HEADER_BYTES) {
            return null;
        }
        // The first segments are the likeliest to be cached.
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
