package anabranch;

import java.lang.reflect.Field;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Supplier;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.Elements;
import org.apache.beam.runners.fnexecution.control.SdkHarnessClient;
import org.apache.beam.runners.fnexecution.data.FnDataService;
import org.apache.beam.sdk.fn.data.BeamFnDataInboundObserver;
import org.apache.beam.sdk.fn.data.BeamFnDataOutboundAggregator;
import org.apache.beam.sdk.fn.data.CloseableFnDataReceiver;
import org.apache.beam.sdk.options.ExperimentalOptions;
import org.apache.beam.sdk.options.PipelineOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.python.PythonOptions;
import org.apache.flink.streaming.runtime.tasks.ProcessingTimeService;
import org.apache.flink.types.Row;
import org.apache.flink.util.function.RunnableWithException;

/**
 * Lets an operator and its worker work at the same time on a bundle, which lasts longer while there is much to do.
 *
 * Beam sends elements with 1 MB or the end of their bundle, and reads answers after that: Python is idle first, then
 * Java. Here elements leave once they have {@link #SEND_BYTES}, and answers are read as they come. A bundle of which
 * some left stays open for {@link #OPEN_TIMES} the configured time; any other one ends after half of it.
 */
final class OverlappedBundles {
    private static final int SEND_BYTES = 1 << 16;
    private static final int OPEN_TIMES = 4;
    private static final String DATA_SERVICE = "fnApiDataService";
    private static final String SEND_LIMIT = BeamFnDataOutboundAggregator.DATA_BUFFER_SIZE_LIMIT;

    private final Configuration config;
    private final ProcessingTimeService clock;
    private final RunnableWithException finish;
    private final long configuredMs;
    private long bytes;
    private boolean isTimed;

    /** @param finish Ends the operator's bundle. */
    OverlappedBundles(Configuration config, ProcessingTimeService clock, RunnableWithException finish) {
        this.config = config;
        this.clock = clock;
        this.finish = finish;
        this.configuredMs = config.get(PythonOptions.MAX_BUNDLE_TIME_MILLS);
    }

    /** Opens the operator, which reads its time from the configuration. */
    void open(RunnableWithException operator) throws Exception {
        config.set(PythonOptions.MAX_BUNDLE_TIME_MILLS, OPEN_TIMES * configuredMs);
        try {
            operator.run();
        } finally {
            config.set(PythonOptions.MAX_BUNDLE_TIME_MILLS, configuredMs);
        }
    }

    /** Changes the client of a worker, which operators of a slot share. */
    static void install(SdkHarnessClient client) throws ReflectiveOperationException {
        Field held = PrivateFields.field(SdkHarnessClient.class, DATA_SERVICE);
        synchronized (client) {
            FnDataService service = (FnDataService) held.get(client);
            if (!(service instanceof EagerData)) {
                sendEarly((PipelineOptions) PrivateFields.valueOf(service.getClass(), "options", service));
                held.set(client, new EagerData(service));
            }
        }
    }

    private static void sendEarly(PipelineOptions options) {
        ExperimentalOptions experimental = options.as(ExperimentalOptions.class);
        List<String> experiments = new ArrayList<>(List.of(SEND_LIMIT + SEND_BYTES));
        if (experimental.getExperiments() != null) {
            experiments.addAll(experimental.getExperiments());
        }
        experimental.setExperiments(experiments);
    }

    /** Notes an element of the bundle, or null for a timer. */
    void onElement(Object value) {
        bytes += sizeOf(value);
        if (!isTimed) {
            isTimed = true;
            clock.registerTimer(clock.getCurrentProcessingTime() + Math.max(1, configuredMs / 2), time -> {
                isTimed = false;
                if (bytes < SEND_BYTES) {
                    finish.run();
                }
            });
        }
    }

    /** Notes the end of the bundle. */
    void onFinished() {
        bytes = 0;
    }

    private static long sizeOf(Object value) {
        if (value instanceof byte[]) {
            return ((byte[]) value).length;
        }
        long size = 0;
        if (value instanceof Row) {
            for (int index = 0; index < ((Row) value).getArity(); index++) {
                size += sizeOf(((Row) value).getField(index));
            }
        }
        return size;
    }

    /** Reads answers in the thread that brings them; Beam does it after the end of the bundle. */
    private static final class EagerData implements FnDataService {
        private final FnDataService service;

        EagerData(FnDataService service) {
            this.service = service;
        }

        @Override
        public void registerReceiver(String instruction, CloseableFnDataReceiver<Elements> receiver) {
            service.registerReceiver(instruction, new EagerReceiver((BeamFnDataInboundObserver) receiver));
        }

        @Override
        public void unregisterReceiver(String instruction) {
            service.unregisterReceiver(instruction);
        }

        @Override
        public BeamFnDataOutboundAggregator createOutboundAggregator(Supplier<String> instruction, boolean collects) {
            return service.createOutboundAggregator(instruction, collects);
        }
    }

    private static final class EagerReceiver implements CloseableFnDataReceiver<Elements> {
        private final BeamFnDataInboundObserver observer;

        EagerReceiver(BeamFnDataInboundObserver observer) {
            this.observer = observer;
        }

        @Override
        public void accept(Elements elements) throws Exception {
            if (observer.multiplexElements(elements)) {
                // The end of the bundle waits for one that is the last.
                observer.accept(Elements.getDefaultInstance());
            }
        }

        @Override
        public void flush() throws Exception {
            observer.flush();
        }

        @Override
        public void close() throws Exception {
            observer.close();
        }
    }
}
