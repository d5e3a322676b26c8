package anabranch;

import java.lang.reflect.Field;
import org.apache.beam.runners.core.construction.graph.ExecutableStage;
import org.apache.beam.runners.fnexecution.control.JobBundleFactory;
import org.apache.beam.runners.fnexecution.control.StageBundleFactory;
import org.apache.flink.runtime.memory.OpaqueMemoryResource;
import org.apache.flink.streaming.api.runners.python.beam.BeamPythonFunctionRunner;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Closes the bundles of a slot without harm to the TaskManager.
 *
 * Beam's factory counts the references to a worker. If a bundle ends while a cancelled task closes the factory, both drop
 * the same reference, and the factory throws after it has closed everything. Flink ends the TaskManager then.
 */
final class CancellationSafeBundles implements JobBundleFactory {
    private static final Logger LOG = LoggerFactory.getLogger(CancellationSafeBundles.class);
    private static final String FACTORY = "jobBundleFactory";

    private final JobBundleFactory factory;

    private CancellationSafeBundles(JobBundleFactory factory) {
        this.factory = factory;
    }

    /** Wraps the factory of an open runner: its own one, or the one that it shares with its slot. */
    static void install(Object runner) throws ReflectiveOperationException {
        Object lease = PrivateFields.valueOf(BeamPythonFunctionRunner.class, "sharedResources", runner);
        Object owner = lease == null ? runner : ((OpaqueMemoryResource<?>) lease).getResourceHandle();
        Field held = PrivateFields.field(lease == null ? BeamPythonFunctionRunner.class : owner.getClass(), FACTORY);
        JobBundleFactory factory = (JobBundleFactory) held.get(owner);
        if (!(factory instanceof CancellationSafeBundles)) {
            held.set(owner, new CancellationSafeBundles(factory));
        }
    }

    @Override
    public StageBundleFactory forStage(ExecutableStage stage) {
        return factory.forStage(stage);
    }

    @Override
    public void close() throws Exception {
        try {
            factory.close();
        } catch (IllegalStateException race) {
            LOG.info("A bundle ended while its task was closed: {}", race.getMessage());
        }
    }
}
