package ai.yinian.server;

import io.netty.buffer.ByteBufUtil;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelInboundHandlerAdapter;
import io.netty.channel.ChannelInitializer;
import io.netty.channel.ChannelPipeline;
import io.netty.channel.socket.SocketChannel;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpMessage;
import io.netty.handler.codec.http.HttpObjectAggregator;
import io.netty.handler.codec.http.HttpServerCodec;
import io.netty.handler.codec.http.HttpServerKeepAliveHandler;
import io.netty.handler.codec.http.HttpUtil;
import io.netty.handler.timeout.IdleStateEvent;
import io.netty.handler.timeout.IdleStateHandler;
import io.netty.handler.timeout.WriteTimeoutHandler;
import java.util.ArrayDeque;
import java.util.Queue;

/** A client's connection: takes its requests one after the other, and ends what runs when it is closed. */
final class Connection extends ChannelInboundHandlerAdapter {
    private static final int MOST_BODY_BYTES = 32 << 20;
    private static final int MOST_PIPELINED = 16;
    private static final int IDLE_SECONDS = 120;
    /** How long a client may leave a streamed event unread before its connection is given up. */
    private static final int WRITE_PATIENCE_SECONDS = 30;

    /** A request as it came, whole. */
    record Incoming(String method, String path, String requestId, String timeout, byte[] body) {}

    private final Server server;
    private final Queue<Incoming> waiting = new ArrayDeque<>();
    private Exchange current;

    private Connection(Server server) {
        this.server = server;
    }

    static ChannelInitializer<SocketChannel> initializer(Server server) {
        return new ChannelInitializer<>() {
            @Override
            protected void initChannel(SocketChannel channel) {
                channel.pipeline().addLast(new IdleStateHandler(0, 0, IDLE_SECONDS), new WriteTimeoutHandler(WRITE_PATIENCE_SECONDS),
                    new HttpServerCodec(), new HttpServerKeepAliveHandler(), new Bodies(), new Connection(server));
            }
        };
    }

    /** Reads bodies whole; one that is too large is told so, and the connection closed. */
    private static final class Bodies extends HttpObjectAggregator {
        Bodies() {
            super(MOST_BODY_BYTES);
        }

        @Override
        protected void handleOversizedMessage(ChannelHandlerContext ctx, HttpMessage oversized) {
            Exchange.refuse(ctx, oversized, ApiError.http(413, "the body is larger than " + MOST_BODY_BYTES + " bytes"));
        }

        /** Of a client that asks before it sends: it is told in {@link #handleOversizedMessage}. */
        @Override
        protected Object newContinueResponse(HttpMessage start, int most, ChannelPipeline pipeline) {
            return HttpUtil.getContentLength(start, 0L) > most ? null : super.newContinueResponse(start, most, pipeline);
        }
    }

    @Override
    public void channelRead(ChannelHandlerContext ctx, Object message) {
        FullHttpRequest request = (FullHttpRequest) message;
        try {
            if (request.decoderResult().isFailure()) {
                Exchange.refuse(ctx, request, ApiError.http(400, "this is no HTTP: " + request.decoderResult().cause().getMessage()));
                return;
            }
            if (waiting.size() >= MOST_PIPELINED) {
                ctx.close();
                return;
            }
            String path = request.uri().split("\\?", 2)[0];
            waiting.add(new Incoming(request.method().name(), path, request.headers().get("x-request-id"),
                request.headers().get("x-request-timeout-ms"), ByteBufUtil.getBytes(request.content())));
        } finally {
            request.release();
        }
        next(ctx);
    }

    private void next(ChannelHandlerContext ctx) {
        Incoming incoming = current == null ? waiting.poll() : null;
        if (incoming != null) {
            server.begun();
            current = new Exchange(ctx, incoming.requestId(), () -> {
                ended();
                // Not from inside the one that ends.
                ctx.executor().execute(() -> next(ctx));
            });
            server.serve(incoming, current, ctx.executor());
        }
    }

    /** When the response is written or the connection is closed, whatever comes first. */
    private void ended() {
        if (current != null) {
            current = null;
            server.ended();
        }
    }

    @Override
    public void channelInactive(ChannelHandlerContext ctx) {
        waiting.clear();
        if (current != null) {
            current.closed();
            ended();
        }
    }

    @Override
    public void channelWritabilityChanged(ChannelHandlerContext ctx) {
        if (current != null && ctx.channel().isWritable()) {
            current.writable();
        }
    }

    @Override
    public void userEventTriggered(ChannelHandlerContext ctx, Object event) {
        if (event instanceof IdleStateEvent && current == null) {
            ctx.close();
        }
    }

    @Override
    public void exceptionCaught(ChannelHandlerContext ctx, Throwable cause) {
        // The client is gone, does not read, or does not speak HTTP.
        ctx.close();
    }
}
