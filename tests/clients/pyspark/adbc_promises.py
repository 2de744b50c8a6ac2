"""The promises of the client matrix (../promises.toml), kept by the ADBC driver: `adbc_promises.py --url URL`.

One JSON line per promise, as promises.py prints them.
"""

import argparse
import faulthandler
import importlib.metadata
import json
import os
import subprocess
import sys

import adbc_driver_spark.dbapi

NOT_OFFERED = ("udf", "interrupt", "tags", "streaming", "artifacts", "clone")


def rows(connection, sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def check(fine, seen):
    if not fine:
        raise AssertionError(f"wrong result: {seen!r}")


def select(connection, _args):
    seen = rows(connection, "SELECT 1 AS one, 'zwei' AS two")
    check(seen == [(1, "zwei")], seen)


def large_result(connection, _args):
    count = 1_000_000
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id, concat('a-value-of-some-length-', id) AS text FROM range(0, {count}, 1, 8)")
        frame = cursor.fetch_arrow_table().to_pandas()
    check(len(frame) == count and int(frame["id"].sum()) == count * (count - 1) // 2, len(frame))
    check(frame["text"].nunique() == count, frame["text"].head())


def temp_view(connection, _args):
    with connection.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE TEMP VIEW people AS SELECT * FROM VALUES ('ada'), ('bob') AS t(name)")
    seen = rows(connection, "SELECT name FROM people WHERE name > 'b'")
    check(seen == [("bob",)], seen)


def error_class(connection, _args):
    try:
        rows(connection, "SELECT * FROM no_such_table_here")
    except adbc_driver_spark.dbapi.Error as error:
        text = str(error)
    else:
        raise AssertionError("a query of a table that is not there succeeds")
    check(rows(connection, "SELECT 1") == [(1,)], "the connection afterwards")
    if "TABLE_OR_VIEW_NOT_FOUND" not in text:
        raise AssertionError(f"Error without class: {text}")


def exit_without_stop(_connection, args):
    command = [sys.executable, os.path.abspath(__file__), "--url", args.url, "--leave"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    check(ended.returncode == 0 and ended.stdout.strip() == "queried", (ended.returncode, ended.stderr[-600:]))


PROMISES = {
    "select": select,
    "large-result": large_result,
    "temp-view": temp_view,
    "error-class": error_class,
    "exit-without-stop": exit_without_stop,
}


def keep(promise, connection, args):
    try:
        PROMISES[promise](connection, args)
        return "passed", ""
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:600]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="sc://host:port/;token=...;x-session-id=...")
    parser.add_argument("--leave", action="store_true", help="query once and end without closing anything")
    args = parser.parse_args()
    faulthandler.dump_traceback_later(300, exit=True)
    connection = adbc_driver_spark.dbapi.connect(args.url)
    if args.leave:
        rows(connection, "SELECT 1")
        print("queried", flush=True)
        return
    print(json.dumps({"client": "adbc", "release": importlib.metadata.version("adbc-driver-spark")}), flush=True)
    for promise in PROMISES:
        outcome, detail = keep(promise, connection, args)
        print(json.dumps({"promise": promise, "outcome": outcome, "detail": detail}), flush=True)
    for promise in NOT_OFFERED:
        print(json.dumps({"promise": promise, "outcome": "not offered", "detail": "ADBC has no such call"}))
    connection.close()


if __name__ == "__main__":
    main()
