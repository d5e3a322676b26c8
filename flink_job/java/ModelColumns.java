package anabranch;

import anabranch.ModelClient.Signature;
import anabranch.ModelClient.Spec;
import anabranch.ModelClient.Tensor;
import anabranch.ModelFactory.ModelOptions;
import java.io.ByteArrayOutputStream;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.apache.flink.table.data.ArrayData;
import org.apache.flink.table.data.DecimalData;
import org.apache.flink.table.data.GenericArrayData;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;
import org.apache.flink.table.types.logical.ArrayType;
import org.apache.flink.table.types.logical.DecimalType;
import org.apache.flink.table.types.logical.LogicalType;

/**
 * Turns columns into the tensors of a row, and back.
 *
 * <p>There is a column for each tensor, found by its name in any case, or a column for each element of all tensors, in
 * their order.
 */
final class ModelColumns {
    private static final int SIZE_BYTES = 4;
    private static final int HALF_OVERFLOW = 65_520;

    private final Signature signature;
    private final List<Part> inputs;
    private final List<Part> outputs;
    private final RowData.FieldGetter[] getters;
    private final LogicalType[] inputTypes;
    private final LogicalType[] outputTypes;

    /** A row or an answer that does not fit. */
    static final class Unfit extends Exception {
        private static final long serialVersionUID = 1L;

        Unfit(String message) {
            super(message);
        }
    }

    /** A tensor and its columns: one for all of it, or one for each element. */
    private record Part(Spec spec, int[] columns, boolean isWhole) {}

    ModelColumns(ModelOptions options, Signature signature) {
        this.signature = signature;
        this.inputTypes = options.inputTypes();
        this.outputTypes = options.outputTypes();
        this.inputs = parts(signature.inputs(), options.inputNames(), inputTypes, "INPUT", false);
        this.outputs = parts(signature.outputs(), options.outputNames(), outputTypes, "OUTPUT", true);
        this.getters = new RowData.FieldGetter[inputTypes.length];
        for (int index = 0; index < getters.length; index++) {
            getters[index] = RowData.createFieldGetter(inputTypes[index], index);
        }
    }

    /** Returns the names of the outputs that have columns. */
    List<String> outputNames() {
        return outputs.stream().map(part -> part.spec.name()).toList();
    }

    /** Returns the result of a row that has none. */
    RowData nulls() {
        return new GenericRowData(outputTypes.length);
    }

    /** Returns the tensors of a row without the axis of rows; null for a row with NULL or NaN. */
    List<Tensor> read(RowData row) throws Unfit {
        List<Tensor> tensors = new ArrayList<>(inputs.size());
        for (Part part : inputs) {
            Writer writer = new Writer(part.spec);
            for (int column : part.columns) {
                Object value = getters[column].getFieldOrNull(row);
                if (!writer.write(value, inputTypes[column], 0)) {
                    return null;
                }
            }
            int[] shape = part.isWhole ? writer.shape() : part.spec.shape();
            check(part.spec, shape);
            tensors.add(new Tensor(part.spec.name(), part.spec.datatype(), shape, writer.bytes()));
        }
        return tensors;
    }

    /** Returns the tensors of a request for rows of equal shapes. */
    List<Tensor> stack(List<List<Tensor>> rows) {
        List<Tensor> stacked = new ArrayList<>(inputs.size());
        for (int index = 0; index < inputs.size(); index++) {
            Tensor first = rows.get(0).get(index);
            if (!signature.hasRows()) {
                stacked.add(first);
                continue;
            }
            ByteArrayOutputStream data = new ByteArrayOutputStream(rows.size() * first.data().length);
            for (List<Tensor> row : rows) {
                data.writeBytes(row.get(index).data());
            }
            int[] shape = new int[first.shape().length + 1];
            shape[0] = rows.size();
            System.arraycopy(first.shape(), 0, shape, 1, first.shape().length);
            stacked.add(new Tensor(first.name(), first.datatype(), shape, data.toByteArray()));
        }
        return stacked;
    }

    /** Returns the columns of one row of an answer. */
    RowData write(Map<String, Tensor> answer, int row, int rows) throws Unfit {
        GenericRowData columns = new GenericRowData(outputTypes.length);
        for (Part part : outputs) {
            Tensor tensor = answer.get(part.spec.name());
            if (tensor == null || (signature.hasRows() && (tensor.shape().length == 0 || tensor.shape()[0] != rows))) {
                throw new Unfit("the answer lacks rows of output " + part.spec.name());
            }
            int[] shape = signature.hasRows()
                    ? Arrays.copyOfRange(tensor.shape(), 1, tensor.shape().length) : tensor.shape();
            Reader reader = new Reader(tensor, row * elements(shape));
            try {
                if (part.isWhole) {
                    int column = part.columns[0];
                    columns.setField(column, reader.read(outputTypes[column], shape, 0));
                } else {
                    for (int column : part.columns) {
                        columns.setField(column, reader.element(outputTypes[column]));
                    }
                }
            } catch (ArithmeticException | BufferUnderflowException error) {
                throw new Unfit("output " + part.spec.name() + " does not fit its column: " + error.getMessage());
            }
        }
        return columns;
    }

