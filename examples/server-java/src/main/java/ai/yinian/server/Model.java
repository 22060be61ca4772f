package ai.yinian.server;

import ai.yinian.Engine;
import ai.yinian.Tokenizer;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/** What is known of a model once it is loaded: its name, and the texts of its tokens, for logprobs. */
record Model(String name, Tokenizer tokenizer, Map<Integer, String> texts) {
    static Model of(Engine engine) throws IOException {
        Map<?, ?> info = Json.object(engine.info().getBytes(StandardCharsets.UTF_8));
        return new Model((String) ((Map<?, ?>) info.get("model")).get("name"), engine.tokenizer(), new ConcurrentHashMap<>());
    }

    String tokenText(int token) {
        return texts.computeIfAbsent(token, tokenizer::show);
    }
}
