"""Real PySpark programs for the end-to-end tests, one subcommand per promise.

Each run prints one JSON object as the last line of stdout. Exit code 0 means that the promise was
kept (or, for `expect-error` and `stream`, that there is something to report); anything else comes
with the reason on stderr. Works with PySpark 3.5 and 4.x; see README.md for the fields.
"""

import argparse
import faulthandler
import gc
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
import traceback
import uuid

import grpc
import pyspark
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

OPENED = []


def connect(url, fresh=False):
    """A session the way users open one; `fresh` opens a further one in the same program."""
    builder = SparkSession.builder.remote(url)
    spark = builder.create() if fresh else builder.getOrCreate()
    OPENED.append(spark)
    return spark


def stop(spark):
    OPENED.remove(spark)
    spark.stop()


def stop_all():
    """Without stop() newer clients send a query at exit and can hang there."""
    while OPENED:
        try:
            OPENED.pop().stop()
        except Exception as error:  # a session that is gone cannot be released
            print(f"stop: {type(error).__name__}", file=sys.stderr)


def rpc_error(error):
    """PySpark hides the gRPC error it wraps; it is still in the chain of contexts."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, grpc.RpcError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def describe(error):
    def ask(*names):
        for name in names:
            if callable(getattr(error, name, None)):
                try:
                    return getattr(error, name)()
                except Exception:
                    return None
        return None

    rpc = rpc_error(error)
    berth_reason = None
    if rpc is not None:
        trailers = dict(rpc.trailing_metadata() or [])
        berth_reason = trailers.get("berth-reason")
    return {
        "class": type(error).__name__,
        "bases": [base.__name__ for base in type(error).__mro__[1:-2]],
        "text": str(error)[:2000],  # Spark appends its whole stack
        "error_class": ask("getCondition", "getErrorClass"),
        "sql_state": ask("getSqlState"),
        "grpc_code": rpc.code().name if rpc is not None else None,
        "berth_reason": berth_reason,
    }


def caught(action):
    """The error that `action` ends with; no error is itself a failure."""
    try:
        value = action()
    except Exception as error:
        return describe(error)
    raise AssertionError(f"expected an error, got {value!r}")


def when_running(spark):
    """Set once tasks of a query of this client run: Spark 4 tells of them every 2 s, Sail never does.

    An interrupt that reaches Spark before the first task started ends the query, but not the tasks
    that come then: they go on and hold every core.
    """
    running = threading.Event()

    def told(stages, inflight_tasks, operation_id, done):
        if inflight_tasks:
            running.set()

    spark.registerProgressHandler(told)
    return running


# ---- promises --------------------------------------------------------------------------------


def select1(args):
    spark = connect(args.url)
    started = time.monotonic()
    value = spark.sql("SELECT 1 AS one").collect()[0]["one"]
    seconds = time.monotonic() - started
    return {"value": value, "seconds": round(seconds, 3), "server": spark.version}


def checksum(frame):
    import numpy
    import pandas

    hashes = pandas.util.hash_pandas_object(frame, index=False).to_numpy()
    return int(hashes.sum(dtype=numpy.uint64)), int(numpy.bitwise_xor.reduce(hashes))


def compressed(args):
    """Queries whose requests gRPC compresses with gzip; one is above the proxy's limit if it is not split."""
    from pyspark.sql.connect.client import DefaultChannelBuilder
    from pyspark.sql.connect.session import SparkSession as RemoteSession

    # `remote()` takes no options of the channel.
    options = [("grpc.default_compression_algorithm", grpc.Compression.Gzip)]
    channel = DefaultChannelBuilder(args.url, channelOptions=options)
    spark = RemoteSession.builder.channelBuilder(channel).create()
    OPENED.append(spark)
    rows = [(n, "row" * (n % 40)) for n in range(args.rows)]
    sent = spark.createDataFrame(rows, "n int, text string")
    found = sent.agg(F.sum("n").alias("n"), F.sum(F.length("text")).alias("text")).collect()[0]
    result = {
        "one": spark.sql("SELECT 1 AS one").collect()[0]["one"],
        "sums": [found["n"], found["text"]],
        "expected": [sum(n for n, _ in rows), sum(len(text) for _, text in rows)],
    }
    noise = os.urandom(3 << 20).hex()
    try:
        spark.createDataFrame([(noise,)], "text string").collect()
    except Exception as error:
        result["refused"] = describe(error)
    # The session works as before.
    result["after"] = spark.range(3).count()
    return result


