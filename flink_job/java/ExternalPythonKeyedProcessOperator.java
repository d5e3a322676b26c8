package anabranch;

import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeutils.TypeSerializer;
import org.apache.flink.api.java.typeutils.RowTypeInfo;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.state.VoidNamespaceSerializer;
import org.apache.flink.streaming.api.functions.python.DataStreamPythonFunctionInfo;
import org.apache.flink.streaming.api.operators.InternalTimer;
import org.apache.flink.streaming.api.operators.python.process.AbstractExternalDataStreamPythonFunctionOperator;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.types.Row;

/**
 * PyFlink's operator of the same name with {@link OverlappedBundles} and a {@link Worker} that is watched, whose
 * checkpoints have all timers.
 */
public final class ExternalPythonKeyedProcessOperator<OUT>
        extends org.apache.flink.streaming.api.operators.python.process.ExternalPythonKeyedProcessOperator<OUT> {
    private static final long serialVersionUID = 1L;

    private final TypeSerializer<?> namespaces;
    private transient OverlappedBundles bundles;
    private transient Worker worker;

    public ExternalPythonKeyedProcessOperator(
            Configuration config, DataStreamPythonFunctionInfo function, RowTypeInfo input, TypeInformation<OUT> output) {
        this(config, function, input, output, VoidNamespaceSerializer.INSTANCE);
    }

    public ExternalPythonKeyedProcessOperator(
            Configuration config,
            DataStreamPythonFunctionInfo function,
            RowTypeInfo input,
            TypeInformation<OUT> output,
            TypeSerializer<?> namespaces) {
        super(config, function, input, output, namespaces);
        this.namespaces = namespaces;
    }

    @Override
    public void open() throws Exception {
        bundles = new OverlappedBundles(config, getProcessingTimeService(), this::invokeFinishBundle);
        bundles.open(super::open);
        worker = Worker.of(pythonFunctionRunner, getContainingTask().getEnvironment());
    }

    @Override
    public void close() throws Exception {
        if (worker != null) {
            worker.release();
        }
        super.close();
    }

    @Override
    public void processElement(StreamRecord<Row> element) throws Exception {
        super.processElement(element);
        bundles.onElement(element.getValue());
    }

    @Override
    public void onEventTime(InternalTimer<Row, Object> timer) throws Exception {
        super.onEventTime(timer);
        bundles.onElement(null);
    }

    @Override
    public void onProcessingTime(InternalTimer<Row, Object> timer) throws Exception {
        super.onProcessingTime(timer);
        bundles.onElement(null);
    }

    @Override
    protected void invokeFinishBundle() throws Exception {
        super.invokeFinishBundle();
        if (bundles != null) {
            bundles.onFinished();
        }
    }

    /** Registers the timers of the last bundle, too. PyFlink does so after the checkpoint, which has their state. */
    @Override
    public void prepareSnapshotPreBarrier(long checkpoint) throws Exception {
        super.prepareSnapshotPreBarrier(checkpoint);
        drainUnregisteredTimers();
    }

    @Override
    public <T> AbstractExternalDataStreamPythonFunctionOperator<T> copy(
            DataStreamPythonFunctionInfo function, TypeInformation<T> output) {
        return new ExternalPythonKeyedProcessOperator<>(
                config, function, (RowTypeInfo) getInputTypeInfo(), output, namespaces);
    }
}
