"""The sample catalog of `make run`: a few Iceberg tables behind the read half of the Iceberg REST API.

Sail's own catalogs live inside one Spark session, so tables that every session sees need a catalog
server. This one is the smallest that does the job: it makes its tables once (with an in-process Sail),
then answers on loopback until it is stopped. Run it with the Python of the Sail venv.
"""

import argparse
import json
import os
import re
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SCHEMA = "default"
TABLES = {
    "customers": """
        SELECT CAST(id AS INT) AS id,
               concat('customer-', lpad(CAST(id AS STRING), 3, '0')) AS name,
               element_at(array('DE', 'FR', 'IT', 'PL', 'SE'), CAST(id % 5 AS INT) + 1) AS country
        FROM range(1, 101)
    """,
    "orders": """
        SELECT id,
               CAST(id * 7919 % 100 + 1 AS INT) AS customer_id,
               date_add(DATE '2025-01-01', CAST(id % 365 AS INT)) AS ordered_on,
               CAST(id * 104729 % 50000 AS DOUBLE) / 100 AS amount
        FROM range(1, 100001)
    """,
}


def is_made(data, name):
    marker = data / f"{name}.made"
    return marker.exists() and marker.read_text().strip() == str(data / name)


def make_tables(data):
    """A table counts as made when its marker is there: Iceberg names files by their whole path, so
    tables cannot be written elsewhere and moved into place."""
    missing = [name for name in TABLES if not is_made(data, name)]
    if not missing:
        return
    os.environ.setdefault("RUST_LOG", "error")  # Sail tells about every session otherwise
    from pysail.spark import SparkConnectServer
    from pyspark.sql import SparkSession

    print(f"sample catalog: writing {', '.join(missing)}", file=sys.stderr, flush=True)
    server = SparkConnectServer("127.0.0.1", 0)
    server.start(background=True)
    _, port = server.listening_address
    spark = SparkSession.builder.remote(f"sc://localhost:{port}").getOrCreate()
    for name in missing:
        shutil.rmtree(data / name, ignore_errors=True)
        spark.sql(TABLES[name]).write.format("iceberg").save(str(data / name))
        (data / f"{name}.made").write_text(f"{data / name}\n")
    spark.stop()
    server.stop()


def newest_metadata(table):
    """`v12.metadata.json` comes after `v9.metadata.json`."""
    files = table.glob("metadata/*.metadata.json")
    return max(files, key=lambda f: [int(n) for n in re.findall(r"\d+", f.name)], default=None)


class Catalog(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    data = None

    def answer(self, status, body):
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def fail(self, status, kind, message):
        self.answer(status, {"error": {"message": message, "type": kind, "code": status}})

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["v1", "config"]:
                self.answer(200, {"defaults": {}, "overrides": {}})
            case ["v1", "namespaces"]:
                self.answer(200, {"namespaces": [[SCHEMA]]})
            case ["v1", "namespaces", schema, *_] if schema != SCHEMA:
                self.fail(404, "NoSuchNamespaceException", f"there is no schema {schema}")
            case ["v1", "namespaces", schema]:
                self.answer(200, {"namespace": [schema], "properties": {}})
            case ["v1", "namespaces", schema, "tables"]:
                names = [{"namespace": [schema], "name": name} for name in sorted(TABLES)]
                self.answer(200, {"identifiers": names})
            case ["v1", "namespaces", _, "views"]:
                self.answer(200, {"identifiers": []})
            case ["v1", "namespaces", _, "tables", name] if name in TABLES:
                metadata = newest_metadata(self.data / name)
                if metadata is None:
                    return self.fail(500, "ServerError", f"the files of {name} are gone")
                self.answer(
                    200,
                    {
                        "metadata-location": metadata.as_uri(),
                        "metadata": json.loads(metadata.read_text()),
                        "config": {},
                    },
                )
            case ["v1", "namespaces", _, "views", name]:
                self.fail(404, "NoSuchViewException", f"there is no view {name}")
            case _:
                self.fail(404, "NoSuchTableException", f"nothing at {self.path}")

    do_HEAD = do_GET

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.fail(403, "ForbiddenException", "the sample catalog is read-only")

    do_DELETE = do_POST

    def log_message(self, *_):
        """Quiet: a line per request is of no use to anybody here."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the tables, made if needed")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    args = parser.parse_args()
    # Bound first, so that a taken port costs no time; clients wait in the queue while tables are made.
    Catalog.data = args.data.absolute()
    Catalog.data.mkdir(parents=True, exist_ok=True)
    with ThreadingHTTPServer(("127.0.0.1", args.port), Catalog) as server:
        make_tables(Catalog.data)
        print(f"ready http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
