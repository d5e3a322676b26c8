package anabranch.bench;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.databind.DeserializationContext;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializerProvider;
import com.fasterxml.jackson.databind.deser.std.StdDeserializer;
import com.fasterxml.jackson.databind.module.SimpleModule;
import com.fasterxml.jackson.databind.ser.std.StdSerializer;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.apache.flink.api.java.tuple.Tuple2;

/**
 * Crayfish's wire and adapter (EDBT 2024), step for step as there, costs and all: JSON with the numbers as comma text, a
 * new ObjectMapper for each reading and each writing, boxed floats, the input again in the answer.
 *
 * <pre>
 * {"creationTimestamp":1000000000007,"dataPointSz1":1,"dataPointSz2":2,"dataPoint":"0.1,0.2,","prediction":null}
 * </pre>
 *
 * Of ours: the creation time stands for the request's id, and only the model `ffnn` is served, for no request names one.
 */
final class CrayfishWire implements Wire {
    private static final String MODEL = "ffnn";

    private final OnnxModels models;

    CrayfishWire(OnnxModels models) {
        this.models = models;
    }

    @Override
    public Tuple2<byte[], byte[]> answer(byte[] message) throws Exception {
        Batch batch = read(message);
        batch.prediction = apply(batch.dataPoint).toString();
        return Tuple2.of(Long.toString(batch.creationTimestamp).getBytes(StandardCharsets.US_ASCII), write(batch));
    }

    private ArrayList<ArrayList<Float>> apply(ArrayList<ArrayList<Float>> input) throws Exception {
        ArrayList<Float> flat = new ArrayList<>(input.stream().flatMap(List::stream).collect(Collectors.toList()));
        float[] values = new float[flat.size()];
        for (int index = 0; index < values.length; index++) {
            values[index] = flat.get(index);
        }
        OnnxModels.Model model = models.model(MODEL);
        long[] shape = {input.size(), input.get(0).size()};
        Map<String, OnnxTensor> inputs = new HashMap<>();
        // Crayfish leaves tensors open; here they are closed, or the run would end for want of memory.
        try (OnnxTensor tensor = OnnxTensor.createTensor(models.environment(), FloatBuffer.wrap(values), shape)) {
            inputs.put(model.input, tensor);
            try (OnnxValue result = model.session.run(inputs).get(0)) {
                ArrayList<ArrayList<Float>> prediction = new ArrayList<>();
                for (float[] row : (float[][]) result.getValue()) {
                    ArrayList<Float> boxed = new ArrayList<>();
                    for (float value : row) {
                        boxed.add(value);
                    }
                    prediction.add(boxed);
                }
                return prediction;
            }
        }
    }

    private static Batch read(byte[] message) throws IOException {
        ObjectMapper mapper = new ObjectMapper();
        SimpleModule module = new SimpleModule();
        module.addDeserializer(Batch.class, new Reader());
        mapper.registerModule(module);
        return mapper.readValue(message, Batch.class);
    }

    private static byte[] write(Batch batch) throws IOException {
        ObjectMapper mapper = new ObjectMapper();
        SimpleModule module = new SimpleModule();
        module.addSerializer(Batch.class, new Writer());
        mapper.registerModule(module);
        return mapper.writeValueAsBytes(batch);
    }

    private static final class Batch {
        private final long creationTimestamp;
        private final ArrayList<ArrayList<Float>> dataPoint;
        private String prediction;

        Batch(long creationTimestamp, ArrayList<ArrayList<Float>> dataPoint) {
            this.creationTimestamp = creationTimestamp;
            this.dataPoint = dataPoint;
        }
    }

    private static final class Reader extends StdDeserializer<Batch> {
        private static final long serialVersionUID = 1L;

        Reader() {
            super(Batch.class);
        }

        @Override
        public Batch deserialize(JsonParser parser, DeserializationContext context) throws IOException {
            JsonNode node = parser.getCodec().readTree(parser);
            long creationTimestamp = (long) node.get("creationTimestamp").numberValue();
            int rows = (int) node.get("dataPointSz1").numberValue();
            int columns = (int) node.get("dataPointSz2").numberValue();
            String[] texts = node.get("dataPoint").textValue().split(",");
            ArrayList<ArrayList<Float>> dataPoint = new ArrayList<>();
            int index = 0;
            for (int i = 0; i < rows; i++) {
                ArrayList<Float> row = new ArrayList<>();
                for (int j = 0; j < columns; j++) {
                    row.add(Float.valueOf(texts[index++]));
                }
                dataPoint.add(row);
            }
            return new Batch(creationTimestamp, dataPoint);
        }
    }

    private static final class Writer extends StdSerializer<Batch> {
        private static final long serialVersionUID = 1L;

        Writer() {
            super(Batch.class);
        }

        @Override
        public void serialize(Batch batch, JsonGenerator generator, SerializerProvider provider) throws IOException {
            generator.writeStartObject();
            generator.writeNumberField("creationTimestamp", batch.creationTimestamp);
            generator.writeNumberField("dataPointSz1", batch.dataPoint.size());
            generator.writeNumberField("dataPointSz2", batch.dataPoint.get(0).size());
            StringBuilder text = new StringBuilder();
            for (ArrayList<Float> row : batch.dataPoint) {
                for (Float value : row) {
                    text.append(value).append(",");
                }
            }
            generator.writeStringField("dataPoint", text.toString());
            generator.writeStringField("prediction", batch.prediction);
            generator.writeEndObject();
        }
    }
}
