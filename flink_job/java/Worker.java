package anabranch;

import java.io.IOException;
import java.util.Map;
import org.apache.beam.runners.fnexecution.control.SdkHarnessClient;
import org.apache.beam.runners.fnexecution.environment.ProcessEnvironment;
import org.apache.beam.runners.fnexecution.environment.ProcessManager;
import org.apache.flink.runtime.execution.Environment;
import org.apache.flink.streaming.api.runners.python.beam.BeamPythonFunctionRunner;

/**
 * The Python worker of an open operator, with {@link CancellationSafeBundles} and {@link OverlappedBundles}. Its end
 * fails the task at once.
 *
 * Beam notices it at the next bundle, and waits three minutes at that one if it would have been the worker's first.
 */
final class Worker {
    private volatile boolean isReleased;

    private Worker() {}

    /** @param runner Open runner of the operator, which may share its worker with others of its slot. */
    static Worker of(Object runner, Environment task) throws ReflectiveOperationException {
        CancellationSafeBundles.install(runner);
        Object stage = PrivateFields.valueOf(BeamPythonFunctionRunner.class, "stageBundleFactory", runner);
        Object prepared = PrivateFields.valueOf(stage.getClass(), "currentClient", stage);
        Object wrapped = PrivateFields.valueOf(prepared.getClass(), "wrappedClient", prepared);
        OverlappedBundles.install((SdkHarnessClient) PrivateFields.valueOf(wrapped.getClass(), "client", wrapped));
        Worker worker = new Worker();
        Object environment = PrivateFields.valueOf(wrapped.getClass(), "environment", wrapped);
        if (environment instanceof ProcessEnvironment) {
            worker.watch((ProcessEnvironment) environment, task);
        }
        return worker;
    }

    private void watch(ProcessEnvironment environment, Environment task) throws ReflectiveOperationException {
        Object id = PrivateFields.valueOf(ProcessEnvironment.class, "workerId", environment);
        Object started = PrivateFields.valueOf(ProcessEnvironment.class, "processManager", environment);
        Process process = (Process)
                ((Map<?, ?>) PrivateFields.valueOf(ProcessManager.class, "processes", started)).get(id);
        process.onExit().thenAccept(ended -> {
            if (!isReleased) {
                task.failExternally(new IOException("Python worker " + id + " ended before its task"));
            }
        });
    }

    /** Lets the worker end. */
    void release() {
        isReleased = true;
    }
}
