package anabranch;

import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.functions.python.DataStreamPythonFunctionInfo;
import org.apache.flink.streaming.api.operators.python.process.AbstractExternalDataStreamPythonFunctionOperator;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;

/** PyFlink's operator of the same name with {@link OverlappedBundles} and a {@link Worker} that is watched. */
public final class ExternalPythonProcessOperator<IN, OUT>
        extends org.apache.flink.streaming.api.operators.python.process.ExternalPythonProcessOperator<IN, OUT> {
    private static final long serialVersionUID = 1L;

    private transient OverlappedBundles bundles;
    private transient Worker worker;

    public ExternalPythonProcessOperator(
            Configuration config,
            DataStreamPythonFunctionInfo function,
            TypeInformation<IN> input,
            TypeInformation<OUT> output) {
        super(config, function, input, output);
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
    public void processElement(StreamRecord<IN> element) throws Exception {
        super.processElement(element);
        bundles.onElement(element.getValue());
    }

    @Override
    protected void invokeFinishBundle() throws Exception {
        super.invokeFinishBundle();
        if (bundles != null) {
            bundles.onFinished();
        }
    }

    @Override
    public <T> AbstractExternalDataStreamPythonFunctionOperator<T> copy(
            DataStreamPythonFunctionInfo function, TypeInformation<T> output) {
        return new ExternalPythonProcessOperator<>(config, function, getInputTypeInfo(), output);
    }
}
