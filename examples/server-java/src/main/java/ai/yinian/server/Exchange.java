package ai.yinian.server;

import io.netty.buffer.Unpooled;
import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.DefaultFullHttpResponse;
import io.netty.handler.codec.http.DefaultHttpContent;
import io.netty.handler.codec.http.DefaultHttpResponse;
import io.netty.handler.codec.http.HttpHeaders;
import io.netty.handler.codec.http.HttpMessage;
import io.netty.handler.codec.http.HttpResponse;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.netty.handler.codec.http.HttpUtil;
import io.netty.handler.codec.http.HttpVersion;
import io.netty.handler.codec.http.LastHttpContent;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import java.util.Map;
import java.util.concurrent.ThreadLocalRandom;

/** One request and its response, on the event loop of its connection. */
final class Exchange {
    private final ChannelHandlerContext connection;
    private final String requestId;
    private final Runnable ended;
    private String allow;
    private Runnable onClose = () -> {};
    private Runnable onWritable;

    /** {@code requestId} may be null; {@code ended} runs when the response is written, or cannot be. */
    Exchange(ChannelHandlerContext connection, String requestId, Runnable ended) {
        this.connection = connection;
        this.requestId = requestId == null || requestId.isEmpty() ? newId("req-") : requestId;
        this.ended = ended;
    }

    /** Answers what cannot be served, and closes the connection. */
    static void refuse(ChannelHandlerContext connection, HttpMessage request, ApiError error) {
        new Exchange(connection, request.headers().get("x-request-id"), connection::close).fail(error);
    }

    static String newId(String prefix) {
        ThreadLocalRandom random = ThreadLocalRandom.current();
        HexFormat hex = HexFormat.of();
        return prefix + hex.toHexDigits(random.nextLong()) + hex.toHexDigits(random.nextInt());
    }

    void answer(int status, Map<String, ?> body) {
        answer(status, "application/json", Json.bytes(body), status == 503);
    }

    void answer(int status, String type, byte[] body, boolean mayRetry) {
        DefaultFullHttpResponse response = new DefaultFullHttpResponse(HttpVersion.HTTP_1_1, HttpResponseStatus.valueOf(status),
            Unpooled.wrappedBuffer(body));
        HttpHeaders headers = headers(response, type);
        HttpUtil.setContentLength(response, body.length);
        if (mayRetry) {
            headers.set("retry-after", "1");
        }
        if (allow != null) {
            headers.set("allow", allow);
        }
        connection.writeAndFlush(response).addListener(written -> ended.run());
    }

    private HttpHeaders headers(HttpResponse response, String type) {
        return response.headers().set("content-type", type).set("x-request-id", requestId);
    }

    void fail(ApiError error) {
        answer(error.status, "application/json", Json.bytes(error.body()), error.mayRetry());
    }

    /** With the method that would do. */
    void failMethod(ApiError error, String method) {
        allow = method;
        fail(error);
    }

    void page(byte[] html) {
        answer(200, "text/html; charset=utf-8", html, false);
    }

    void text(String text) {
        answer(200, "text/plain; version=0.0.4; charset=utf-8", text.getBytes(StandardCharsets.UTF_8), false);
    }

    void beginEvents() {
        HttpResponse response = new DefaultHttpResponse(HttpVersion.HTTP_1_1, HttpResponseStatus.OK);
        headers(response, "text/event-stream").set("cache-control", "no-cache");
        HttpUtil.setTransferEncodingChunked(response, true);
        connection.write(response);
    }

    void send(byte[] event) {
        connection.writeAndFlush(new DefaultHttpContent(Unpooled.wrappedBuffer(event)));
    }

    void end() {
        connection.writeAndFlush(LastHttpContent.EMPTY_LAST_CONTENT).addListener(written -> ended.run());
    }

    /** Now, or when the client has read some of what waits for it. */
    void whenWritable(Runnable task) {
        if (connection.channel().isWritable()) {
            task.run();
        } else {
            onWritable = task;
        }
    }

    void writable() {
        Runnable task = onWritable;
        onWritable = null;
        if (task != null) {
            task.run();
        }
    }

    void onClose(Runnable task) {
        onClose = task;
    }

    /** The client has left. */
    void closed() {
        onClose.run();
    }
}
