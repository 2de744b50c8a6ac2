"""The promises of the client matrix, kept by PySpark: `promises.py --url URL [--only NAME ...]`.

One JSON line per promise of ../promises.toml, which also says what each means: `promise`, `outcome`
(`passed`, `failed` or `not offered`, when this release has no such call) and `detail`. Runs on
PySpark 3.4 to 4.3 and ends with 0 whatever the outcomes; the test compares them with the table.
"""

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import pyspark
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

# Seconds for each promise, and for the program.
LIMIT = 150
WHOLE = 590
# Half a minute of work: if an interrupt does not reach it, it ends by itself.
LONG = 30_000_000_000


class NotOffered(Exception):
    """This release has no such call."""


def need(thing, name):
    if not hasattr(thing, name):
        raise NotOffered(f"{type(thing).__name__} has no {name}")
    return getattr(thing, name)


def check(fine, seen):
    if not fine:
        raise AssertionError(f"wrong result: {seen!r}")


# ---- promises --------------------------------------------------------------------------------


def select(spark, _args):
    seen = [list(row) for row in spark.sql("SELECT 1 AS one, 'zwei' AS two").collect()]
    check(seen == [[1, "zwei"]], seen)


def large_result(spark, _args):
    rows = 1_000_000
    frame = spark.range(0, rows, 1, 8).select(
        F.col("id"), F.concat(F.lit("a-value-of-some-length-"), F.col("id").cast("string")).alias("text")
    )
    table = frame.toPandas()
    check(len(table) == rows and int(table["id"].sum()) == rows * (rows - 1) // 2, len(table))
    check(table["text"].nunique() == rows, table["text"].head())


def temp_view(spark, _args):
    people = spark.createDataFrame([(1, "ada"), (2, "bob"), (3, "cyd")], "id BIGINT, name STRING")
    people.createOrReplaceTempView("people")
    seen = [row[0] for row in spark.sql("SELECT name FROM people WHERE id > 1 ORDER BY id").collect()]
    check(seen == ["bob", "cyd"], seen)


def udf(spark, _args):
    def shout(text):
        return text.upper() + "!"

    loud = F.udf(shout, T.StringType())
    frame = spark.sql("SELECT 'ada' AS name").select(loud("name").alias("loud"))
    check(frame.collect()[0]["loud"] == "ADA!", "udf")
    spark.udf.register("shout", shout, T.StringType())
    check(spark.sql("SELECT shout('bob')").collect()[0][0] == "BOB!", "registered")

    def halve(values):
        return values / 2

    half = F.pandas_udf(halve, T.DoubleType())
    seen = [row[0] for row in spark.range(1, 4).orderBy("id").select(half("id")).collect()]
    check(seen == [0.5, 1.0, 1.5], seen)


def error_class(spark, _args):
    from pyspark.errors import AnalysisException

    try:
        spark.sql("SELECT * FROM no_such_table_here").collect()
    except AnalysisException as error:
        condition = (getattr(error, "getCondition", None) or error.getErrorClass)()
        text = str(error)
    else:
        raise AssertionError("a query of a table that is not there succeeds")
    check(spark.sql("SELECT 1").collect()[0][0] == 1, "the session after the error")
    # Some clients have the class in the text only.
    if condition != "TABLE_OR_VIEW_NOT_FOUND" and not text.startswith("[TABLE_OR_VIEW_NOT_FOUND]"):
        raise AssertionError(f"AnalysisException without class: {condition}: {text}")


class LongQuery:
    """A query in a thread of its own."""

    def __init__(self, spark, tag=None):
        self.spark, self.tag, self.rows, self.error = spark, tag, None, None
        self.busy = threading.Event()
        if hasattr(spark, "registerProgressHandler"):
            spark.registerProgressHandler(self.progress)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        # Spark 4 tells of running tasks every 2 s, others never do. An interrupt that reaches Spark
        # before the first task ends the query, but not the tasks that come then.
        self.busy.wait(5)

    def progress(self, stages, inflight_tasks, operation_id, done):
        if inflight_tasks:
            self.busy.set()

    def run(self):
        try:
            if self.tag:
                self.spark.addTag(self.tag)
            self.rows = self.spark.range(LONG).select(F.sum(F.col("id") % F.lit(7))).collect()
        except Exception as error:
            self.error = error

    def running(self):
        return self.thread.is_alive()

    def ended_by(self, interrupt):
        check(self.running(), f"the query ended before: {self.rows or self.error}")
        ids = interrupt()
        self.thread.join(10)
        check(not self.running(), f"the query goes on 10 s after its interrupt, which returned {ids}")
        check(self.error is not None, f"the query has a result: {self.rows}")


def interrupt(spark, _args):
    interrupt_all = need(spark, "interruptAll")
    LongQuery(spark).ended_by(interrupt_all)
    check(spark.sql("SELECT 1").collect()[0][0] == 1, "the session after the interrupt")


def tags(spark, _args):
    interrupt_tag = need(spark, "interruptTag")
    query = LongQuery(spark, tag="matrix")
    interrupt_tag("another")
    time.sleep(1)
    query.ended_by(lambda: interrupt_tag("matrix"))
    check(spark.sql("SELECT 1").collect()[0][0] == 1, "the session after the interrupt")


def streaming(spark, _args):
    try:
        reader = spark.readStream
    except (AttributeError, NotImplementedError) as error:
        raise NotOffered(str(error)) from None
    rate = reader.format("rate").option("rowsPerSecond", 50).load()
    query = rate.writeStream.format("memory").queryName("ticks").outputMode("append").start()
    try:
        until = time.monotonic() + 100
        while spark.table("ticks").count() < 50:
            check(query.isActive, query.exception())
            check(time.monotonic() < until, f"no rows: {query.lastProgress}")
            time.sleep(0.5)
    finally:
        query.stop()
    check(not query.isActive, "active after its stop")


def artifacts(spark, _args):
    add = getattr(spark, "addArtifact", None)
    if add is None:
        raise NotOffered("SparkSession has no addArtifact")
    content = os.urandom(300_000)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"upload-{uuid.uuid4().hex}.bin")
        with open(path, "wb") as file:
            file.write(content)
        add(path, file=True)

    def read(name):
        import zlib

        from pyspark import SparkFiles

        with open(SparkFiles.get(name), "rb") as file:
            return zlib.crc32(file.read())

    import zlib

    checksum = F.udf(read, T.LongType())
    seen = spark.range(1).select(checksum(F.lit(os.path.basename(path)))).collect()[0][0]
    check(seen == zlib.crc32(content), seen)


