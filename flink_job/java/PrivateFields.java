package anabranch;

import java.lang.reflect.Field;

/** Private fields of Beam and PyFlink. */
final class PrivateFields {
    private PrivateFields() {}

    /** Returns a field to read and write. */
    static Field field(Class<?> owner, String name) throws NoSuchFieldException {
        Field field = owner.getDeclaredField(name);
        field.setAccessible(true);
        return field;
    }

    /** Returns the value of a holder's field. */
    static Object valueOf(Class<?> owner, String name, Object holder) throws ReflectiveOperationException {
        return field(owner, name).get(holder);
    }
}
