package anabranch;

import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.functions.python.DataStreamPythonFunctionInfo;
import org.apache.flink.streaming.api.operators.python.process.AbstractExternalDataStreamPythonFunctionOperator;

/** PyFlink's operator of the same name with {@link CancellationSafeBundles}. */
public final class ExternalPythonProcessOperator<IN, OUT>
        extends org.apache.flink.streaming.api.operators.python.process.ExternalPythonProcessOperator<IN, OUT> {
    private static final long serialVersionUID = 1L;

    public ExternalPythonProcessOperator(
            Configuration config,
            DataStreamPythonFunctionInfo function,
            TypeInformation<IN> input,
            TypeInformation<OUT> output) {
        super(config, function, input, output);
    }

    @Override
    public void open() throws Exception {
        super.open();
        CancellationSafeBundles.install(pythonFunctionRunner);
    }

    @Override
    public <T> AbstractExternalDataStreamPythonFunctionOperator<T> copy(
            DataStreamPythonFunctionInfo function, TypeInformation<T> output) {
        return new ExternalPythonProcessOperator<>(config, function, getInputTypeInfo(), output);
    }
}
