package anabranch.bench;

import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.common.serialization.SerializationSchema;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * A Flink job in Java alone, as Crayfish's: one session for each task, one run of it for each Kafka record.
 *
 * <pre>Kafka value --> [ map: parse, session.run, serialise ] --> Kafka key and value</pre>
 *
 * Arguments: wire (`protobuf` or `crayfish`), bootstrap servers, topic of requests, topic of answers, consumer group,
 * model repository, parallelism; then Flink options as KEY=VALUE.
 */
public final class OnnxJob {
    private static final int OPTIONS_FROM = 7;

    private OnnxJob() {}

    public static void main(String[] arguments) throws Exception {
        Configuration options = new Configuration();
        for (int index = OPTIONS_FROM; index < arguments.length; index++) {
            String[] option = arguments[index].split("=", 2);
            options.setString(option[0], option[1]);
        }
        StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment(options);
        env.setParallelism(Integer.parseInt(arguments[6]));
        KafkaSource<byte[]> source = KafkaSource.<byte[]>builder()
                .setBootstrapServers(arguments[1])
                .setTopics(arguments[2])
                .setGroupId(arguments[4])
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setDeserializer(KafkaRecordDeserializationSchema.valueOnly(ByteArrayDeserializer.class))
                .setProperty("fetch.max.wait.ms", "100")
                .build();
        KafkaSink<Tuple2<byte[], byte[]>> sink = KafkaSink.<Tuple2<byte[], byte[]>>builder()
                .setBootstrapServers(arguments[1])
                .setRecordSerializer(KafkaRecordSerializationSchema.<Tuple2<byte[], byte[]>>builder()
                        .setTopic(arguments[3])
                        .setKeySerializationSchema(new Key())
                        .setValueSerializationSchema(new Value())
                        .build())
                .setDeliveryGuarantee(DeliveryGuarantee.AT_LEAST_ONCE)
                .setProperty("linger.ms", "0")
                .build();
        env.fromSource(source, WatermarkStrategy.noWatermarks(), "requests")
                .map(new Infer(arguments[0], arguments[5]))
                .sinkTo(sink);
        env.execute("Java map");
    }

    /** Message -> id and answer. */
    private static final class Infer extends RichMapFunction<byte[], Tuple2<byte[], byte[]>> {
        private static final long serialVersionUID = 1L;

        private final String wireName;
        private final String repository;
        private transient Wire wire;

        Infer(String wireName, String repository) {
            this.wireName = wireName;
            this.repository = repository;
        }

        @Override
        public void open(OpenContext context) throws Exception {
            OnnxModels models = new OnnxModels(repository);
            wire = wireName.equals("crayfish") ? new CrayfishWire(models) : new ProtobufWire(models);
        }

        @Override
        public Tuple2<byte[], byte[]> map(byte[] message) throws Exception {
            return wire.answer(message);
        }
    }

    private static final class Key implements SerializationSchema<Tuple2<byte[], byte[]>> {
        private static final long serialVersionUID = 1L;

        @Override
        public byte[] serialize(Tuple2<byte[], byte[]> answer) {
            return answer.f0;
        }
    }

    private static final class Value implements SerializationSchema<Tuple2<byte[], byte[]>> {
        private static final long serialVersionUID = 1L;

        @Override
        public byte[] serialize(Tuple2<byte[], byte[]> answer) {
            return answer.f1;
        }
    }
}
