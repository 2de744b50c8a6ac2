import java.io.File;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/** Tries promises one after the other and prints a JSON line for each, as `promises.py` does. */
final class Trial {
    /** Seconds for each promise. */
    private static final long LIMIT = 150;

    /** The client has no such call. */
    static final class NotOffered extends Exception {
        NotOffered(String what) {
            super(what);
        }
    }

    /** One promise; it is kept if this returns. */
    interface Promise {
        void keep() throws Throwable;
    }

    private final Map<String, Promise> promises = new LinkedHashMap<>();

    Trial with(String name, Promise promise) {
        promises.put(name, promise);
        return this;
    }

    Trial without(String why, String... names) {
        for (String name : names) {
            promises.put(name, () -> {
                throw new NotOffered(why);
            });
        }
        return this;
    }

    void run(String client, String release) {
        print("client", client, "release", release);
        promises.forEach((name, promise) -> {
            String outcome = "passed";
            String detail = "";
            try {
                within(LIMIT, promise);
            } catch (NotOffered missing) {
                outcome = "not offered";
                detail = missing.getMessage();
            } catch (Throwable error) {
                error.printStackTrace();
                outcome = "failed";
                detail = error.getClass().getSimpleName() + ": " + error.getMessage();
            }
            print("promise", name, "outcome", outcome, "detail", detail);
        });
    }

    static void check(boolean fine, Object seen) {
        if (!fine) {
            throw new AssertionError("wrong result: " + seen);
        }
    }

    private static void within(long seconds, Promise promise) throws Throwable {
        AtomicReference<Throwable> failure = new AtomicReference<>();
        Thread thread = new Thread(() -> {
            try {
                promise.keep();
            } catch (Throwable error) {
                failure.set(error);
            }
        });
        thread.setDaemon(true);
        thread.start();
        thread.join(seconds * 1000);
        check(!thread.isAlive(), "no end within " + seconds + " s");
        if (failure.get() != null) {
            throw failure.get();
        }
    }

    /** Starts this program again, which ends as a program does that forgot `stop()`. */
    static void leave(Class<?> program, String url) throws Exception {
        List<String> command = new ArrayList<>();
        command.add(System.getProperty("java.home") + "/bin/java");
        command.addAll(ManagementFactory.getRuntimeMXBean().getInputArguments());
        command.addAll(List.of("-cp", System.getProperty("java.class.path"), program.getName(), "--url", url, "--leave"));
        File output = File.createTempFile("leave", ".log");
        Process process = new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(output).start();
        boolean ended = process.waitFor(120, TimeUnit.SECONDS);
        process.destroyForcibly();
        check(ended, "the program without stop() goes on");
        check(process.exitValue() == 0, "the program without stop() ends with " + process.exitValue());
    }

    private static void print(String... pairs) {
        StringBuilder line = new StringBuilder();
        for (int at = 0; at < pairs.length; at += 2) {
            line.append(at == 0 ? "{" : ",").append(quoted(pairs[at])).append(':').append(quoted(pairs[at + 1]));
        }
        System.out.println(line.append('}'));
    }

    private static String quoted(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        text.chars().limit(600).forEach(c -> {
            if (c == '"' || c == '\\') {
                quoted.append('\\').append((char) c);
            } else if (c < 0x20 || c > 0x7e) {
                quoted.append(String.format("\\u%04x", c));
            } else {
                quoted.append((char) c);
            }
        });
        return quoted.append('"').toString();
    }
}