    private static List<Part> parts(
            List<Spec> specs, String[] names, LogicalType[] types, String clause, boolean maySkip) {
        List<Part> parts = new ArrayList<>();
        int total = 0;
        boolean isClosed = true;
        for (Spec spec : specs) {
            isClosed &= Arrays.stream(spec.shape()).allMatch(axis -> axis >= 0);
            total += elements(spec.shape());
        }
        List<String> tensors = specs.stream().map(spec -> spec.name().toLowerCase()).toList();
        boolean areNamed = Arrays.stream(names).allMatch(name -> tensors.contains(name.toLowerCase()))
                && (maySkip || names.length == specs.size());
        if (areNamed || names.length == specs.size()) {
            for (int column = 0; column < names.length; column++) {
                Spec spec = specs.get(areNamed ? tensors.indexOf(names[column].toLowerCase()) : column);
                parts.add(new Part(spec, new int[] {column}, true));
            }
        } else if (isClosed && names.length == total) {
            int column = 0;
            for (Spec spec : specs) {
                int[] columns = new int[elements(spec.shape())];
                for (int index = 0; index < columns.length; index++) {
                    columns[index] = column++;
                }
                parts.add(new Part(spec, columns, false));
            }
        } else {
            throw new IllegalArgumentException(clause + " has " + names.length + " columns, expected " + specs.size()
                    + " for " + specs.stream().map(Spec::name).toList()
                    + (isClosed ? ", or " + total + " for the elements of a row" : "") + ": correct CREATE MODEL");
        }
        for (Part part : parts) {
            for (int column : part.columns) {
                check(part, names[column], types[column], clause);
            }
        }
        return parts;
    }

    private static void check(Part part, String name, LogicalType type, String clause) {
        int depth = 0;
        LogicalType leaf = type;
        for (; leaf instanceof ArrayType array; depth++) {
            leaf = array.getElementType();
        }
        boolean isText = part.spec.datatype().equals("BYTES");
        boolean fits = switch (leaf.getTypeRoot()) {
            case CHAR, VARCHAR, BINARY, VARBINARY -> isText;
            case BOOLEAN -> part.spec.datatype().equals("BOOL");
            case TINYINT, SMALLINT, INTEGER, BIGINT, FLOAT, DOUBLE, DECIMAL ->
                !isText && !part.spec.datatype().equals("BOOL");
            default -> false;
        };
        int[] shape = part.spec.shape();
        boolean isScalar = depth == 0 && (!part.isWhole || elements(shape) == 1);
        if (!fits || !(isScalar || (part.isWhole && depth == shape.length))) {
            throw new IllegalArgumentException(clause + " column " + name + " has type " + type.asSummaryString()
                    + ", expected one for " + part.spec.datatype() + " of shape " + Arrays.toString(shape)
                    + " (tensor " + part.spec.name() + "): correct CREATE MODEL");
        }
    }

    private static void check(Spec spec, int[] shape) throws Unfit {
        int[] expected = spec.shape();
        boolean fits = shape.length == expected.length;
        for (int axis = 0; fits && axis < shape.length; axis++) {
            fits = expected[axis] < 0 || expected[axis] == shape[axis];
        }
        if (!fits) {
            throw new Unfit("input " + spec.name() + " has shape " + Arrays.toString(shape) + ", expected "
                    + Arrays.toString(expected));
        }
    }

    private static int elements(int[] shape) {
        int elements = 1;
        for (int axis : shape) {
            elements *= Math.max(axis, 0);
        }
        return elements;
    }

    private static int width(String datatype) {
        return switch (datatype) {
            case "BOOL", "INT8", "UINT8" -> 1;
            case "INT16", "UINT16", "FP16" -> 2;
            case "INT32", "UINT32", "FP32" -> 4;
            case "INT64", "UINT64", "FP64" -> 8;
            default -> 0;
        };
    }

    /** Writes the elements of one tensor, and notes its shape. */
    private static final class Writer {
        private final Spec spec;
        private final int[] axes;
        private int depth = -1;
        private byte[] data = new byte[64];
        private int size;

        Writer(Spec spec) {
            this.spec = spec;
            this.axes = new int[Math.max(1, spec.shape().length)];
            Arrays.fill(axes, -1);
        }

