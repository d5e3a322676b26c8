package anabranch.bench;

import com.google.protobuf.CodedInputStream;
import com.google.protobuf.CodedOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.Arrays;
import org.apache.flink.api.java.tuple.Tuple2;

/**
 * The wire that all subjects share: ModelInferRequest and ModelInferResponse of schemas/open_inference.proto, raw contents.
 *
 * Written by hand on protobuf's own streams, for that is quicker than generated classes: nothing is made of fields that
 * nobody reads, and the input stays where it is in the message.
 */
final class ProtobufWire implements Wire {
    private static final byte[] VERSION = {'1'};
    private static final byte[] FP32 = {'F', 'P', '3', '2'};

    private final OnnxModels models;

    ProtobufWire(OnnxModels models) {
        this.models = models;
    }

    @Override
    public Tuple2<byte[], byte[]> answer(byte[] message) throws Exception {
        Request request = Request.read(message);
        OnnxModels.Model model = models.model(request.modelName);
        OnnxModels.Scores scores = models.run(model, request.datatype, request.shape, request.raw);
        return Tuple2.of(request.id, write(request, model.output, scores));
    }

    private static byte[] write(Request request, String output, OnnxModels.Scores scores) throws IOException {
        int shapeSize = 0;
        for (long dimension : scores.shape()) {
            shapeSize += CodedOutputStream.computeInt64SizeNoTag(dimension);
        }
        int tensorSize = CodedOutputStream.computeStringSize(1, output)
                + CodedOutputStream.computeByteArraySize(2, FP32)
                + CodedOutputStream.computeTagSize(3)
                + CodedOutputStream.computeUInt32SizeNoTag(shapeSize)
                + shapeSize;
        byte[] raw = scores.raw().array();
        byte[] answer = new byte[CodedOutputStream.computeStringSize(1, request.modelName)
                + CodedOutputStream.computeByteArraySize(2, VERSION)
                + CodedOutputStream.computeByteArraySize(3, request.id)
                + CodedOutputStream.computeTagSize(5)
                + CodedOutputStream.computeUInt32SizeNoTag(tensorSize)
                + tensorSize
                + CodedOutputStream.computeByteArraySize(6, raw)];
        CodedOutputStream out = CodedOutputStream.newInstance(answer);
        out.writeString(1, request.modelName);
        out.writeByteArray(2, VERSION);
        out.writeByteArray(3, request.id);
        out.writeTag(5, 2);
        out.writeUInt32NoTag(tensorSize);
        out.writeString(1, output);
        out.writeByteArray(2, FP32);
        out.writeTag(3, 2);
        out.writeUInt32NoTag(shapeSize);
        for (long dimension : scores.shape()) {
            out.writeInt64NoTag(dimension);
        }
        out.writeByteArray(6, raw);
        out.checkNoSpaceLeft();
        return answer;
    }

    /** What is read of a request. */
    private static final class Request {
        private String modelName;
        private byte[] id;
        private String datatype;
        private long[] shape = new long[4];
        private int dimensions;
        private ByteBuffer raw;

        static Request read(byte[] message) throws IOException {
            Request request = new Request();
            CodedInputStream in = CodedInputStream.newInstance(message);
            in.enableAliasing(true);
            for (int tag = in.readTag(); tag != 0; tag = in.readTag()) {
                switch (tag >>> 3) {
                    case 1 -> request.modelName = in.readString();
                    case 3 -> request.id = in.readByteArray();
                    case 5 -> request.readTensor(in);
                    case 7 -> request.raw = in.readByteBuffer();
                    default -> in.skipField(tag);
                }
            }
            request.shape = Arrays.copyOf(request.shape, request.dimensions);
            return request;
        }

        private void readTensor(CodedInputStream in) throws IOException {
            int outer = in.pushLimit(in.readRawVarint32());
            for (int tag = in.readTag(); tag != 0; tag = in.readTag()) {
                switch (tag >>> 3) {
                    case 2 -> datatype = in.readString();
                    case 3 -> readShape(in, tag);
                    default -> in.skipField(tag);
                }
            }
            in.popLimit(outer);
        }

        /** Packed, or one number by itself: both are allowed. */
        private void readShape(CodedInputStream in, int tag) throws IOException {
            if ((tag & 7) == 0) {
                addDimension(in.readInt64());
                return;
            }
            int outer = in.pushLimit(in.readRawVarint32());
            while (in.getBytesUntilLimit() > 0) {
                addDimension(in.readInt64());
            }
            in.popLimit(outer);
        }

        private void addDimension(long dimension) {
            if (dimensions == shape.length) {
                shape = Arrays.copyOf(shape, 2 * dimensions);
            }
            shape[dimensions++] = dimension;
        }
    }
}
