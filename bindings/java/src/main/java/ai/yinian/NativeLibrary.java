package ai.yinian;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Locale;

/** Finds and loads the glue and, through it, libyinian. The order is in the package's documentation. */
final class NativeLibrary {
    private static final String GLUE = "libyinian_jni.so";
    /** The glue looks for it beside itself. */
    private static final String LIBRARY = "libyinian.so.0.1";

    private static final int PIECE_BYTES = 1 << 20;

    private NativeLibrary() {}

    static void load() {
        String path = System.getProperty("ai.yinian.library");
        if (path != null) {
            System.load(path);
        } else if (NativeLibrary.class.getResource(resource(GLUE)) != null) {
            loadFromJar();
        } else {
            loadFromPath();
        }
    }

    private static String resource(String file) {
        String arch = System.getProperty("os.arch").toLowerCase(Locale.ROOT);
        String system = System.getProperty("os.name").toLowerCase(Locale.ROOT);
        return "/ai/yinian/native/" + system + "-" + (arch.equals("amd64") ? "x86_64" : arch) + "/" + file;
    }

    private static void loadFromPath() {
        try {
            System.loadLibrary("yinian_jni");
        } catch (UnsatisfiedLinkError e) {
            UnsatisfiedLinkError told = new UnsatisfiedLinkError("libyinian_jni.so was not found: the property ai.yinian.library is not set,"
                + " this jar has no " + resource(GLUE) + ", and of java.library.path: " + e.getMessage());
            told.initCause(e);
            throw told;
        }
    }

    /** What is loaded stays mapped, so the files are needed only while they are loaded. */
    private static void loadFromJar() {
        String parent = System.getProperty("ai.yinian.tmpdir", System.getProperty("java.io.tmpdir"));
        Path dir = null;
        try {
            dir = Files.createTempDirectory(Path.of(parent), "yinian-",
                PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")));
            unpack(LIBRARY, dir);
            System.load(unpack(GLUE, dir).toString());
        } catch (IOException | UnsatisfiedLinkError e) {
            UnsatisfiedLinkError told = new UnsatisfiedLinkError("the native library of the jar does not load from " + parent
                + " (another folder can be named by the property ai.yinian.tmpdir): " + e.getMessage());
            told.initCause(e);
            throw told;
        } finally {
            remove(dir);
        }
    }

    private static Path unpack(String file, Path dir) throws IOException {
        Path to = dir.resolve(file);
        try (InputStream in = NativeLibrary.class.getResourceAsStream(resource(file))) {
            if (in == null) {
                throw new IOException("the jar has no " + resource(file));
            }
            // In large pieces: a JVM that starts copies slowly.
            byte[] piece = new byte[PIECE_BYTES];
            try (OutputStream out = Files.newOutputStream(to, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE)) {
                for (int n = in.read(piece); n > 0; n = in.read(piece)) {
                    out.write(piece, 0, n);
                }
            }
        }
        return to;
    }

    private static void remove(Path dir) {
        if (dir == null) {
            return;
        }
        for (String file : new String[] {GLUE, LIBRARY, ""}) {
            try {
                Files.deleteIfExists(dir.resolve(file));
            } catch (IOException e) {
                // It stays in the folder for temporary files, and does no harm there.
            }
        }
    }
}
