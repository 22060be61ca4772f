/**
 * LLM inference inside the JVM: a thin layer over {@code libyinian.so}.
 *
 * <pre>{@code
 * try (Engine engine = Engine.open("{\"model\": \"path/to/model\"}");
 *      Generation answer = engine.generate(Request.prompt("Once upon a time").maxTokens(100))) {
 *     while (answer.hasNext()) {
 *         System.out.print(answer.next().text());
 *     }
 * }
 * }</pre>
 *
 * <p>A request is streamed by {@link ai.yinian.Engine#generate generate} (an iterator) or
 * {@link ai.yinian.Engine#publisher publisher} (a {@code Flow.Publisher}), or answered as a whole by
 * {@link ai.yinian.Engine#complete complete} (a {@code CompletableFuture}).
 *
 * <p>Every method of {@link ai.yinian.Engine}, {@link ai.yinian.Tokenizer}, {@link ai.yinian.Generation} and
 * {@link ai.yinian.Yinian} may be called from any thread at any time, virtual threads too: none of them waits while it holds its
 * carrier. Failures are {@link ai.yinian.YinianException}s.
 *
 * <p>The native library is looked for when the first class of this package needs it, in this order:
 * <ol>
 * <li>the file named by the system property {@code ai.yinian.library}: {@code libyinian_jni.so}, with {@code libyinian.so.0.1}
 * beside it or where the dynamic linker looks;
 * <li>inside the jar, under {@code ai/yinian/native/linux-x86_64} or {@code linux-aarch64}: it is unpacked into a folder of its
 * own under {@code ai.yinian.tmpdir} ({@code java.io.tmpdir} unless set), loaded, and removed again;
 * <li>{@code java.library.path}.
 * </ol>
 * A library of another minor version is refused with an {@link java.lang.UnsatisfiedLinkError}. JDKs of version 24 and later warn of
 * native code unless started with {@code --enable-native-access=ALL-UNNAMED}.
 */
package ai.yinian;
