package ai.yinian.tck;

import ai.yinian.Chunk;
import ai.yinian.Engine;
import ai.yinian.Request;
import java.util.concurrent.Flow;
import org.reactivestreams.tck.TestEnvironment;
import org.reactivestreams.tck.flow.FlowPublisherVerification;
import org.testng.SkipException;
import org.testng.annotations.AfterClass;

/** The publisher against the rules of reactive streams. As many choices as elements, each in one chunk, make streams of known length. */
public final class PublisherTckTest extends FlowPublisherVerification<Chunk> {
    private static final int MOST_CHOICES = 128;
    private final Engine engine = Engine.open("{\"model\": \"mock:words\"}");

    public PublisherTckTest() {
        super(new TestEnvironment(200, 50));
    }

    @Override
    public Flow.Publisher<Chunk> createFlowPublisher(long elements) {
        if (elements == 0) {
            throw new SkipException("there is no answer without a chunk");
        }
        return engine.publisher(Request.prompt("x").choices((int) elements).maxTokens(4).finalOnly());
    }

    @Override
    public Flow.Publisher<Chunk> createFailedFlowPublisher() {
        return engine.publisher(Request.prompt("x").maxTokens(0));
    }

    @Override
    public long maxElementsFromPublisher() {
        return MOST_CHOICES;
    }

    @AfterClass
    public void close() {
        engine.close();
    }
}