def read_big(url, rows, fresh):
    """Fetches the result in one piece, hashes it a slice at a time, in no particular order."""
    slice_rows = 500_000
    spark = connect(url, fresh)
    started = time.monotonic()
    frame = spark.range(0, rows, 1, 40).select(
        F.col("id"),
        (F.col("id") * F.lit(2654435761) % F.lit(1000003)).alias("mixed"),
        (F.col("id") / F.lit(8.0)).alias("eighth"),
        F.concat(F.lit("k"), (F.col("id") % F.lit(1000)).cast("string")).alias("key"),
    )
    if hasattr(frame, "toArrow"):
        table = frame.toArrow()
        slices = (batch.to_pandas() for batch in table.to_batches(max_chunksize=slice_rows))
        count, size = table.num_rows, table.nbytes
    else:
        whole = frame.toPandas()
        slices = (whole.iloc[at : at + slice_rows] for at in range(0, len(whole), slice_rows))
        count, size = len(whole), None
    fetched = time.monotonic() - started
    total, mixed = 0, 0
    for piece in slices:
        plus, xor = checksum(piece)
        total, mixed = (total + plus) % 2**64, mixed ^ xor
    stop(spark)
    return {
        "rows": count,
        "bytes": size,
        "checksum": f"{total:016x}-{mixed:016x}",
        "seconds": round(fetched, 2),
    }


def big(args):
    result = {"through": read_big(args.url, args.rows, False)}
    if result["through"]["rows"] != args.rows:
        raise AssertionError(f"asked for {args.rows} rows: {result}")
    if args.direct_url:
        result["direct"] = read_big(args.direct_url, args.rows, True)
        result["equal"] = all(
            result["through"][key] == result["direct"][key] for key in ("rows", "checksum")
        )
        if not result["equal"]:
            raise AssertionError(f"the two results differ: {result}")
    return result


def tables(spark):
    return sorted(row["tableName"] for row in spark.sql("SHOW TABLES").collect())


def catalog(args):
    """Unqualified names only: everything must land in the session's default catalog."""
    # Commands run at once; Sail answers an INSERT with a column type that collect() cannot read.
    spark = connect(args.url)
    where = spark.sql("SELECT current_catalog() AS c, current_schema() AS s").collect()[0]
    result = {"catalog": where["c"], "schema": where["s"], "before": tables(spark)}
    if args.read:
        result["read_rows"] = spark.sql(f"SELECT count(*) AS n FROM {args.read}").collect()[0]["n"]
    if args.table:
        using = f" USING {args.format}" if args.format else ""
        at = f" LOCATION '{args.location}'" if args.location else ""
        spark.sql(f"CREATE TABLE {args.table} (id BIGINT, name STRING){using}{at}")
        spark.sql(f"INSERT INTO {args.table} VALUES (1, 'one'), (2, 'two')")
        result["after"] = tables(spark)
        rows = spark.sql(f"SELECT id, name FROM {args.table} ORDER BY id").collect()
        result["rows"] = [list(row) for row in rows]
        if args.table not in result["after"]:
            raise AssertionError(f"SHOW TABLES does not list {args.table}: {result}")
        if result["rows"] != [[1, "one"], [2, "two"]]:
            raise AssertionError(f"wrong rows: {result}")
        if not args.keep:
            spark.sql(f"DROP TABLE {args.table}")
    return result


