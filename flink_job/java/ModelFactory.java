package anabranch;

import java.io.Serializable;
import java.time.Duration;
import java.util.List;
import java.util.Set;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.ConfigOptions;
import org.apache.flink.configuration.ReadableConfig;
import org.apache.flink.table.catalog.Column;
import org.apache.flink.table.catalog.ResolvedSchema;
import org.apache.flink.table.factories.FactoryUtil;
import org.apache.flink.table.factories.ModelProviderFactory;
import org.apache.flink.table.functions.AsyncPredictFunction;
import org.apache.flink.table.ml.AsyncPredictRuntimeProvider;
import org.apache.flink.table.ml.ModelProvider;
import org.apache.flink.table.types.logical.LogicalType;

/** Makes models of `CREATE MODEL ... WITH ('provider' = 'anabranch')`, which ask a gateway. */
public final class ModelFactory implements ModelProviderFactory {
    private static final ConfigOption<String> ENDPOINT = ConfigOptions.key("endpoint").stringType().noDefaultValue()
            .withDescription("URL of a gateway, such as http://gateway:8080.");
    private static final ConfigOption<String> MODEL = ConfigOptions.key("model").stringType().noDefaultValue()
            .withDescription("Name of a served model.");
    private static final ConfigOption<String> VERSION = ConfigOptions.key("version").stringType().defaultValue("")
            .withDescription("Version of the model; the newest by default.");
    private static final ConfigOption<String> TOKEN = ConfigOptions.key("token").stringType().defaultValue("")
            .withDescription("API key or bearer token of the gateway.");
    private static final ConfigOption<Integer> MAX_ROWS = ConfigOptions.key("max-rows").intType().defaultValue(256)
            .withDescription("Rows of a request at most.");
    private static final ConfigOption<Integer> MAX_REQUESTS = ConfigOptions.key("max-requests").intType()
            .defaultValue(4).withDescription("Requests of a task that wait for an answer at the same time.");
    private static final ConfigOption<Duration> TIMEOUT = ConfigOptions.key("timeout").durationType()
            .defaultValue(Duration.ofMinutes(1)).withDescription("Time after which rows without an answer fail the job.");

    @Override
    public String factoryIdentifier() {
        return "anabranch";
    }

    @Override
    public Set<ConfigOption<?>> requiredOptions() {
        return Set.of(ENDPOINT, MODEL);
    }

    @Override
    public Set<ConfigOption<?>> optionalOptions() {
        return Set.of(VERSION, TOKEN, MAX_ROWS, MAX_REQUESTS, TIMEOUT);
    }

    @Override
    public ModelProvider createModelProvider(Context context) {
        FactoryUtil.ModelProviderFactoryHelper helper = FactoryUtil.createModelProviderFactoryHelper(this, context);
        helper.validate();
        ReadableConfig options = helper.getOptions();
        int maxRows = options.get(MAX_ROWS), maxRequests = options.get(MAX_REQUESTS);
        if (maxRows < 1 || maxRequests < 1) {
            throw new IllegalArgumentException("max-rows is " + maxRows + " and max-requests is " + maxRequests
                    + ", expected at least 1: correct the options of the model");
        }
        return new Provider(new ModelOptions(
                options.get(ENDPOINT).replaceAll("/+$", ""),
                options.get(MODEL),
                options.get(VERSION),
                options.get(TOKEN),
                maxRows,
                maxRequests,
                options.get(TIMEOUT).toMillis(),
                names(context.getCatalogModel().getResolvedInputSchema()),
                types(context.getCatalogModel().getResolvedInputSchema()),
                names(context.getCatalogModel().getResolvedOutputSchema()),
                types(context.getCatalogModel().getResolvedOutputSchema())));
    }

    private static String[] names(ResolvedSchema schema) {
        return schema.getColumnNames().toArray(new String[0]);
    }

    private static LogicalType[] types(ResolvedSchema schema) {
        List<Column> columns = schema.getColumns();
        return columns.stream().map(each -> each.getDataType().getLogicalType()).toArray(LogicalType[]::new);
    }

    /** Options of a model and its columns. */
    record ModelOptions(
            String endpoint,
            String model,
            String version,
            String token,
            int maxRows,
            int maxRequests,
            long timeoutMs,
            String[] inputNames,
            LogicalType[] inputTypes,
            String[] outputNames,
            LogicalType[] outputTypes) implements Serializable {}

    private record Provider(ModelOptions options) implements AsyncPredictRuntimeProvider {
        @Override
        public AsyncPredictFunction createAsyncPredictFunction(Context context) {
            return new ModelFunction(options);
        }

        @Override
        public ModelProvider copy() {
            return this;
        }
    }
}
