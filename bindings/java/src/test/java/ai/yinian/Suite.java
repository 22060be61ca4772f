package ai.yinian;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;

/**
 * The tests, which need no framework: every public static method without parameters of these classes is one. Run as a program
 * (arguments: parts of names), it prints "ok", and nothing else.
 */
public final class Suite {
    private static final Class<?>[] CLASSES = {EngineTest.class, FeatureTest.class, PublisherTest.class, VirtualThreadTest.class, SoakTest.class};

    private Suite() {}

    /** A test by its name. */
    public record Case(String name, Method method) {
        /** Runs it. */
        public void run() throws Exception {
            try {
                method.invoke(null);
            } catch (InvocationTargetException e) {
                throw new AssertionError(name, e.getCause());
            }
        }

        @Override
        public String toString() {
            return name;
        }
    }

    /** All tests. */
    public static List<Case> cases() {
        List<Case> found = new ArrayList<>();
        for (Class<?> c : CLASSES) {
            Method[] methods = c.getDeclaredMethods();
            Arrays.sort(methods, Comparator.comparing(Method::getName));
            for (Method m : methods) {
                if (Modifier.isPublic(m.getModifiers()) && Modifier.isStatic(m.getModifiers()) && m.getParameterCount() == 0) {
                    found.add(new Case(c.getSimpleName() + "." + m.getName(), m));
                }
            }
        }
        return found;
    }

    /** Whether the tests see their own failures: assertions are on, and a false check throws. */
    private static void checkChecks() {
        try {
            Checks.check(false);
        } catch (AssertionError expected) {
            return;
        }
        throw new IllegalStateException("a failed check passes");
    }

    /** Before any virtual thread: one carrier for all, so that one which held it while it waits would stop the others. */
    public static void prepare() {
        System.setProperty("jdk.virtualThreadScheduler.parallelism", "1");
        System.setProperty("jdk.virtualThreadScheduler.maxPoolSize", "1");
    }

    public static void main(String[] args) throws Exception {
        prepare();
        checkChecks();
        boolean timed = System.getenv("YINIAN_TEST_TIMES") != null;
        int ran = 0;
        int failed = 0;
        for (Case c : cases()) {
            if (args.length == 0 || Arrays.stream(args).anyMatch(c.name()::contains)) {
                long began = System.nanoTime();
                try {
                    c.run();
                } catch (AssertionError e) {
                    e.printStackTrace();
                    failed++;
                }
                ran++;
                if (timed) {
                    System.err.printf("%6d ms  %s%n", (System.nanoTime() - began) / 1_000_000, c.name());
                }
            }
        }
        Checks.check(ran > 0, "no test has such a name");
        Checks.check(failed == 0, failed + " tests failed");
        System.out.println("ok");
    }
}
