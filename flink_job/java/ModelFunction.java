package anabranch;

import anabranch.ModelClient.Refusal;
import anabranch.ModelClient.Signature;
import anabranch.ModelClient.Tensor;
import anabranch.ModelFactory.ModelOptions;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Deque;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.apache.flink.metrics.Counter;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.functions.AsyncPredictFunction;
import org.apache.flink.table.functions.FunctionContext;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Asks a gateway for the rows of `ML_PREDICT`, many in one request.
 *
 * <p>A row leaves at once while fewer than `max-requests` are under way. Meanwhile, rows gather and share the next one, so
 * batches grow with the load, and no row waits for company. A row that the model refuses, like one with NULL or NaN, has
 * the result NULL; if the gateway does not answer, the job fails after the time-out.
 */
public final class ModelFunction extends AsyncPredictFunction {
    private static final long serialVersionUID = 1L;
    private static final Logger LOG = LoggerFactory.getLogger(ModelFunction.class);
    private static final long PAUSE_MS = 50;
    private static final long MAX_PAUSE_MS = 2_000;
    private static final long SILENCE_NANOS = TimeUnit.SECONDS.toNanos(10);

    private final ModelOptions options;
    private transient ModelClient client;
    private transient Signature signature;
    private transient ModelColumns columns;
    private transient Deque<Entry> waiting;
    private transient int underWay;
    private transient volatile boolean isClosed;
    private transient Counter requests;
    private transient Counter refused;
    private transient long silentUntilNanos;

    ModelFunction(ModelOptions options) {
        this.options = options;
    }

    /** A row's tensors and its result. */
    private record Entry(List<Tensor> tensors, long endNanos, CompletableFuture<Collection<RowData>> result) {}

    @Override
    public void open(FunctionContext context) throws Exception {
        client = new ModelClient(options.endpoint(), options.model(), options.version(), options.token());
        waiting = new ArrayDeque<>();
        requests = context.getMetricGroup().counter("modelRequests");
        refused = context.getMetricGroup().counter("modelRowsRefused");
        silentUntilNanos = System.nanoTime();
        signature = awaitSignature();
        columns = new ModelColumns(options, signature);
    }

    @Override
    public void close() {
        isClosed = true;
    }

    @Override
    public CompletableFuture<Collection<RowData>> asyncPredict(RowData row) {
        CompletableFuture<Collection<RowData>> result = new CompletableFuture<>();
        try {
            List<Tensor> tensors = columns.read(row);
            if (tensors == null) {
                result.complete(List.of(columns.nulls()));
                return result;
            }
            long endNanos = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(options.timeoutMs());
            synchronized (this) {
                waiting.add(new Entry(tensors, endNanos, result));
            }
        } catch (ModelColumns.Unfit error) {
            refuse(result, error.getMessage());
            return result;
        }
        sendNext();
        return result;
    }

    private void sendNext() {
        List<Entry> batch = new ArrayList<>();
        synchronized (this) {
            if (underWay >= options.maxRequests() || waiting.isEmpty()) {
                return;
            }
            int most = signature.mayMeet() ? options.maxRows() : 1;
            Entry first = waiting.remove();
            batch.add(first);
            while (batch.size() < most && !waiting.isEmpty() && areAlike(first, waiting.peek())) {
                batch.add(waiting.remove());
            }
            underWay++;
        }
        ask(batch, PAUSE_MS).whenComplete((done, error) -> {
            if (error != null) {
                batch.forEach(entry -> entry.result.completeExceptionally(error));
            }
            synchronized (this) {
                underWay--;
            }
            sendNext();
        });
    }

    /** Answers each row of a batch; ends with an error if the gateway cannot be asked. */
    private CompletableFuture<Void> ask(List<Entry> batch, long pauseMs) {
        requests.inc();
        Duration left = Duration.ofNanos(Math.max(1_000_000, batch.get(0).endNanos - System.nanoTime()));
        return client.infer(columns.stack(tensorsOf(batch)), columns.outputNames(), left)
                .handle((outputs, error) -> error == null ? answer(batch, outputs) : again(batch, error, pauseMs))
                .thenCompose(next -> next);
    }

