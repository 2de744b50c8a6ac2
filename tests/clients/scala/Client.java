import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.spark.SparkThrowable;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;

/**
 * The Scala client, driven from Java so that no Scala compiler is needed. The same commands, the same
 * JSON as `client.py`: see the README next to this file.
 */
public final class Client {
    private static SparkSession spark;

    public static void main(String[] args) throws Exception {
        // The last line of stdout is the result; what libraries print goes elsewhere.
        PrintStream out = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), true, "UTF-8");
        System.setOut(System.err);
        if (args.length != 3 || !args[1].equals("--url")) {
            System.err.println("usage: Client.java select1|repl|jdbc --url URL");
            System.exit(2);
        }
        Map<String, Object> result = new LinkedHashMap<>();
        result.put("command", args[0]);
        int code = 0;
        try {
            switch (args[0]) {
                case "select1" -> result.putAll(selectOne(args[2]));
                case "repl" -> result.putAll(repl(args[2], out));
                case "jdbc" -> result.putAll(jdbc(args[2]));
                default -> throw new IllegalArgumentException("unknown command " + args[0]);
            }
            stop();
        } catch (Exception error) {
            error.printStackTrace();
            result.put("error", describe(error));
            code = 1;
        }
        result.put("client", "scala " + clientVersion());
        out.println(json(result));
        // Threads of the channel that nobody joins would keep the JVM alive.
        System.exit(code);
    }

    private static SparkSession connect(String url) {
        spark = SparkSession.builder().remote(url).getOrCreate();
        return spark;
    }

    private static void stop() {
        if (spark != null) {
            SparkSession gone = spark;
            spark = null;
            gone.stop();
        }
    }

    private static Map<String, Object> selectOne(String url) {
        connect(url);
        long started = System.nanoTime();
        Object value = spark.sql("SELECT 1 AS one").collectAsList().get(0).get(0);
        Map<String, Object> result = new LinkedHashMap<>();
        result.put("value", value);
        result.put("seconds", (System.nanoTime() - started) / 1e9);
        return result;
    }

    /** The JDBC driver that comes with the client: the same connection string after `jdbc:`. */
    private static Map<String, Object> jdbc(String url) throws Exception {
        Map<String, Object> result = new LinkedHashMap<>();
        try (Connection connection = DriverManager.getConnection("jdbc:" + url);
                Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery("SELECT 1 AS one")) {
            result.put("value", rows.next() ? rows.getInt("one") : null);
            result.put("driver", connection.getMetaData().getDriverName());
        }
        return result;
    }

    /** SQL in, one object out per line; `:connect URL` and `:stop` do what users do in a notebook. */
    private static Map<String, Object> repl(String url, PrintStream out) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        connect(url);
        out.println("{\"ready\":true}");
        int statements = 0;
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            if (line.isBlank()) {
                continue;
            }
            statements++;
            long started = System.nanoTime();
            Map<String, Object> answer = new LinkedHashMap<>();
            try {
                answer.put("rows", statement(line.strip()));
            } catch (Exception error) {
                answer.put("error", describe(error));
            }
            answer.put("seconds", (System.nanoTime() - started) / 1e9);
            out.println(json(answer));
        }
        Map<String, Object> result = new LinkedHashMap<>();
        result.put("statements", statements);
        return result;
    }

    private static List<Object> statement(String line) {
        List<Object> rows = new ArrayList<>();
        if (line.equals(":stop")) {
            stop();
        } else if (line.startsWith(":connect ")) {
            SparkSession before = spark;
            rows.add(connect(line.substring(9)) == before ? "same" : "new");
        } else {
            for (Row row : spark.sql(line).collectAsList()) {
                List<Object> cells = new ArrayList<>();
                for (int at = 0; at < row.length(); at++) {
                    cells.add(row.get(at));
                }
                rows.add(cells);
            }
        }
        return rows;
    }

    private static Map<String, Object> describe(Throwable error) {
        Map<String, Object> seen = new LinkedHashMap<>();
        seen.put("class", error.getClass().getSimpleName());
        seen.put("text", cut(String.valueOf(error.getMessage())));
        seen.put("error_class", error instanceof SparkThrowable known ? known.getCondition() : null);
        // The gRPC classes are shaded, under a name that changes between releases.
        for (Throwable cause = error; cause != null; cause = cause.getCause()) {
            try {
                Method status = cause.getClass().getMethod("getStatus");
                Object value = status.invoke(cause);
                seen.put("grpc_code", String.valueOf(value.getClass().getMethod("getCode").invoke(value)));
                break;
            } catch (ReflectiveOperationException none) {
                // Not the gRPC exception: look at its cause.
            }
        }
        return seen;
    }

    private static String cut(String text) {
        return text.length() > 2000 ? text.substring(0, 2000) : text;
    }

    private static String clientVersion() {
        return org.apache.spark.SparkBuildInfo.spark_version();
    }

    private static String json(Object value) {
        if (value == null || value instanceof Number || value instanceof Boolean) {
            return String.valueOf(value);
        }
        StringBuilder text = new StringBuilder();
        if (value instanceof Map<?, ?> map) {
            for (Map.Entry<?, ?> entry : map.entrySet()) {
                text.append(text.length() == 0 ? "" : ",").append(json(entry.getKey())).append(':').append(json(entry.getValue()));
            }
            return "{" + text + "}";
        }
        if (value instanceof List<?> list) {
            for (Object item : list) {
                text.append(text.length() == 0 ? "" : ",").append(json(item));
            }
            return "[" + text + "]";
        }
        String plain = String.valueOf(value);
        for (int at = 0; at < plain.length(); at++) {
            char c = plain.charAt(at);
            if (c == '"' || c == '\\') {
                text.append('\\').append(c);
            } else if (c < 0x20 || c > 0x7e) {
                text.append(String.format("\\u%04x", (int) c));
            } else {
                text.append(c);
            }
        }
        return "\"" + text + "\"";
    }
}
