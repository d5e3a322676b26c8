package anabranch.bench;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;

/** Every model of a repository (NAME/VERSION/model.onnx), in sessions on one thread: one input, one float output. */
final class OnnxModels {
    private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    private final Map<String, Model> models = new HashMap<>();

    /** Kept from request to request: ONNX Runtime reads it where it is, and would copy one of Java's own. */
    private ByteBuffer direct = ByteBuffer.allocateDirect(1 << 16).order(ByteOrder.nativeOrder());

    OnnxModels(String repository) throws IOException, OrtException {
        OrtSession.SessionOptions options = new OrtSession.SessionOptions();
        options.setIntraOpNumThreads(1);
        options.setInterOpNumThreads(1);
        try (DirectoryStream<Path> folders = Files.newDirectoryStream(Path.of(repository))) {
            for (Path folder : folders) {
                try (DirectoryStream<Path> versions = Files.newDirectoryStream(folder)) {
                    for (Path version : versions) {
                        String path = version.resolve("model.onnx").toString();
                        OrtSession session = environment.createSession(path, options);
                        models.put(folder.getFileName().toString(), new Model(session));
                    }
                }
            }
        }
    }

    Model model(String name) {
        return models.get(name);
    }

    OrtEnvironment environment() {
        return environment;
    }

    /**
     * Runs a model once.
     *
     * @param raw The input, little-endian and row-major.
     */
    Scores run(Model model, String datatype, long[] shape, ByteBuffer raw) throws OrtException {
        if (direct.capacity() < raw.remaining()) {
            direct = ByteBuffer.allocateDirect(raw.remaining()).order(ByteOrder.nativeOrder());
        }
        direct.clear();
        direct.put(raw).flip();
        try (OnnxTensor tensor = datatype.equals("INT32")
                        ? OnnxTensor.createTensor(environment, direct.asIntBuffer(), shape)
                        : OnnxTensor.createTensor(environment, direct.asFloatBuffer(), shape);
                OrtSession.Result result = model.session.run(Collections.singletonMap(model.input, tensor))) {
            OnnxTensor scores = (OnnxTensor) result.get(0);
            return new Scores(scores.getInfo().getShape(), scores.getByteBuffer());
        }
    }

    /** A session, and the names of its one input and output. */
    static final class Model {
        final OrtSession session;
        final String input;
        final String output;

        Model(OrtSession session) {
            this.session = session;
            this.input = session.getInputNames().iterator().next();
            this.output = session.getOutputNames().iterator().next();
        }
    }

    /** What a run gave: FP32, little-endian and row-major. */
    record Scores(long[] shape, ByteBuffer raw) {}
}