def views_udfs(args):
    spark = connect(args.url)
    people = spark.createDataFrame([(1, "ada"), (2, "bob"), (3, "cyd")], "id BIGINT, name STRING")
    people.createOrReplaceTempView("people")
    view = [list(r) for r in spark.sql("SELECT name FROM people WHERE id > 1 ORDER BY id").collect()]

    def shout(text):
        return text.upper() + "!"

    loud = F.udf(shout, T.StringType())
    frame = spark.table("people").orderBy("id").select(loud("name").alias("loud"))
    column = [row["loud"] for row in frame.collect()]
    spark.udf.register("shout", shout, T.StringType())
    named = [r[0] for r in spark.sql("SELECT shout(name) FROM people ORDER BY id").collect()]

    def halve(values):
        return values / 2

    half = F.pandas_udf(halve, T.DoubleType())
    pandas = [row[0] for row in spark.range(1, 4).orderBy("id").select(half("id")).collect()]

    result = {"view": view, "udf": column, "sql_udf": named, "pandas_udf": pandas}
    wanted = ["ADA!", "BOB!", "CYD!"]
    if view != [["bob"], ["cyd"]] or column != wanted or named != wanted or pandas != [0.5, 1.0, 1.5]:
        raise AssertionError(f"wrong results: {result}")
    return result


def remote_digest(spark, name):
    """SHA-256 and size of an uploaded file as a UDF on the server sees it, or null."""

    def look(wanted):
        import hashlib
        import os

        from pyspark import SparkFiles

        path = SparkFiles.get(wanted)
        if not os.path.exists(path):
            return None
        digest, size = hashlib.sha256(), 0
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
        return f"{digest.hexdigest()} {size}"

    seen = F.udf(look, T.StringType())
    return spark.range(1).select(seen(F.lit(name)).alias("seen")).collect()[0]["seen"]


def upload(spark, folder, size):
    """Adds a file of random bytes; gives its name, its digest and the seconds it took."""
    name = f"upload-{uuid.uuid4().hex}.bin"
    path = os.path.join(folder, name)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        left = size
        while left > 0:
            block = os.urandom(min(left, 1 << 20))
            digest.update(block)
            left -= file.write(block)
    started = time.monotonic()
    spark.addArtifact(path, file=True)
    return name, f"{digest.hexdigest()} {size}", time.monotonic() - started


def artifact(args):
    with tempfile.TemporaryDirectory() as folder:
        spark = connect(args.url)
        name, wanted, seconds = upload(spark, folder, int(args.size_mb * (1 << 20)))
        seen = remote_digest(spark, name)
    result = {"sha256": wanted.split()[0], "bytes": int(wanted.split()[1]), "seconds": round(seconds, 2)}
    result["same"] = seen == wanted
    if not result["same"]:
        raise AssertionError(f"the server sees {seen!r}, sent {wanted!r}")
    return result


def errors(args):
    spark = connect(args.url)
    return {
        "missing_table": caught(lambda: spark.sql("SELECT * FROM no_such_table_here").collect()),
        "parse": caught(lambda: spark.sql("SELEKT 1").collect()),
        "runtime": caught(lambda: spark.sql("SELECT CAST('x' AS INT) AS n").collect()),
        "alive": spark.sql("SELECT 1").collect()[0][0] == 1,
    }


def isolation(args):
    """What one session made must be unknown in another one."""
    one = connect(args.url)
    one.range(5).createOrReplaceTempView("private_view")
    count = one.sql("SELECT count(*) FROM private_view").collect()[0][0]
    two = connect(args.other_url or args.url, fresh=True)
    result = {
        "own_rows": count,
        "error": caught(lambda: two.sql("SELECT count(*) FROM private_view").collect()),
    }
    if args.files:
        with tempfile.TemporaryDirectory() as folder:
            name, wanted, _ = upload(one, folder, 100_000)
            result["own_file"] = remote_digest(one, name) == wanted
            result["other_file"] = remote_digest(two, name)
        if not result["own_file"] or result["other_file"] is not None:
            raise AssertionError(f"files are not private: {result}")
    return result


def expect_error(args):
    started = time.monotonic()

    def query():
        return connect(args.url).sql("SELECT 1").collect()[0][0]

    result = caught(query)
    result["seconds"] = round(time.monotonic() - started, 3)
    if result["seconds"] > args.within:
        raise AssertionError(f"the error took more than {args.within} s: {result}")
    return result


