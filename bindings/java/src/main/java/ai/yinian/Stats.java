package ai.yinian;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * Counters since an engine was opened, and gauges.
 *
 * @param state what the engine is up to
 * @param waiting requests that were accepted and do not run yet
 * @param running requests that run
 * @param finished requests that have ended
 * @param rejected requests that were refused
 * @param preempted how often a running request had to give way
 * @param blocksTotal KV blocks there are
 * @param blocksFree KV blocks that no request holds
 * @param prefixHitTokens prompt tokens that the prefix cache had
 * @param promptTokens tokens of prompts
 * @param completionTokens tokens that were made
 * @param steps steps of the model
 */
public record Stats(EngineState state, long waiting, long running, long finished, long rejected, long preempted,
                    long blocksTotal, long blocksFree, long prefixHitTokens, long promptTokens, long completionTokens, long steps) {
    static final int BYTES = 96;

    /** From a yn_stats. */
    static Stats of(byte[] raw) {
        ByteBuffer b = ByteBuffer.wrap(raw).order(ByteOrder.nativeOrder());
        return new Stats(EngineState.of(b.getInt(4)), b.getLong(8), b.getLong(16), b.getLong(24), b.getLong(32), b.getLong(40),
            b.getLong(48), b.getLong(56), b.getLong(64), b.getLong(72), b.getLong(80), b.getLong(88));
    }
}