def clone(spark, _args):
    clone_session = need(spark, "cloneSession")
    spark.range(3).createOrReplaceTempView("shared_view")
    copy = clone_session()
    check(copy.sql("SELECT count(*) FROM shared_view").collect()[0][0] == 3, "the view in the clone")
    copy.range(5).createOrReplaceTempView("shared_view")
    check(spark.table("shared_view").count() == 3, "the view in the original after a change in the clone")
    copy.stop()
    check(spark.sql("SELECT 1").collect()[0][0] == 1, "the original after the end of the clone")


def exit_without_stop(_spark, args):
    """A program that ends as a closed notebook does."""
    command = [sys.executable, os.path.abspath(__file__), "--url", args.url, "--leave"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    check(ended.returncode == 0 and ended.stdout.strip().endswith("queried"), (ended.returncode, ended.stderr[-600:]))


PROMISES = {
    "select": select,
    "large-result": large_result,
    "temp-view": temp_view,
    "udf": udf,
    "error-class": error_class,
    "interrupt": interrupt,
    "tags": tags,
    "streaming": streaming,
    "artifacts": artifacts,
    "clone": clone,
    "exit-without-stop": exit_without_stop,
}


# ---- command line ----------------------------------------------------------------------------


def keep(promise, spark, args):
    def too_late(_signal, _frame):
        raise TimeoutError(f"no end within {LIMIT} s")

    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(LIMIT)
    try:
        PROMISES[promise](spark, args)
        return "passed", ""
    except NotOffered as missing:
        return "not offered", str(missing)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:600]
    finally:
        signal.alarm(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="sc://host:port/;token=...;x-session-id=...")
    parser.add_argument("--only", nargs="*", choices=list(PROMISES), default=list(PROMISES))
    parser.add_argument("--leave", action="store_true", help="query once and end without stop()")
    args = parser.parse_args()
    faulthandler.dump_traceback_later(WHOLE, exit=True)
    spark = SparkSession.builder.remote(args.url).getOrCreate()
    if args.leave:
        spark.sql("SELECT 1").collect()
        print("queried", flush=True)
        return
    print(json.dumps({"client": "pyspark", "release": pyspark.__version__}), flush=True)
    for promise in args.only:
        begun = time.monotonic()
        outcome, detail = keep(promise, spark, args)
        line = {"promise": promise, "outcome": outcome, "detail": detail}
        print(json.dumps({**line, "seconds": round(time.monotonic() - begun, 1)}), flush=True)
    spark.stop()


if __name__ == "__main__":
    main()
