package ai.yinian;

import static ai.yinian.Checks.MODEL;
import static ai.yinian.Checks.TEXT;
import static ai.yinian.Checks.check;
import static ai.yinian.Checks.config;
import static ai.yinian.Checks.endless;
import static ai.yinian.Checks.fails;
import static ai.yinian.Checks.open;
import static ai.yinian.Checks.read;
import static ai.yinian.Checks.until;

import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** What there is beside text: choices, logprobs, what can be observed, loading and draining. */
final class FeatureTest {
    private FeatureTest() {}

    public static void severalChoicesEndEachByItself() {
        try (Engine engine = open(MODEL)) {
            Request r = Request.prompt("Once upon a time").choices(4).temperature(1.2).seed(7).maxTokens(30);
            Result whole = engine.complete(r).join();
            Set<String> texts = new HashSet<>();
            for (int i = 0; i < 4; i++) {
                Chunk choice = whole.choices().get(i);
                check(choice.choice() == i && choice.finish().isWhole() && !choice.text().isEmpty(), choice);
                texts.add(choice.text());
            }
            check(texts.size() == 4 && whole.choices().size() == 4, texts);
            StringBuilder[] streamed = {new StringBuilder(), new StringBuilder(), new StringBuilder(), new StringBuilder()};
            Finish[] ends = {Finish.NONE, Finish.NONE, Finish.NONE, Finish.NONE};
            Generation g = engine.generate(r);
            while (g.hasNext()) {
                Chunk c = g.next();
                streamed[c.choice()].append(c.text());
                check(ends[c.choice()] == Finish.NONE, "output behind the end", c);
                ends[c.choice()] = c.finish();
            }
            for (int i = 0; i < 4; i++) {
                check(whole.choices().get(i).text().contentEquals(streamed[i]) && whole.choices().get(i).finish() == ends[i], i, ends[i]);
            }
            List<Chunk> finals = new ArrayList<>();
            engine.generate(r.finalOnly()).forEachRemaining(finals::add);
            check(finals.size() == 4 && finals.stream().allMatch(c -> c.finish().isWhole()), finals);
        }
    }

    public static void logprobsBelongToTheirTokens() {
        try (Engine engine = open(MODEL); Tokenizer tokenizer = engine.tokenizer()) {
            Request r = Request.prompt("Once upon a time").temperature(0).maxTokens(12).ignoreEos().logprobs(3);
            Chunk whole = engine.complete(r).join().choices().get(0);
            check(whole.tokens().length == 12 && whole.logprobs().size() == 12, whole);
            int end = 0;
            for (int i = 0; i < 12; i++) {
                Logprob p = whole.logprobs().get(i);
                check(p.token() == whole.tokens()[i] && p.logprob() <= 0 && p.top().size() == 3, p);
                check(p.rank() == 1 && p.top().get(0).token() == p.token() && p.top().get(0).logprob() == p.logprob(), p);
                check(p.top().get(1).rank() == 2 && p.top().get(1).logprob() <= p.logprob(), p);
                String piece = whole.text().substring(end, p.textEnd());
                check(piece.strip().equals(tokenizer.decode(p.token()).strip()), piece, p);
                end = p.textEnd();
            }
            check(end == whole.text().length(), end, whole.text());
            List<Integer> streamed = new ArrayList<>();
            engine.generate(r.logprobs(0)).forEachRemaining(c -> c.logprobs().forEach(p -> streamed.add(p.token())));
            check(streamed.equals(whole.logprobs().stream().map(Logprob::token).toList()), streamed);
        }
    }

    public static void logprobsOfTheMockCountCharsNotBytes() {
        // The mock's tokens are bytes: of a prompt's, none has text; of its letters, each has a char.
        try (Engine engine = open("mock:words")) {
            Chunk c = engine.complete(Request.prompt("x").maxTokens(9).ignoreEos().logprobs(1)).join().choices().get(0);
            for (int i = 0; i < 9; i++) {
                check(c.logprobs().get(i).textEnd() == i + 1, c);
            }
        }
    }

