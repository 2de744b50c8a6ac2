"""Queries whose connections are cut at random moments, or whose streams end by PySpark's deadline.

`cuts` runs its own relay in front of the proxy and closes its connections after random numbers of
bytes, under slow and fast readers. `deadline` (PySpark 4.3) sets the deadline of result streams. Both
print one JSON object: every result is compared row by row, so `wrong` names what was lost or repeated
without an error, and `errors` what ended with one.
"""

import argparse
import dataclasses
import faulthandler
import json
import random
import re
import socket
import sys
import threading
import time
import traceback

import numpy
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T


class Relay:
    """Forwards to `target`, and cuts all connections after random numbers of bytes downstream, `budget`
    times."""

    def __init__(self, target, rng, max_bytes):
        self.target, self.rng, self.max_bytes = target, rng, max_bytes
        self.lock, self.pairs = threading.Lock(), []
        self.cuts, self.budget = 0, 0
        self.arm()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def arm(self):
        self.left = self.rng.randint(1000, self.max_bytes)

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            try:
                server = socket.create_connection(self.target)
            except OSError:
                client.close()
                continue
            with self.lock:
                self.pairs.append((client, server))
            for source, sink, is_down in ((client, server, False), (server, client, True)):
                threading.Thread(target=self.copy, args=(source, sink, is_down), daemon=True).start()

    def copy(self, source, sink, is_down):
        try:
            while data := source.recv(16384):
                sink.sendall(data)
                if is_down and self.budget:
                    self.count(len(data))
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def count(self, size):
        with self.lock:
            self.left -= size
            if self.left > 0 or not self.budget:
                return
            self.arm()
            self.cuts += 1
            self.budget -= 1
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


def split(url):
    match = re.match(r"sc://([^:/;]+):(\d+)(/.*)$", url)
    return match.group(1), int(match.group(2)), match.group(3)


def numbers(spark, rows):
    """Rows that hardly shrink by compression, so that the network carries them."""
    return spark.range(0, rows, 1, 4).select(F.col("id"), F.sha2(F.col("id").cast("string"), 256).alias("hash"))


def read(frame, rows, pause):
    """Reads all of a result in batches. Returns what is wrong with it, or nothing."""
    client = frame._session.client
    ids = []
    for batch in client.to_table_as_iterator(frame._plan.to_proto(client), {}):
        if hasattr(batch, "num_rows"):
            ids.append(batch.column(0).to_numpy())
            pause()
    got = numpy.sort(numpy.concatenate(ids)) if ids else numpy.array([])
    if len(got) != rows or not (got == numpy.arange(rows)).all():
        return f"{len(got)} rows, {len(numpy.unique(got))} of them different, instead of {rows}"
    return None


def cuts(args):
    host, port, rest = split(args.url)
    rng = random.Random(args.seed)
    relay = Relay((host, port), rng, args.max_bytes)
    spark = SparkSession.builder.remote(f"sc://localhost:{relay.port}{rest}").getOrCreate()
    frame = numbers(spark, args.rows)
    seen = {"queries": 0, "wrong": [], "errors": []}
    began = time.monotonic()
    try:
        read(frame, args.rows, lambda: None)
        while relay.cuts < args.cuts:
            relay.budget = min(rng.randint(1, 8), args.cuts - relay.cuts)
            is_slow = seen["queries"] % 2 == 0
            pause = (lambda: time.sleep(rng.uniform(0, args.pause))) if is_slow else (lambda: None)
            seen["queries"] += 1
            try:
                if wrong := read(frame, args.rows, pause):
                    seen["wrong"].append(wrong)
            except Exception as error:
                seen["errors"].append(f"{type(error).__name__}: {str(error)[:300]}")
                if len(seen["errors"]) > args.max_errors:
                    break
    finally:
        relay.budget = 0
        spark.stop()
    return seen | {"cuts": relay.cuts, "seconds": round(time.monotonic() - began, 1)}


def deadline(args):
    spark = SparkSession.builder.remote(args.url).getOrCreate()
    try:
        spark.range(1).collect()
        client = spark.client
        short = {"reattachable_execute_plan": args.deadline, "reattach_execute": args.deadline}
        client._rpc_deadlines = dataclasses.replace(client._rpc_deadlines, **short)
        began = time.monotonic()
        frame = numbers(spark, args.rows)
        batches = 0
        print("reading", flush=True)

        def pause():
            nonlocal batches
            batches += 1
            time.sleep(args.pause)

        wrong = read(frame, args.rows, pause)
        streamed = time.monotonic() - began
        # Nothing comes for a long time, then one row.
        began = time.monotonic()
        seconds = args.job

        def nap(value):
            import time

            time.sleep(seconds)
            return value

        slow = F.udf(nap, T.LongType())
        total = spark.range(7, 8, 1, 1).select(F.sum(slow("id"))).collect()[0][0]
        return {
            "wrong": wrong,
            "batches": batches,
            "streamed": round(streamed, 1),
            "right": total == 7,
            "job": round(time.monotonic() - began, 1),
        }
    finally:
        spark.stop()


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=280, help="seconds until the program kills itself")
    commands = parser.add_subparsers(dest="command", required=True)
    for function in (cuts, deadline):
        sub = commands.add_parser(function.__name__)
        sub.set_defaults(function=function)
        sub.add_argument("--url", required=True)
        sub.add_argument("--rows", type=int, default=200_000)
        sub.add_argument("--pause", type=float, default=0.05, help="longest pause of a slow reader per batch")
        if function is cuts:
            sub.add_argument("--cuts", type=int, default=40)
            sub.add_argument("--seed", type=int, default=1)
            sub.add_argument("--max-bytes", type=int, default=2_000_000)
            sub.add_argument("--max-errors", type=int, default=0)
        else:
            sub.add_argument("--deadline", type=float, default=3.0)
            sub.add_argument("--job", type=float, default=8, help="seconds of a query without rows")
    return parser.parse_args()


def main():
    args = parse()
    faulthandler.dump_traceback_later(args.limit, exit=True)
    try:
        print(json.dumps(args.function(args)), flush=True)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()
