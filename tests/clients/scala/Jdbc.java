import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import org.apache.spark.SparkThrowable;

/** The promises of the client matrix (../promises.toml), kept by the JDBC driver: `Jdbc --url URL`. */
public final class Jdbc {
    private final Connection connection;

    private Jdbc(Connection connection) {
        this.connection = connection;
    }

    public static void main(String[] args) throws Exception {
        Connection connection = DriverManager.getConnection("jdbc:" + args[1]);
        Jdbc promises = new Jdbc(connection);
        if (args.length == 3 && args[2].equals("--leave")) {
            promises.first("SELECT 1");
            return;
        }
        new Trial()
                .with("select", promises::select)
                .with("large-result", promises::largeResult)
                .with("temp-view", promises::tempView)
                .with("error-class", promises::errorClass)
                .with("exit-without-stop", () -> Trial.leave(Jdbc.class, args[1]))
                .without("JDBC has no such call", "udf", "interrupt", "tags", "streaming", "artifacts", "clone")
                .run("jdbc", connection.getMetaData().getDriverVersion());
        connection.close();
        System.exit(0);
    }

    private Object first(String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            return rows.next() ? rows.getObject(1) : null;
        }
    }

    private void select() throws SQLException {
        try (Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery("SELECT 1 AS one, 'zwei' AS two")) {
            Trial.check(rows.next() && rows.getInt("one") == 1 && rows.getString("two").equals("zwei"), rows);
        }
    }

    private void largeResult() throws SQLException {
        long expected = 1_000_000;
        String sql = "SELECT id, concat('a-value-of-some-length-', id) AS text FROM range(0, 1000000, 1, 8)";
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            long count = 0;
            long sum = 0;
            for (; rows.next(); count++) {
                sum += rows.getLong(1);
                Trial.check(rows.getString(2).equals("a-value-of-some-length-" + rows.getLong(1)), rows.getString(2));
            }
            Trial.check(count == expected && sum == expected * (expected - 1) / 2, count + " rows");
        }
    }

    private void tempView() throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute("CREATE OR REPLACE TEMP VIEW people AS SELECT * FROM VALUES ('ada'), ('bob') AS t(name)");
        }
        Object seen = first("SELECT name FROM people WHERE name > 'b'");
        Trial.check("bob".equals(seen), seen);
    }

    private void errorClass() throws SQLException {
        try {
            first("SELECT * FROM no_such_table_here");
        } catch (Exception error) {
            Trial.check(first("SELECT 1").equals(1), "the connection afterwards");
            for (Throwable cause = error; cause != null; cause = cause.getCause()) {
                if (cause instanceof SparkThrowable known && "TABLE_OR_VIEW_NOT_FOUND".equals(known.getCondition())) {
                    return;
                }
            }
            if (!error.getMessage().contains("[TABLE_OR_VIEW_NOT_FOUND]")) {
                throw new AssertionError(error.getClass().getSimpleName() + " without class: " + error.getMessage());
            }
            return;
        }
        throw new AssertionError("a query of a table that is not there succeeds");
    }
}
