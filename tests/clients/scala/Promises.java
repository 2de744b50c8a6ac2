import java.io.InputStream;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Iterator;
import java.util.List;
import java.util.Random;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicReference;
import java.util.zip.CRC32;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
import org.apache.spark.SparkThrowable;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Encoders;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.api.java.UDF1;
import org.apache.spark.sql.streaming.StreamingQuery;
import org.apache.spark.sql.types.DataTypes;

/**
 * The promises of the client matrix (../promises.toml), kept by the Scala client, driven from Java so
 * that no Scala compiler is needed: `Promises --url URL`. Compiled first: the engine gets the classes
 * of the functions as uploads.
 */
public final class Promises {
    /** Half a minute of work: if an interrupt does not reach it, it ends by itself. */
    private static final String LONG = "SELECT sum(id % 7) FROM range(30000000000)";

    private final SparkSession spark;

    private Promises(SparkSession spark) {
        this.spark = spark;
    }

    public static void main(String[] args) throws Exception {
        SparkSession spark = SparkSession.builder().remote(args[1]).getOrCreate();
        if (args.length == 3 && args[2].equals("--leave")) {
            spark.sql("SELECT 1").collectAsList();
            return;
        }
        Promises promises = new Promises(spark);
        new Trial()
                .with("select", promises::select)
                .with("large-result", promises::largeResult)
                .with("temp-view", promises::tempView)
                .with("udf", promises::udf)
                .with("error-class", promises::errorClass)
                .with("interrupt", promises::interrupt)
                .with("tags", promises::tags)
                .with("streaming", promises::streaming)
                .with("artifacts", promises::artifacts)
                .with("clone", promises::cloneSession)
                .with("exit-without-stop", () -> Trial.leave(Promises.class, args[1]))
                .run("scala", org.apache.spark.SparkBuildInfo.spark_version());
        try {
            spark.stop();
        } catch (IllegalStateException leak) {
            // After an interrupted query, release 4.0 can find that it leaked memory.
            leak.printStackTrace();
        }
        // A query that an interrupt did not end would keep the JVM alive.
        System.exit(0);
    }

    private void select() {
        Row row = spark.sql("SELECT 1 AS one, 'zwei' AS two").collectAsList().get(0);
        Trial.check(row.getInt(0) == 1 && row.getString(1).equals("zwei"), row);
    }

    private void alive() {
        Trial.check(spark.sql("SELECT 1").collectAsList().get(0).getInt(0) == 1, "the session afterwards");
    }

    private void largeResult() {
        long rows = 1_000_000;
        Dataset<Row> frame = spark.range(0, rows, 1, 8).selectExpr("id", "concat('a-value-of-some-length-', id) AS text");
        long count = 0;
        long sum = 0;
        for (Iterator<Row> all = frame.toLocalIterator(); all.hasNext(); count++) {
            Row row = all.next();
            sum += row.getLong(0);
            Trial.check(row.getString(1).equals("a-value-of-some-length-" + row.getLong(0)), row);
        }
        Trial.check(count == rows && sum == rows * (rows - 1) / 2, count + " rows");
    }

    private void tempView() {
        spark.createDataset(List.of("ada", "bob", "cyd"), Encoders.STRING()).toDF("name").createOrReplaceTempView("people");
        List<Row> seen = spark.sql("SELECT name FROM people WHERE name > 'b' ORDER BY name").collectAsList();
        Trial.check(seen.size() == 2 && seen.get(1).getString(0).equals("cyd"), seen);
    }

    /** A function that the engine must get as a class. */
    public static final class Shout implements UDF1<String, String> {
        @Override
        public String call(String text) {
            return text.toUpperCase() + "!";
        }
    }

    private void upload(Class<?> function) throws Exception {
        Path folder = Path.of(Promises.class.getProtectionDomain().getCodeSource().getLocation().toURI());
        spark.addArtifact(folder.resolve(function.getName() + ".class").toString());
    }

    private void udf() throws Exception {
        upload(Shout.class);
        spark.udf().register("shout", new Shout(), DataTypes.StringType);
        Row row = spark.sql("SELECT shout('ada')").collectAsList().get(0);
        Trial.check(row.getString(0).equals("ADA!"), row);
    }