        /** Returns the shape of an array; that of the model for a single element. */
        int[] shape() {
            if (depth > 0 || spec.shape().length == 0) {
                return Arrays.copyOf(axes, Math.max(depth, 0));
            }
            int[] ones = new int[spec.shape().length];
            Arrays.fill(ones, 1);
            return ones;
        }

        byte[] bytes() {
            return Arrays.copyOf(data, size);
        }

        /** Returns false for NULL and NaN. */
        boolean write(Object value, LogicalType type, int level) throws Unfit {
            if (value == null) {
                return false;
            }
            if (!(type instanceof ArrayType array)) {
                depth = level;
                return put(value);
            }
            ArrayData values = (ArrayData) value;
            int length = values.size();
            if (axes[level] >= 0 && axes[level] != length) {
                throw new Unfit("input " + spec.name() + " has arrays of " + axes[level] + " and of " + length
                        + " elements side by side");
            }
            axes[level] = length;
            depth = Math.max(depth, level + 1);
            LogicalType elementType = array.getElementType();
            ArrayData.ElementGetter getter = ArrayData.createElementGetter(elementType);
            for (int index = 0; index < length; index++) {
                if (!write(getter.getElementOrNull(values, index), elementType, level + 1)) {
                    return false;
                }
            }
            return true;
        }

        private boolean put(Object value) throws Unfit {
            if (value instanceof Float || value instanceof Double) {
                double number = ((Number) value).doubleValue();
                if (Double.isNaN(number)) {
                    return false;
                }
            }
            switch (spec.datatype()) {
                case "BYTES" -> {
                    byte[] text = value instanceof StringData string ? string.toBytes() : (byte[]) value;
                    room(SIZE_BYTES + text.length).putInt(text.length).put(text);
                }
                case "BOOL" -> room(1).put((byte) ((Boolean) value ? 1 : 0));
                case "FP64" -> room(8).putDouble(decimal(value));
                case "FP32" -> room(4).putFloat((float) decimal(value));
                case "FP16" -> room(2).putShort(toHalf((float) decimal(value)));
                case "INT8" -> room(1).put((byte) whole(value, 8, true));
                case "UINT8" -> room(1).put((byte) whole(value, 8, false));
                case "INT16" -> room(2).putShort((short) whole(value, 16, true));
                case "UINT16" -> room(2).putShort((short) whole(value, 16, false));
                case "INT32" -> room(4).putInt((int) whole(value, 32, true));
                case "UINT32" -> room(4).putInt((int) whole(value, 32, false));
                case "INT64" -> room(8).putLong(whole(value, 64, true));
                case "UINT64" -> room(8).putLong(whole(value, 64, false));
                default -> throw new Unfit("input " + spec.name() + " has datatype " + spec.datatype());
            }
            return true;
        }

        private ByteBuffer room(int bytes) {
            if (size + bytes > data.length) {
                data = Arrays.copyOf(data, Math.max(2 * data.length, size + bytes));
            }
            size += bytes;
            return ByteBuffer.wrap(data, size - bytes, bytes).order(ByteOrder.LITTLE_ENDIAN);
        }

        private static double decimal(Object value) {
            return value instanceof DecimalData decimal
                    ? decimal.toBigDecimal().doubleValue() : ((Number) value).doubleValue();
        }

        private long whole(Object value, int bits, boolean isSigned) throws Unfit {
            BigInteger number;
            try {
                if (value instanceof Long || value instanceof Integer || value instanceof Short || value instanceof Byte) {
                    number = BigInteger.valueOf(((Number) value).longValue());
                } else if (value instanceof DecimalData decimal) {
                    number = decimal.toBigDecimal().toBigIntegerExact();
                } else {
                    number = new BigDecimal(((Number) value).doubleValue()).toBigIntegerExact();
                }
            } catch (ArithmeticException | NumberFormatException error) {
                throw new Unfit("input " + spec.name() + " has " + value + ", expected " + spec.datatype());
            }
            boolean fits = isSigned ? number.bitLength() < bits : number.signum() >= 0 && number.bitLength() <= bits;
            if (!fits) {
                throw new Unfit("input " + spec.name() + " has " + number + ", expected " + spec.datatype());
            }
            return number.longValue();
        }
    }

    /** Reads the elements of one tensor from one row on. */
    private static final class Reader {
        private final String datatype;
        private final ByteBuffer data;

