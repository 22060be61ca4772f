package consumer;

import ai.yinian.Engine;
import ai.yinian.Generation;
import ai.yinian.Request;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

/** Prints how each of the models that are named goes on. */
public final class Main {
    private Main() {}

    /** The arguments are models. */
    public static void main(String[] models) {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        for (String model : models) {
            Request request = Request.prompt("Once upon a time").maxTokens(48).temperature(0).ignoreEos();
            try (Engine engine = Engine.open("{\"model\": \"" + model + "\"}"); Generation answer = engine.generate(request)) {
                answer.forEachRemaining(chunk -> out.print(chunk.text()));
            }
        }
        out.flush();
    }
}