    private void errorClass() {
        try {
            spark.sql("SELECT * FROM no_such_table_here").collectAsList();
        } catch (Exception error) {
            alive();
            String condition = error instanceof SparkThrowable known ? known.getCondition() : null;
            if (!"TABLE_OR_VIEW_NOT_FOUND".equals(condition)) {
                throw new AssertionError(error.getClass().getSimpleName() + " without class: " + condition);
            }
            return;
        }
        throw new AssertionError("a query of a table that is not there succeeds");
    }

    /** Runs a long query in a thread of its own, and what should end it. */
    private void endedBy(String tag, Runnable interrupt) throws Exception {
        AtomicReference<Object> end = new AtomicReference<>();
        Thread query = new Thread(() -> {
            try {
                if (tag != null) {
                    spark.addTag(tag);
                }
                end.set(spark.sql(LONG).collectAsList());
            } catch (Throwable error) {
                end.set(error);
            }
        });
        query.setDaemon(true);
        query.start();
        // Until its first tasks run: an interrupt before them would end the query, but not the tasks.
        query.join(5000);
        Trial.check(query.isAlive(), "the query ended before: " + end.get());
        interrupt.run();
        query.join(10_000);
        Trial.check(!query.isAlive(), "the query goes on 10 s after its interrupt");
        Trial.check(end.get() instanceof Exception, "the query has another end: " + end.get());
        alive();
    }

    private void interrupt() throws Exception {
        endedBy(null, spark::interruptAll);
    }

    private void tags() throws Exception {
        endedBy("matrix", () -> {
            Trial.check(spark.interruptTag("another").isEmpty(), "a query with another tag is interrupted");
            spark.interruptTag("matrix");
        });
    }

    private void streaming() throws Exception {
        Dataset<Row> rate = spark.readStream().format("rate").option("rowsPerSecond", 50).load();
        StreamingQuery query = rate.writeStream().format("memory").queryName("ticks").outputMode("append").start();
        try {
            long until = System.nanoTime() + 100_000_000_000L;
            while (spark.table("ticks").count() < 50) {
                Trial.check(query.isActive() && System.nanoTime() < until, "no rows: " + query.lastProgress());
                Thread.sleep(500);
            }
        } finally {
            query.stop();
        }
        Trial.check(!query.isActive(), "active after its stop");
    }

    /** The checksum of a resource, as a function on the engine finds it. */
    public static final class Checksum implements UDF1<String, Long> {
        @Override
        public Long call(String name) throws Exception {
            CRC32 sum = new CRC32();
            try (InputStream resource = Thread.currentThread().getContextClassLoader().getResourceAsStream(name)) {
                sum.update(resource.readAllBytes());
            }
            return sum.getValue();
        }
    }

    private void artifacts() throws Exception {
        String name = "upload-" + UUID.randomUUID() + ".bin";
        byte[] content = new byte[300_000];
        new Random().nextBytes(content);
        Path jar = Files.createTempFile("upload", ".jar");
        try (ZipOutputStream zip = new ZipOutputStream(Files.newOutputStream(jar))) {
            zip.putNextEntry(new ZipEntry(name));
            zip.write(content);
        }
        CRC32 sum = new CRC32();
        sum.update(content);
        spark.addArtifact(jar.toString());
        upload(Checksum.class);
        spark.udf().register("checksum", new Checksum(), DataTypes.LongType);
        Row row = spark.sql("SELECT checksum('" + name + "')").collectAsList().get(0);
        Trial.check(row.getLong(0) == sum.getValue(), row);
    }

    /** By name, for releases without it. */
    private void cloneSession() throws Throwable {
        spark.range(3).createOrReplaceTempView("shared_view");
        Class<?> type = spark.getClass();
        MethodHandle cloneSession;
        try {
            cloneSession = MethodHandles.lookup().findVirtual(type, "cloneSession", MethodType.methodType(type));
        } catch (NoSuchMethodException missing) {
            throw new Trial.NotOffered("SparkSession has no cloneSession");
        }
        SparkSession copy = (SparkSession) cloneSession.invoke(spark);
        Trial.check(copy.table("shared_view").count() == 3, "the view in the clone");
        copy.range(5).createOrReplaceTempView("shared_view");
        Trial.check(spark.table("shared_view").count() == 3, "the view in the original after a change in the clone");
        copy.stop();
        alive();
    }
}