        Reader(Tensor tensor, int skipped) throws Unfit {
            datatype = tensor.datatype();
            data = ByteBuffer.wrap(tensor.data()).order(ByteOrder.LITTLE_ENDIAN);
            int width = width(datatype);
            try {
                if (width > 0) {
                    data.position(skipped * width);
                } else {
                    for (int index = 0; index < skipped; index++) {
                        data.position(data.position() + SIZE_BYTES + data.getInt(data.position()));
                    }
                }
            } catch (IllegalArgumentException | IndexOutOfBoundsException error) {
                throw new Unfit("output " + tensor.name() + " has too few bytes");
            }
        }

        Object read(LogicalType type, int[] shape, int level) {
            if (!(type instanceof ArrayType array)) {
                return element(type);
            }
            LogicalType elementType = array.getElementType();
            if (level + 1 == shape.length && datatype.equals("FP32") && elementType.getTypeRoot().name().equals("FLOAT")) {
                float[] values = new float[shape[level]];
                data.asFloatBuffer().get(values);
                data.position(data.position() + values.length * Float.BYTES);
                return new GenericArrayData(values);
            }
            Object[] values = new Object[shape[level]];
            for (int index = 0; index < values.length; index++) {
                values[index] = read(elementType, shape, level + 1);
            }
            return new GenericArrayData(values);
        }

        Object element(LogicalType type) {
            if (datatype.equals("BYTES")) {
                byte[] text = new byte[data.getInt()];
                data.get(text);
                boolean isText = switch (type.getTypeRoot()) {
                    case CHAR, VARCHAR -> true;
                    default -> false;
                };
                return isText ? StringData.fromBytes(text) : text;
            }
            if (datatype.equals("BOOL")) {
                return data.get() != 0;
            }
            BigDecimal exact = null;
            double number = 0;
            switch (datatype) {
                case "FP64" -> number = data.getDouble();
                case "FP32" -> number = data.getFloat();
                case "FP16" -> number = fromHalf(data.getShort());
                case "INT8" -> exact = BigDecimal.valueOf(data.get());
                case "UINT8" -> exact = BigDecimal.valueOf(Byte.toUnsignedInt(data.get()));
                case "INT16" -> exact = BigDecimal.valueOf(data.getShort());
                case "UINT16" -> exact = BigDecimal.valueOf(Short.toUnsignedInt(data.getShort()));
                case "INT32" -> exact = BigDecimal.valueOf(data.getInt());
                case "UINT32" -> exact = BigDecimal.valueOf(Integer.toUnsignedLong(data.getInt()));
                case "UINT64" -> exact = new BigDecimal(new BigInteger(Long.toUnsignedString(data.getLong())));
                default -> exact = BigDecimal.valueOf(data.getLong());
            }
            return converted(type, exact, number);
        }

        private static Object converted(LogicalType type, BigDecimal exact, double number) {
            switch (type.getTypeRoot()) {
                case FLOAT:
                    return exact == null ? (float) number : exact.floatValue();
                case DOUBLE:
                    return exact == null ? number : exact.doubleValue();
                default:
            }
            if (exact == null && !Double.isFinite(number)) {
                throw new ArithmeticException(number + " in a column of " + type.asSummaryString());
            }
            BigDecimal value = exact == null ? new BigDecimal(number) : exact;
            return switch (type.getTypeRoot()) {
                case TINYINT -> value.byteValueExact();
                case SMALLINT -> value.shortValueExact();
                case INTEGER -> value.intValueExact();
                case BIGINT -> value.longValueExact();
                default -> {
                    DecimalType decimal = (DecimalType) type;
                    DecimalData data = DecimalData.fromBigDecimal(value, decimal.getPrecision(), decimal.getScale());
                    if (data == null) {
                        throw new ArithmeticException(value + " in a column of " + type.asSummaryString());
                    }
                    yield data;
                }
            };
        }
    }

    private static float fromHalf(short half) {
        int sign = (half & 0x8000) << 16;
        int exponent = (half >>> 10) & 0x1f;
        int fraction = half & 0x3ff;
        if (exponent == 0x1f) {
            return Float.intBitsToFloat(sign | 0x7f800000 | fraction << 13);
        }
        if (exponent == 0) {
            return Math.copySign(fraction * 0x1p-24f, Float.intBitsToFloat(sign | 1));
        }
        return Float.intBitsToFloat(sign | (exponent + 112) << 23 | fraction << 13);
    }

    private static short toHalf(float number) {
        int sign = Float.floatToIntBits(number) >>> 16 & 0x8000;
        float size = Math.abs(number);
        if (size >= HALF_OVERFLOW) {
            return (short) (sign | 0x7c00);
        }
        if (size < 0x1p-14f) {
            return (short) (sign | (int) Math.rint(size * 0x1p24));
        }
        int bits = Float.floatToIntBits(size);
        int rounded = bits + 0xfff + (bits >>> 13 & 1);
        return (short) (sign | rounded - (112 << 23) >>> 13);
    }
}
