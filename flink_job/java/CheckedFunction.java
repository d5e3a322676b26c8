package anabranch;

import java.util.List;
import java.util.Optional;
import java.util.stream.Collectors;
import org.apache.flink.table.catalog.DataTypeFactory;
import org.apache.flink.table.functions.FunctionDefinition;
import org.apache.flink.table.functions.python.PythonEnv;
import org.apache.flink.table.functions.python.PythonFunctionKind;
import org.apache.flink.table.functions.python.PythonScalarFunction;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.inference.ArgumentCount;
import org.apache.flink.table.types.inference.CallContext;
import org.apache.flink.table.types.inference.ConstantArgumentCount;
import org.apache.flink.table.types.inference.InputTypeStrategy;
import org.apache.flink.table.types.inference.Signature;
import org.apache.flink.table.types.inference.TypeInference;
import org.apache.flink.table.types.logical.ArrayType;
import org.apache.flink.table.types.logical.LogicalType;
import org.apache.flink.table.types.logical.LogicalTypeFamily;
import org.apache.flink.table.types.logical.LogicalTypeRoot;

/**
 * A Python function whose arguments are checked when a query is planned.
 *
 * <p>A form of a call has a kind for each argument, with commas between them: {@code NUMBER}, {@code TEXT} or
 * {@code BOOLEAN}, with {@code [} for each array around it, or several of these with {@code |} between them.
 */
public final class CheckedFunction extends PythonScalarFunction {
    private static final long serialVersionUID = 1L;

    private final String[] forms;
    private final String expected;
    private final byte[] function;
    private final DataType result;

    public CheckedFunction(
            String name, byte[] function, DataType result, PythonEnv env, String[] forms, String expected) {
        super(name, function, (DataType[]) null, result, PythonFunctionKind.PANDAS, true, false, env);
        this.forms = forms;
        this.expected = expected;
        this.function = function;
        this.result = result;
    }

    @Override
    public TypeInference getTypeInference(DataTypeFactory factory) {
        return TypeInference.newBuilder()
                .inputTypeStrategy(new Arguments())
                .outputTypeStrategy(super.getTypeInference(factory).getOutputTypeStrategy())
                .build();
    }

    /** Needs no class of ours on a TaskManager. */
    private Object writeReplace() {
        return new PythonScalarFunction(
                toString(),
                function,
                (DataType[]) null,
                result,
                getPythonFunctionKind(),
                isDeterministic(),
                takesRowAsInput(),
                getPythonEnv());
    }

    private final class Arguments implements InputTypeStrategy {
        @Override
        public ArgumentCount getArgumentCount() {
            return ConstantArgumentCount.any();
        }

        @Override
        public Optional<List<DataType>> inferInputTypes(CallContext call, boolean throwsOnFailure) {
            List<DataType> types = call.getArgumentDataTypes();
            for (String form : forms) {
                if (fits(form.split(","), types)) {
                    return Optional.of(types);
                }
            }
            String came = types.stream().map(type -> type.getLogicalType().copy(true).asSummaryString())
                    .collect(Collectors.joining(", "));
            return call.fail(
                    throwsOnFailure, "%s: function got (%s), expected %s: correct the query",
                    CheckedFunction.this, came, expected);
        }

        @Override
        public List<Signature> getExpectedSignatures(FunctionDefinition definition) {
            return List.of(Signature.of(Signature.Argument.of(expected)));
        }
    }

    private static boolean fits(String[] kinds, List<DataType> types) {
        if (kinds.length != types.size()) {
            return false;
        }
        for (int number = 0; number < kinds.length; number++) {
            boolean isOne = false;
            for (String kind : kinds[number].split("\\|")) {
                isOne |= fits(kind, types.get(number).getLogicalType());
            }
            if (!isOne) {
                return false;
            }
        }
        return true;
    }

    private static boolean fits(String kind, LogicalType type) {
        if (type.is(LogicalTypeRoot.NULL)) {
            return true;
        }
        if (kind.startsWith("[")) {
            return type instanceof ArrayType && fits(kind.substring(1), ((ArrayType) type).getElementType());
        }
        switch (kind) {
            case "BOOLEAN":
                return type.is(LogicalTypeRoot.BOOLEAN);
            case "TEXT":
                return type.is(LogicalTypeFamily.CHARACTER_STRING) || type.is(LogicalTypeFamily.BINARY_STRING);
            default:
                return type.is(LogicalTypeFamily.NUMERIC) || type.is(LogicalTypeRoot.BOOLEAN);
        }
    }
}
