package ai.yinian.server;

import ai.yinian.Engine;
import ai.yinian.EngineState;
import ai.yinian.YinianException;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executor;
import java.util.concurrent.atomic.AtomicInteger;

/** The routes. */
final class Server {
    /** Makes a job of a body, for the model that is served. */
    private interface Parser {
        Job parse(byte[] body, String model) throws ApiError;
    }

    private static final Map<String, String> METHODS = Map.of("/v1/chat/completions", "POST", "/v1/completions", "POST",
        "/v1/models", "GET", "/health", "GET", "/metrics", "GET", "/", "GET");

    private final Engine engine;
    /** At /; null is none. */
    private final byte[] page;
    private final long started = System.currentTimeMillis() / 1000;
    private final AtomicInteger open = new AtomicInteger();
    /** Null while it loads. */
    private volatile Model model;
    private volatile boolean draining;

    Server(Engine engine, byte[] page) {
        this.engine = engine;
        this.page = page;
    }

    void loaded(Model model) {
        this.model = model;
    }

    void begun() {
        open.incrementAndGet();
    }

    void ended() {
        open.decrementAndGet();
    }

    void serve(Connection.Incoming request, Exchange exchange, Executor loop) {
        String method = METHODS.get(request.path());
        try {
            if (method == null || request.path().equals("/") && page == null) {
                exchange.fail(ApiError.http(404, "there is nothing at " + request.path()));
            } else if (!method.equals(request.method()) && !(method.equals("GET") && request.method().equals("HEAD"))) {
                exchange.failMethod(ApiError.http(405, request.path() + " takes " + method), method);
            } else {
                switch (request.path()) {
                    case "/v1/chat/completions" -> generate(request, exchange, loop, Job::chat);
                    case "/v1/completions" -> generate(request, exchange, loop, Job::completion);
                    case "/v1/models" -> models(exchange);
                    case "/health" -> health(exchange);
                    case "/metrics" -> exchange.text(engine.metrics());
                    default -> exchange.page(page);
                }
            }
        } catch (ApiError | RuntimeException e) {
            exchange.fail(ApiError.of(e));
        }
    }

    private Model ready() throws ApiError {
        if (model == null) {
            throw ApiError.unavailable("the model still loads");
        }
        return model;
    }

    private void models(Exchange exchange) throws ApiError {
        Map<String, Object> one = new LinkedHashMap<>();
        one.put("id", ready().name());
        one.put("object", "model");
        one.put("created", started);
        one.put("owned_by", "yinian");
        exchange.answer(200, Map.of("object", "list", "data", List.of(one)));
    }

    private void health(Exchange exchange) {
        EngineState state = engine.stats().state();
        if (draining || state == EngineState.DRAINING) {
            exchange.answer(503, Map.of("status", "draining"));
        } else if (state == EngineState.FAILED) {
            exchange.answer(503, Map.of("status", "failed"));
        } else if (model == null) {
            exchange.answer(503, Map.of("status", "loading"));
        } else {
            exchange.answer(200, Map.of("status", "ok"));
        }
    }

    private void generate(Connection.Incoming request, Exchange exchange, Executor loop, Parser parser) throws ApiError {
        if (draining) {
            throw ApiError.unavailable("the server is draining");
        }
        Model served = ready();
        Job job = parser.parse(request.body(), served.name());
        job.timeout(request.timeout());
        Answer answer = new Answer(job, served, exchange);
        // Everything of the answer runs on the connection's loop.
        engine.publisher(job.request(), loop, answer::ended).subscribe(answer);
    }

    /** While requests finish, others are told to go elsewhere. True when everything was answered in time. */
    boolean drain(Duration patience) throws InterruptedException {
        draining = true;
        boolean finished = true;
        try {
            finished = engine.drain(patience);
        } catch (YinianException e) {
            System.err.println(e.getMessage());
        }
        if (!finished) {
            System.err.println("what still ran after " + patience.toSeconds() + " s is cancelled");
        }
        engine.close();
        long end = System.nanoTime() + Duration.ofSeconds(10).toNanos();
        while (open.get() > 0 && System.nanoTime() < end) {
            Thread.sleep(1);
        }
        return finished;
    }
}
