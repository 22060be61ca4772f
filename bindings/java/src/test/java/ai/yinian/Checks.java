package ai.yinian;

import java.util.List;
import java.util.function.BooleanSupplier;

/** What the tests share. */
final class Checks {
    static final String MODEL = System.getenv("YINIAN_TEST_MODEL");
    static final String TEXT = "🦊\0é 一";

    private Checks() {}

    interface Body {
        void run() throws Exception;
    }

    static void check(boolean ok, Object... context) {
        if (!ok) {
            throw new AssertionError(List.of(context).toString());
        }
    }

    static YinianException fails(Body body) throws Exception {
        try {
            body.run();
        } catch (YinianException e) {
            return e;
        }
        throw new AssertionError("nothing was thrown");
    }

    static void until(BooleanSupplier condition, Object... context) throws InterruptedException {
        for (int ms = 0; !condition.getAsBoolean(); ms++) {
            check(ms < 60_000, context);
            Thread.sleep(1);
        }
    }

    static Engine open(String model) {
        return Engine.open(config(model, ""));
    }

    /** {@code more}: further keys, each with a comma in front. */
    static String config(String model, String more) {
        return "{\"model\": \"" + model + "\", \"log_level\": \"off\"" + more + "}";
    }

    static Request endless() {
        return Request.prompt("hello").maxTokens(30000).ignoreEos();
    }

    static Request shortRequest(int i) {
        return Request.prompt("prompt " + i).maxTokens(40 + i).ignoreEos();
    }

    static String read(Generation g) {
        StringBuilder text = new StringBuilder();
        g.forEachRemaining(chunk -> text.append(chunk.text()));
        return text.toString();
    }

    static void waitIdle(Engine engine) throws InterruptedException {
        until(() -> {
            Stats s = engine.stats();
            return s.waiting() + s.running() == 0 && s.blocksFree() == s.blocksTotal() && engine.openRequests() == 0;
        }, "not idle", engine.stats(), engine.openRequests());
    }
}
