import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.scalatest.Reporter;
import org.scalatest.Suite;
import org.scalatest.events.Event;
import org.scalatest.events.SuiteAborted;
import org.scalatest.events.TestCanceled;
import org.scalatest.events.TestFailed;
import org.scalatest.events.TestIgnored;
import org.scalatest.events.TestPending;
import org.scalatest.events.TestStarting;
import org.scalatest.events.TestSucceeded;
import org.scalatest.tools.Runner;
import scala.Option;

/**
 * Runs a suite of ScalaTest and writes the outcome of each test as a JSON line, as outcomes.py does for
 * pytest, with the same variables: BERTH_OUTCOMES, BERTH_ONLY, BERTH_LEFT_OUT. BERTH_RELEASE is the
 * release of the suite. An id is the class, a colon and the name.
 */
public final class Outcomes implements Reporter {
    private static final Path LINES = Path.of(System.getenv("BERTH_OUTCOMES"));
    private static final int DETAIL = 400;

    /** The suite that runs, and its tests that have no end yet: an aborted suite leaves some. */
    private static String suite = "";
    private static final Set<String> open = new TreeSet<>();

    public static void main(String[] arguments) throws Exception {
        suite = arguments[0];
        write("\"release\": " + quoted(System.getenv("BERTH_RELEASE")));
        open.addAll(chosen());
        boolean passed = true;
        if (!open.isEmpty()) {
            List<String> command =
                new ArrayList<>(List.of("-oW", "-C", Outcomes.class.getName(), "-s", suite));
            for (String test : open) {
                command.addAll(List.of("-t", test));
            }
            passed = Runner.run(command.toArray(String[]::new));
        }
        write("\"ended\": " + (passed ? 0 : 1));
        // Threads of clients that a test left open must not keep the process.
        Runtime.getRuntime().halt(0);
    }

    /** The names of the tests to run: those wanted, without those that have a line already. */
    private static Collection<String> chosen() throws Exception {
        Suite instance = (Suite) Class.forName(suite).getDeclaredConstructor().newInstance();
        Set<String> names = new TreeSet<>();
        instance.testNames().foreach(names::add);
        String only = System.getenv("BERTH_ONLY");
        if (only != null) {
            List<String> ids = Files.readAllLines(Path.of(only));
            names.removeIf(name -> !ids.contains(id(name)));
        }
        String[] leftOut = System.getenv().getOrDefault("BERTH_LEFT_OUT", "").split("\n");
        names.removeIf(name -> Arrays.stream(leftOut).anyMatch(pattern -> matches(pattern, id(name))));
        List<String> lines = Files.readAllLines(LINES);
        names.removeIf(name -> lines.stream().anyMatch(line -> line.startsWith("{" + test(name) + ",")));
        return names;
    }

    private static boolean matches(String pattern, String id) {
        return pattern.endsWith("*") ? id.startsWith(pattern.substring(0, pattern.length() - 1)) : id.equals(pattern);
    }

    @Override
    public void apply(Event event) {
        if (event instanceof TestStarting test) {
            line(test.testName(), "started", Option.empty(), "");
        } else if (event instanceof TestSucceeded test) {
            ended(test.testName(), "passed", Option.empty(), "");
        } else if (event instanceof TestFailed test) {
            ended(test.testName(), "failed", test.throwable(), test.message());
        } else if (event instanceof TestCanceled test) {
            ended(test.testName(), "skipped", Option.empty(), "");
        } else if (event instanceof TestIgnored test) {
            ended(test.testName(), "skipped", Option.empty(), "");
        } else if (event instanceof TestPending test) {
            ended(test.testName(), "skipped", Option.empty(), "");
        } else if (event instanceof SuiteAborted aborted) {
            for (String name : List.copyOf(open)) {
                ended(name, "failed", aborted.throwable(), "the suite was aborted: " + aborted.message());
            }
        }
    }

    private static void ended(String name, String outcome, Option<Throwable> error, String message) {
        open.remove(name);
        line(name, outcome, error, message);
    }

    private static void line(String name, String outcome, Option<Throwable> error, String message) {
        String kind = error.isEmpty() ? "" : error.get().getClass().getName();
        String detail = message.substring(0, Math.min(DETAIL, message.length()));
        write(test(name) + ", \"outcome\": \"" + outcome + "\", \"error\": " + quoted(kind)
            + ", \"detail\": " + quoted(detail));
    }

    private static String test(String name) {
        return "\"test\": " + quoted(id(name));
    }

    private static String id(String name) {
        return suite + ": " + name;
    }

    private static synchronized void write(String fields) {
        try {
            Files.writeString(LINES, "{" + fields + "}\n", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    private static String quoted(String text) {
        StringBuilder json = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                json.append('\\').append(c);
            } else if (c < ' ' || c > '~') {
                json.append(String.format("\\u%04x", (int) c));
            } else {
                json.append(c);
            }
        }
        return json.append('"').toString();
    }
}
