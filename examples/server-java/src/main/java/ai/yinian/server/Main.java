package ai.yinian.server;

import ai.yinian.Engine;
import ai.yinian.YinianException;
import io.netty.bootstrap.ServerBootstrap;
import io.netty.channel.Channel;
import io.netty.channel.ChannelOption;
import io.netty.channel.MultiThreadIoEventLoopGroup;
import io.netty.channel.nio.NioIoHandler;
import io.netty.channel.socket.nio.NioServerSocketChannel;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletionException;

/**
 * An HTTP server with OpenAI's API over one model.
 *
 * <pre>{@code
 * cargo build --release && mvn -f bindings/java install && mvn -f examples/server-java package
 * java -jar examples/server-java/target/server-java.jar -model examples/demo_model -addr 127.0.0.1:8000 \
 *     -config '{"max_waiting": 100}' -web examples/web/index.html
 * }</pre>
 *
 * SIGTERM refuses new requests, lets those that run finish, and exits with 0.
 *
 * <p>Started once with {@code -XX:ArchiveClassesAtExit=server.jsa}, asked something and ended, it starts with
 * {@code -XX:SharedArchiveFile=server.jsa} in half the time, and with {@code -XX:TieredStopAtLevel=1}, which makes less of long runs, in
 * less than that.
 */
public final class Main {
    private static final Set<String> OPTIONS = Set.of("-model", "-addr", "-config", "-web", "-drain");
    private static final String USAGE = """
        -model DIR      model directory, or mock:words
        -addr HOST:PORT address to listen on, 127.0.0.1:8000 unless given
        -config JSON    more of the engine's configuration
        -web FILE       an HTML file to serve at /, as examples/web/index.html
        -drain SECONDS  how long SIGTERM waits for what runs, 60 unless given""";

    private Main() {}

    /** The command line is in {@link #USAGE}. */
    public static void main(String[] args) {
        try {
            run(options(args));
        } catch (IllegalArgumentException | YinianException | IOException e) {
            System.err.println(e.getMessage());
            System.exit(1);
        }
    }

    private static Map<String, String> options(String[] args) {
        Map<String, String> found = new LinkedHashMap<>(Map.of("-addr", "127.0.0.1:8000", "-config", "{}", "-drain", "60"));
        for (int i = 0; i < args.length; i += 2) {
            if (!OPTIONS.contains(args[i]) || i + 1 == args.length) {
                throw new IllegalArgumentException("unknown or without a value: " + args[i] + "\n" + USAGE);
            }
            found.put(args[i], args[i + 1]);
        }
        return found;
    }

    private static void run(Map<String, String> options) throws IOException {
        Engine engine = Engine.open(Json.text(config(options)));
        byte[] page = options.containsKey("-web") ? Files.readAllBytes(Path.of(options.get("-web"))) : null;
        Duration patience = Duration.ofSeconds(Long.parseLong(options.get("-drain")));
        Server server = new Server(engine, page);
        Channel listener = listen(server, options.get("-addr"));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(server, listener, patience)));
        System.err.println("listening on http:/" + listener.localAddress());
        engine.ready().whenComplete((none, error) -> loaded(engine, server, error));
    }

    private static Map<String, Object> config(Map<String, String> options) throws IOException {
        Map<String, Object> config = Json.object(options.get("-config").getBytes(StandardCharsets.UTF_8));
        if (options.containsKey("-model")) {
            config.put("model", options.get("-model"));
        }
        // So that /health answers meanwhile.
        config.putIfAbsent("async_load", true);
        return config;
    }

    private static Channel listen(Server server, String address) throws IOException {
        int colon = address.lastIndexOf(':');
        if (colon < 0 || !address.substring(colon + 1).matches("[0-9]{1,5}")) {
            throw new IllegalArgumentException("-addr is " + address + "; expected HOST:PORT");
        }
        InetSocketAddress at = new InetSocketAddress(address.substring(0, colon), Integer.parseInt(address.substring(colon + 1)));
        return new ServerBootstrap().group(new MultiThreadIoEventLoopGroup(NioIoHandler.newFactory())).channel(NioServerSocketChannel.class)
            .option(ChannelOption.SO_BACKLOG, 1024).childOption(ChannelOption.TCP_NODELAY, true).childHandler(Connection.initializer(server)).bind(at)
            .syncUninterruptibly().channel();
    }

    private static void loaded(Engine engine, Server server, Throwable error) {
        try {
            if (error != null) {
                throw error;
            }
            Model model = Model.of(engine);
            server.loaded(model);
            System.err.println("serving " + model.name());
        } catch (Throwable t) {
            System.err.println((t instanceof CompletionException && t.getCause() != null ? t.getCause() : t).getMessage());
            // Without the hook, which drains.
            Runtime.getRuntime().halt(1);
        }
    }

    /** A JVM that a signal ends exits with the signal's number, unless a hook is faster. */
    private static void stop(Server server, Channel listener, Duration patience) {
        try {
            server.drain(patience);
            listener.close();
        } catch (InterruptedException e) {
            // Then at once.
        }
        Runtime.getRuntime().halt(0);
    }
}