    private CompletableFuture<Void> answer(List<Entry> batch, Map<String, Tensor> outputs) {
        for (int index = 0; index < batch.size(); index++) {
            CompletableFuture<Collection<RowData>> result = batch.get(index).result;
            try {
                result.complete(List.of(columns.write(outputs, index, batch.size())));
            } catch (ModelColumns.Unfit error) {
                refuse(result, error.getMessage());
            }
        }
        return CompletableFuture.completedFuture(null);
    }

    private CompletableFuture<Void> again(List<Entry> batch, Throwable thrown, long pauseMs) {
        Throwable error = thrown instanceof CompletionException ? thrown.getCause() : thrown;
        if (!(error instanceof IOException) || isClosed) {
            return CompletableFuture.failedFuture(error);
        }
        if (error instanceof Refusal refusal) {
            if (isOfTheModel(refusal.status)) {
                return CompletableFuture.failedFuture(failure(error));
            }
            if (!isTransient(refusal.status)) {
                return halves(batch, refusal);
            }
            pauseMs = Math.max(pauseMs, refusal.retryAfterMs);
        }
        long waitMs = Math.min(pauseMs, MAX_PAUSE_MS);
        if (System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(waitMs) > batch.get(0).endNanos) {
            return CompletableFuture.failedFuture(failure(error));
        }
        return CompletableFuture.runAsync(
                        () -> {}, CompletableFuture.delayedExecutor(waitMs, TimeUnit.MILLISECONDS))
                .thenCompose(done -> ask(batch, 2 * waitMs));
    }

    /** Finds the rows at fault. */
    private CompletableFuture<Void> halves(List<Entry> batch, Refusal refusal) {
        if (batch.size() == 1) {
            refuse(batch.get(0).result, refusal.getMessage());
            return CompletableFuture.completedFuture(null);
        }
        int half = batch.size() / 2;
        return ask(batch.subList(0, half), PAUSE_MS)
                .thenCompose(done -> ask(batch.subList(half, batch.size()), PAUSE_MS));
    }

    private void refuse(CompletableFuture<Collection<RowData>> result, String message) {
        refused.inc();
        long nowNanos = System.nanoTime();
        synchronized (this) {
            if (nowNanos >= silentUntilNanos) {
                LOG.warn("{}: {} rows became NULL; the last: {}", options.model(), refused.getCount(), message);
                silentUntilNanos = nowNanos + SILENCE_NANOS;
            }
        }
        result.complete(List.of(columns.nulls()));
    }

    private Signature awaitSignature() throws Exception {
        long endNanos = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(options.timeoutMs());
        for (long pauseMs = PAUSE_MS; ; pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS)) {
            try {
                return client.signature(Duration.ofMillis(options.timeoutMs()));
            } catch (IOException error) {
                boolean isFinal = error instanceof Refusal refusal && !isTransient(refusal.status);
                if (isFinal || System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(pauseMs) > endNanos) {
                    throw failure(error);
                }
                Thread.sleep(pauseMs);
            }
        }
    }

    private Exception failure(Throwable error) {
        String model = options.model() + (options.version().isEmpty() ? "" : "/" + options.version());
        String message = "model " + model + " at " + options.endpoint() + " does not answer: " + error
                + "; start `anabranch gateway`, and compare `anabranch models`";
        return error instanceof Refusal ? new IOException(message, error)
                : (Exception) new TimeoutException(message).initCause(error);
    }

    /** True if no row will be answered: not allowed, or not served. */
    private static boolean isOfTheModel(int status) {
        return status == 401 || status == 403 || status == 404;
    }

    private static boolean isTransient(int status) {
        return status == 429 || status == 502 || status == 503 || status == 504;
    }

    private static List<List<Tensor>> tensorsOf(List<Entry> batch) {
        return batch.stream().map(Entry::tensors).toList();
    }

    private static boolean areAlike(Entry one, Entry other) {
        for (int index = 0; index < one.tensors.size(); index++) {
            if (!java.util.Arrays.equals(one.tensors.get(index).shape(), other.tensors.get(index).shape())) {
                return false;
            }
        }
        return true;
    }
}