    public static void promptLogprobsComeOnceAndFirst() throws Exception {
        try (Engine engine = open("mock:words")) {
            Request r = Request.prompt("hello").maxTokens(3).ignoreEos().promptLogprobs(2).choices(2);
            List<Logprob> found = new ArrayList<>();
            boolean output = false;
            Generation g = engine.generate(r);
            while (g.hasNext()) {
                Chunk c = g.next();
                check(c.promptLogprobs().isEmpty() || !output && c.choice() == 0, c);
                found.addAll(c.promptLogprobs());
                output |= !c.text().isEmpty();
            }
            check(found.size() == 4 && found.get(0).token() == 'e' && found.get(3).token() == 'o', found);
            check(found.get(0).top().size() == 2 && found.get(0).logprob() < 0, found);
            check(engine.complete(r).join().choices().get(0).promptLogprobs().equals(found));
            check(fails(() -> Request.prompt("x").promptLogprobs(21)).status() == Status.INVALID);
            check(fails(() -> Request.prompt("x").logprobs(-1)).status() == Status.INVALID);
            check(fails(() -> Request.prompt("x").choices(0)).status() == Status.INVALID);
        }
    }

    public static void statsInfoAndMetricsAgree() throws Exception {
        try (Engine engine = Engine.open(config("mock:words", ", \"served_model_name\": \"fox🦊\""))) {
            engine.complete(Checks.shortRequest(2)).join();
            Result toItsEnd = engine.complete(Request.prompt("to the end of its length").maxTokensOfModel()).join();
            check(toItsEnd.finish() == Finish.EOS, toItsEnd);
            until(() -> engine.stats().finished() == 2, engine.stats());
            Stats s = engine.stats();
            check(s.state() == EngineState.READY && s.completionTokens() == 42 + toItsEnd.completionTokens() && s.steps() >= 42, s);
            check(s.promptTokens() == 8 + 24 && s.rejected() == 0 && s.preempted() == 0 && s.prefixHitTokens() >= 0, s);
            check(engine.info().contains("\"fox🦊\""), engine.info());
            check(engine.metrics().contains("{model_name=\"fox🦊\"") || engine.metrics().contains("fox🦊"), engine.metrics());
            check(fails(() -> engine.generate(Request.prompt("x").extraJson("{\"lora\": 1}"))).reason().contains("lora"));
            Result biased = engine.complete(Request.prompt("x").maxTokens(2).extraJson("{\"logit_bias\": {\"97\": 1}}")).join();
            check(biased.finish().isWhole(), biased);
        }
    }

    public static void drainingWaitsForWhatRunsAndRefusesWhatIsNew() throws Exception {
        try (Engine engine = open("mock:words,delay_us=1000")) {
            Generation g = engine.generate(endless().maxTokens(300));
            check(!engine.drain(Duration.ZERO), "it runs still");
            check(engine.stats().state() == EngineState.DRAINING, engine.stats());
            check(fails(() -> engine.generate(endless())).status() == Status.SHUTDOWN);
            check(engine.drain(Duration.ofSeconds(20)));
            check(read(g).length() == 300);
        }
    }

    public static void aModelLoadsInTheBackground() throws Exception {
        Queue<EngineEvent> events = new ConcurrentLinkedQueue<>();
        String slow = config("mock:words,load_ms=200", ", \"async_load\": true");
        try (Engine engine = Engine.open(slow, new Engine.Options().onEvent(events::add))) {
            check(engine.stats().state() == EngineState.LOADING && !engine.ready().isDone(), engine.stats());
            check(fails(engine::tokenizer).status() == Status.BUSY);
            Generation early = engine.generate(Checks.shortRequest(0));
            engine.ready().get(10, TimeUnit.SECONDS);
            check(engine.stats().state() == EngineState.READY && read(early).length() == 40);
            until(() -> events.stream().anyMatch(e -> e.state() == EngineState.READY), events);
            int last = 0;
            for (EngineEvent e : events) {
                check(e.state() != EngineState.LOADING || e.permille() >= last && e.permille() <= 1000, events);
                last = Math.max(last, e.permille());
            }
            check(last > 0, events);
        }
        try (Engine engine = Engine.open(config("mock:words,panic_load=1", ", \"async_load\": true"))) {
            try {
                engine.ready().get(10, TimeUnit.SECONDS);
                throw new AssertionError("a load that panics was ready");
            } catch (java.util.concurrent.ExecutionException e) {
                YinianException why = (YinianException) e.getCause();
                check(why.isUnusable() && why.status() == Status.INTERNAL && !why.reason().isEmpty(), why);
            }
            check(engine.stats().state() == EngineState.FAILED);
        }
        Engine closed = Engine.open(config("mock:words,load_ms=60000", ", \"async_load\": true"));
        var ready = closed.ready();
        Generation waits = closed.generate(endless());
        closed.close();
        check(waits.result().finish() == Finish.CANCELLED, waits.result());
        try {
            ready.join();
            throw new AssertionError("a closed engine was ready");
        } catch (CompletionException e) {
            check(e.getCause() instanceof YinianException, e);
        }
        try (Engine engine = open("mock:words")) {
            check(engine.ready().isDone());
        }
    }