def slow_frame(spark, seconds, witness=None):
    """Rows that trickle for about `seconds` on an idle CPU: a UDF sleeps, partition by partition.

    Each row is also put down in the file `witness`, which tells what ran twice.
    """
    partitions = max(2, int(seconds) * 2)

    def nap(value):
        import time

        if witness:
            with open(witness, "a") as file:
                file.write(f"{value}\n")
        time.sleep(0.1)
        return value

    slow = F.udf(nap, T.LongType())
    return spark.range(0, partitions * 10, 1, partitions).select(slow("id").alias("id"))


def stream(args):
    """Reads a long result; says `streaming` after its first rows, in the end how it ended."""
    spark = connect(args.url)
    if args.kind == "sleep":
        frame, pause_every = slow_frame(spark, args.seconds, args.witness), None
    elif args.kind == "sum":
        # One row, after a long time in which nothing comes.
        frame, pause_every = spark.range(args.rows).select(F.sum(F.col("id") % F.lit(7)).alias("id")), None
    else:
        frame, pause_every = spark.range(args.rows), 10_000
    rows, error, last = 0, None, None
    seen = set()
    started = time.monotonic()
    print("asking", flush=True)
    if args.tasks:
        running = when_running(spark)
        threading.Thread(target=lambda: running.wait() and print("running", flush=True), daemon=True).start()
    try:
        for row in frame.toLocalIterator():
            rows += 1
            if args.kind == "sleep":
                seen.add(row["id"])
            last = row["id"]
            if rows == 10:
                print("streaming", flush=True)
            if pause_every and rows % pause_every == 0:
                time.sleep(args.pause)
    except Exception as ended:
        error = describe(ended)
    return {
        "rows": rows,
        "distinct": len(seen),
        "expected": max(2, int(args.seconds) * 2) * 10,
        "last": last,
        "error": error,
        "seconds": round(time.monotonic() - started, 2),
    }


def job(args):
    """One number after `seconds`, however fast the machine is, and whether it is right; says `asking` before."""
    spark = connect(args.url)
    pause = args.seconds

    def nap(value):
        import time

        time.sleep(pause)
        return value

    slow = F.udf(nap, T.LongType())
    frame = spark.range(7, 8, 1, 1).select(F.sum(slow("id")).alias("total"))
    print("asking", flush=True)
    started = time.monotonic()
    rows = frame.collect()
    return {
        "rows": len(rows),
        "right": rows[0]["total"] == 7,
        "seconds": round(time.monotonic() - started, 2),
    }


def download(args):
    """Reads a large result and throws it away, batch by batch."""
    spark = connect(args.url)
    wide = spark.range(0, args.rows, 1, 40).select(
        F.col("id"), F.lpad(F.col("id").cast("string"), 1000, "x").alias("wide")
    )
    rows, size = 0, 0
    started = time.monotonic()
    for batch in wide._session.client.to_table_as_iterator(wide._plan.to_proto(wide._session.client), {}):
        if hasattr(batch, "nbytes"):
            rows += batch.num_rows
            size += batch.nbytes
    if rows != args.rows:
        raise AssertionError(f"asked for {args.rows} rows, got {rows}")
    return {"rows": rows, "bytes": size, "seconds": round(time.monotonic() - started, 2)}


def interrupt(args):
    spark = connect(args.url)
    outcome = {}

    def run():
        try:
            endless = spark.range(10**12).select(F.sum(F.col("id") % F.lit(7)).alias("total"))
            outcome["rows"] = endless.collect()
        except Exception as error:
            outcome["error"] = describe(error)

    running = when_running(spark) if args.tasks else None
    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    if running:
        running.wait()
    else:
        time.sleep(args.after)
    started = time.monotonic()
    interrupted = spark.interruptAll()
    worker.join(timeout=30)
    result = {
        "interrupted": len(interrupted or []),
        "seconds": round(time.monotonic() - started, 2),
        "ended": not worker.is_alive(),
        **outcome,
    }
    result["alive"] = spark.sql("SELECT 1").collect()[0][0] == 1
    if not result["ended"] or "error" not in outcome:
        raise AssertionError(f"the query was not interrupted: {result}")
    return result


def leave(args):
    """Queries once, waits for a line, and ends as a closed notebook does: without stop()."""
    spark = connect(args.url)
    value = spark.sql("SELECT 1").collect()[0][0]
    OPENED.clear()
    print("queried", flush=True)
    sys.stdin.readline()
    return {"value": value}


