package anabranch;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.node.ArrayNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.node.ObjectNode;

/** Speaks Open Inference Protocol over HTTP, with binary tensors. */
final class ModelClient {
    private static final String LENGTH = "Inference-Header-Content-Length";
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final int OK = 200;

    private final HttpClient client = HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1).connectTimeout(Duration.ofSeconds(10)).build();
    private final String url;
    private final String token;

    ModelClient(String endpoint, String model, String version, String token) {
        String path = endpoint + "/v2/models/" + escaped(model);
        this.url = version.isEmpty() ? path : path + "/versions/" + escaped(version);
        this.token = token;
    }

    /** An answer that is not 200. */
    static final class Refusal extends IOException {
        private static final long serialVersionUID = 1L;
        final int status;
        final long retryAfterMs;

        Refusal(int status, String message, long retryAfterMs) {
            super(message);
            this.status = status;
            this.retryAfterMs = retryAfterMs;
        }
    }

    /** Tensor of the model; -1 is an open axis. */
    record Spec(String name, String datatype, int[] shape) {}

    /**
     * The model, whose shapes lack the axis of rows.
     *
     * @param hasRows True if requests have an axis of rows.
     * @param mayMeet True if rows of strangers may share a request.
     */
    record Signature(List<Spec> inputs, List<Spec> outputs, boolean hasRows, boolean mayMeet) {}

    /** Tensor of a request or answer. */
    record Tensor(String name, String datatype, int[] shape, byte[] data) {}

    /** Returns the signature, as this gateway or another server describes it. */
    Signature signature(Duration timeout) throws IOException, InterruptedException {
        JsonNode model = get("", timeout);
        JsonNode config = get("/config", timeout);
        String company = config.path("parameters").path("row_company").path("string_value")
                .asText(config.path("max_batch_size").asInt() > 0 ? "any" : "none");
        boolean hasRows = !company.equals("none");
        return new Signature(
                specs(model.path("inputs"), hasRows), specs(model.path("outputs"), hasRows), hasRows, company.equals("any"));
    }

    /** Returns the outputs by name, or a Refusal. */
    CompletableFuture<Map<String, Tensor>> infer(List<Tensor> inputs, List<String> outputs, Duration timeout) {
        ObjectNode head = JSON.createObjectNode();
        head.putObject("parameters").put("timeout", timeout.toNanos() / 1000);
        ArrayNode described = head.putArray("inputs");
        int size = 0;
        for (Tensor tensor : inputs) {
            ObjectNode one = described.addObject().put("name", tensor.name).put("datatype", tensor.datatype);
            ArrayNode shape = one.putArray("shape");
            for (int axis : tensor.shape) {
                shape.add(axis);
            }
            one.putObject("parameters").put("binary_data_size", tensor.data.length);
            size += tensor.data.length;
        }
        ArrayNode asked = head.putArray("outputs");
        for (String name : outputs) {
            asked.addObject().put("name", name).putObject("parameters").put("binary_data", true);
        }
        byte[] json = head.toString().getBytes(StandardCharsets.UTF_8);
        ByteArrayOutputStream body = new ByteArrayOutputStream(json.length + size);
        body.writeBytes(json);
        for (Tensor tensor : inputs) {
            body.writeBytes(tensor.data);
        }
        HttpRequest request = request("/infer", timeout)
                .header("Content-Type", "application/octet-stream")
                .header(LENGTH, Integer.toString(json.length))
                .POST(HttpRequest.BodyPublishers.ofByteArray(body.toByteArray()))
                .build();
        return client.sendAsync(request, HttpResponse.BodyHandlers.ofByteArray()).thenCompose(response -> {
            try {
                return CompletableFuture.completedFuture(read(response));
            } catch (IOException error) {
                return CompletableFuture.failedFuture(error);
            }
        });
    }

    private static Map<String, Tensor> read(HttpResponse<byte[]> response) throws IOException {
        checked(response);
        byte[] body = response.body();
        int at = response.headers().firstValue(LENGTH).map(Integer::parseInt).orElse(body.length);
        Map<String, Tensor> tensors = new HashMap<>();
        for (JsonNode output : JSON.readTree(body, 0, at).path("outputs")) {
            int size = output.path("parameters").path("binary_data_size").asInt();
            byte[] data = new byte[size];
            ByteBuffer.wrap(body, at, size).get(data);
            at += size;
            String name = output.path("name").asText();
            tensors.put(name, new Tensor(name, output.path("datatype").asText(), axes(output), data));
        }
        return tensors;
    }

    private JsonNode get(String path, Duration timeout) throws IOException, InterruptedException {
        HttpResponse<byte[]> response =
                client.send(request(path, timeout).build(), HttpResponse.BodyHandlers.ofByteArray());
        checked(response);
        return JSON.readTree(response.body());
    }

    private HttpRequest.Builder request(String path, Duration timeout) {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + path)).timeout(timeout);
        return token.isEmpty() ? request : request.header("Authorization", "Bearer " + token);
    }

    private static void checked(HttpResponse<byte[]> response) throws Refusal {
        if (response.statusCode() == OK) {
            return;
        }
        String message = new String(response.body(), StandardCharsets.UTF_8);
        try {
            message = JSON.readTree(message).path("error").asText(message);
        } catch (IOException error) {
            // Not of a gateway.
        }
        double seconds = response.headers().firstValue("Retry-After").map(ModelClient::seconds).orElse(0.0);
        throw new Refusal(response.statusCode(), response.statusCode() + " " + message, (long) (seconds * 1000));
    }

    private static double seconds(String text) {
        try {
            return Double.parseDouble(text);
        } catch (NumberFormatException error) {
            return 0;
        }
    }

    private static List<Spec> specs(JsonNode tensors, boolean hasRows) {
        List<Spec> specs = new ArrayList<>();
        for (JsonNode tensor : tensors) {
            int[] axes = axes(tensor);
            int[] row = hasRows ? java.util.Arrays.copyOfRange(axes, 1, axes.length) : axes;
            specs.add(new Spec(tensor.path("name").asText(), tensor.path("datatype").asText(), row));
        }
        return specs;
    }

    private static int[] axes(JsonNode tensor) {
        JsonNode shape = tensor.path("shape");
        int[] axes = new int[shape.size()];
        for (int index = 0; index < axes.length; index++) {
            axes[index] = shape.get(index).asInt();
        }
        return axes;
    }

    private static String escaped(String name) {
        return URLEncoder.encode(name, StandardCharsets.UTF_8).replace("+", "%20");
    }
}