    public static void aListenerThatThrowsIsReportedAndCalledAgain() throws Exception {
        AtomicInteger told = new AtomicInteger();
        AtomicInteger reported = new AtomicInteger();
        Thread.UncaughtExceptionHandler before = Thread.getDefaultUncaughtExceptionHandler();
        Thread.setDefaultUncaughtExceptionHandler((t, e) -> reported.incrementAndGet());
        Engine.Options options = new Engine.Options().onEvent(e -> {
            told.incrementAndGet();
            throw new IllegalStateException("a listener's bug");
        });
        try (Engine engine = Engine.open(config("mock:words,load_ms=50", ", \"async_load\": true"), options)) {
            engine.ready().join();
            until(() -> told.get() > 1 && reported.get() == told.get(), told, reported);
        } finally {
            Thread.setDefaultUncaughtExceptionHandler(before);
        }
    }

    public static void aPlanSaysWhatWouldBeLoaded() throws Exception {
        String plan = Yinian.planMemory(config(MODEL, ""));
        check(plan.startsWith("{") && plan.contains("weights"), plan);
        check(fails(() -> Yinian.planMemory(config("/no/such/model", ""))).status() == Status.NOT_FOUND);
        YinianException typo = fails(() -> Yinian.planMemory("{\"modle\": 1}"));
        check(typo.status() == Status.INVALID && typo.reason().contains("modle"), typo);
    }

    public static void theLibrarySaysWhatItIs() {
        check(Yinian.version().equals("0.1.0"), Yinian.version());
        check(Yinian.buildInfo().contains("\"version\":\"0.1.0\"") && Yinian.buildInfo().contains("cpu"), Yinian.buildInfo());
        for (Status s : Status.values()) {
            check(s.nativeName().equals(s == Status.OK ? "YN_OK" : "YN_E_" + s), s, s.nativeName());
        }
    }

    public static void chatsAreRendered() throws Exception {
        String chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"" + TEXT.replace("\0", "\\u0000") + "\"}]}";
        try (Tokenizer t = Tokenizer.open(MODEL); Engine engine = open(MODEL)) {
            String text = t.renderChat(chat);
            check(text.contains(TEXT), text);
            check(fails(() -> t.renderChat("{\"messages\": [{\"role\": \"fox\"}]}")).status() == Status.INVALID);
            int[] ids = t.encode(text, true);
            check(t.show(ids).length() >= t.decode(ids).length(), t.show(ids));
            Result a = engine.complete(Request.chat(chat).maxTokens(8).temperature(0)).join();
            Result b = engine.complete(Request.prompt(text).noSpecialTokens().maxTokens(8).temperature(0)).join();
            check(a.promptTokens() == b.promptTokens() && a.text().equals(b.text()), a, b);
        }
    }

    public static void logLinesGoWhereTheyAreSent() throws Exception {
        Queue<LogLine> first = new ConcurrentLinkedQueue<>();
        Queue<LogLine> second = new ConcurrentLinkedQueue<>();
        String config = "{\"model\": \"mock:words\", \"log_level\": \"debug\", \"served_model_name\": \"loud\"}";
        try {
            Yinian.logTo(LogLevel.DEBUG, first::add);
            Engine.open(config).close();
            until(() -> first.stream().anyMatch(l -> l.level() == LogLevel.INFO && l.message().contains("loud")), first);
            Yinian.logTo(LogLevel.ERROR, second::add);
            until(() -> readers() == 1, "the reader before is left");
            int before = first.size();
            Engine.open(config).close();
            Yinian.logTo(LogLevel.OFF, null);
            check(first.size() == before && second.isEmpty(), first, second);
        } finally {
            Yinian.logTo(LogLevel.OFF, null);
        }
        until(() -> readers() == 0, "a reader is left");
    }

    private static long readers() {
        return Thread.getAllStackTraces().keySet().stream().filter(t -> t.getName().equals("yinian-log")).count();
    }
}