def statement(spark, line):
    """The session to go on with and the rows; what begins with a colon users do in a notebook beside SQL."""
    if line == ":stop":
        stop(spark)
        # PySpark 4.0 closes its threads again when the stopped session is collected, which then ends
        # a query of the next one with "cannot schedule new futures".
        gc.collect()
        return spark, []
    if line.startswith(":connect "):
        now = SparkSession.builder.remote(line.split(maxsplit=1)[1]).getOrCreate()
        if now is spark:
            return spark, ["same"]
        OPENED[:] = [now]
        return now, ["new"]
    if line.startswith(":set "):
        _, name, value = line.split(maxsplit=2)
        spark.conf.set(name, value)
        return spark, []
    if line.startswith(":get "):
        return spark, [[spark.conf.get(line.split()[1])]]
    return spark, [list(row) for row in spark.sql(line).collect()]


def repl(args):
    """One session for as long as the test wants: a SQL text per line in, a JSON object per line out."""
    spark = connect(args.url)
    print(json.dumps({"ready": True}), flush=True)
    count = 0
    for line in sys.stdin:
        if not line.strip():
            continue
        count += 1
        started = time.monotonic()
        try:
            spark, rows = statement(spark, line.strip())
            answer = {"rows": rows}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": describe(error)}
        answer["seconds"] = round(time.monotonic() - started, 3)
        print(json.dumps(answer, default=str), flush=True)
    return {"statements": count}


# ---- command line ----------------------------------------------------------------------------


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=300, help="seconds until the program kills itself")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, function, **options):
        sub = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0] if function.__doc__ else None)
        sub.set_defaults(function=function)
        sub.add_argument("--url", required=True, help="sc://host:port/;token=...;x-session-id=...")
        sub.add_argument("--limit", type=float, default=argparse.SUPPRESS)
        for option, settings in options.items():
            sub.add_argument("--" + option.replace("_", "-"), **settings)

    command("select1", select1)
    command("compressed", compressed, rows={"type": int, "default": 100_000})
    command("big", big, direct_url={}, rows={"type": int, "default": 10_000_000})
    command(
        "catalog",
        catalog,
        table={"help": "create, fill, read and drop this table"},
        read={"help": "count the rows of this table, which is there already"},
        format={"help": "USING clause of the new table"},
        location={"help": "LOCATION clause of the new table"},
        keep={"action": "store_true", "help": "do not drop the table"},
    )
    command("views-udfs", views_udfs)
    command("artifact", artifact, size_mb={"type": float, "default": 8})
    command("errors", errors)
    command("isolation", isolation, other_url={}, files={"action": "store_true"})
    command("expect-error", expect_error, within={"type": float, "default": 5})
    command(
        "stream",
        stream,
        kind={"choices": ["sleep", "range", "sum"], "default": "sleep"},
        seconds={"type": float, "default": 120, "help": "how long the rows of `sleep` trickle"},
        rows={"type": int, "default": 200_000_000, "help": "rows of `range`"},
        witness={"help": "a file to put down each row of `sleep` in, as it is made"},
        pause={"type": float, "default": 0.2, "help": "seconds between 10000 rows of `range`"},
        tasks={"action": "store_true", "help": "print `running` with its first task (Spark 4 only)"},
    )
    command("job", job, seconds={"type": float, "required": True})
    command("download", download, rows={"type": int, "default": 1_000_000})
    command(
        "interrupt",
        interrupt,
        after={"type": float, "default": 3},
        tasks={"action": "store_true", "help": "after its first task instead (Spark 4 only)"},
    )
    command("leave", leave)
    command("repl", repl)
    return parser.parse_args()


def main():
    args = parse()
    faulthandler.dump_traceback_later(args.limit, exit=True)
    try:
        result = args.function(args)
    except Exception as error:
        print(f"{args.command}: {type(error).__name__}: {str(error)[:2000]}", file=sys.stderr)
        return 1
    finally:
        stop_all()
    print(json.dumps({"command": args.command, "client": pyspark.__version__, **result}, default=str))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.exit(code)
